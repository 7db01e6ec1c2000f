"""What a launcher needs of a login on a host, whichever program makes it: commands, and their three streams."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Protocol

import trio

from trio_dask.errors import UnavailableError

EXIT_UNKNOWN = -1
"""The exit status of a command whose host or connection was lost."""


class HostError(UnavailableError):
    """Something failed on one host.

    Attributes: the `host` as the user wrote it, the `step` that failed, `words` (the last line of whatever failed), and
    `remedy`, what to try; it may be empty.
    """

    def __init__(self, host: str, step: str, words: str, remedy: str = "") -> None:
        super().__init__(host, step, words, remedy)
        self.host, self.step, self.words, self.remedy = host, step, words, remedy

    def __str__(self) -> str:
        return f"{self.host}: {self.step}: {self.words}" + (f"; {self.remedy}" if self.remedy else "")


class HostLost(HostError):
    """The connection with a host was lost."""


@contextmanager
def one_host_error() -> Generator[None]:
    """Raise the first `HostError` of a group of them, a lost connection before all others, instead of the group.

    Cancellations beside it come again at the next checkpoint.
    """
    try:
        yield
    except BaseExceptionGroup as group:  # raised again, whole or the error that it stands for
        found, rest = group.split(HostError)
        if found is None or (rest is not None and rest.split(trio.Cancelled)[1] is not None):
            raise
        errors = list(_leaves(found))
        lost = next((error for error in errors if isinstance(error, HostLost)), errors[0])
        raise lost from lost.__cause__


def _leaves(group: BaseExceptionGroup[HostError]) -> Generator[HostError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class RemoteProcess(Protocol):
    """A command that runs on a host. Leaving the block of `Session.start` ends its stdin, and waits no longer."""

    async def receive(self) -> bytes:
        """The next piece of its stdout; empty at the end."""
        ...

    async def receive_error(self) -> bytes:
        """The next piece of its stderr; empty at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Send this to its stdin, soon. What it sends is short, and it does not wait."""
        ...

    def close_stdin(self) -> None:
        """End its stdin, after what was written."""
        ...

    async def wait(self) -> int:
        """Wait for its end; gives its status as `subprocess` has it, or `EXIT_UNKNOWN` if the connection is lost."""
        ...


class Session(Protocol):
    """A login on a host, that is one connection: all commands on that host run over it."""

    def start(self, command: str) -> AbstractAsyncContextManager[RemoteProcess]:
        """Start a command; the host's shell reads it.

        Raises:
          HostError: it could not be started.
          HostLost: the connection is lost.
        """
        ...

    def forward(self, host: str, port: int) -> AbstractAsyncContextManager[int]:
        """Forward a free port of this machine's loopback, which the block gets, to a place that the host reaches."""
        ...
