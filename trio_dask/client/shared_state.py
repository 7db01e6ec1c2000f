"""What the parts of an engine share: the core, the lock that guards it, and the phase of the link.

    NotStarted ──► Connecting ──► Connected ──► Connecting ──► Connected ...    a lost connection: it dials again
                      ▲  │            │             │
                      │  ▼            │             │
                      Lost ◄──────────┴─────────────┘    the scheduler said goodbye, or could not be reached again

Each ends in `Closed`, or in `Forked` in a forked child. Only the loop's own thread changes the phase. Other threads
read it, and compare it again under the lock where they rely on it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Protocol, TypeAlias

import trio

from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import Ended
from trio_dask.errors import ForkedClientError, SchedulerLost
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.messages import Goodbye, Message

_logger = logging.getLogger("trio_dask.client")

CLOSED: Final = "the client is closed"

Status: TypeAlias = Literal["connecting", "running", "lost", "closed", "forked"]


class Connection(Protocol):
    """What a client needs of `comm.connection.Connection`."""

    @property
    def thread_safe_send(self) -> bool: ...
    @property
    def hello(self) -> Hello | Welcome: ...
    @property
    def goodbye(self) -> Goodbye | None: ...
    def send_many_nowait(self, messages: Iterable[Message]) -> None: ...
    def flush_nowait(self) -> None: ...
    def batches(self) -> AsyncIterable[Sequence[Message]]: ...
    def abort(self, reason: str = "") -> None: ...
    async def aclose(self, reason: str = "") -> None: ...
    def __aenter__(self) -> Coroutine[Any, Any, object]: ...
    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> Coroutine[Any, Any, bool | None]: ...


Dial = Callable[[str, int], Awaitable[Connection]]
"""Connects to the scheduler. It gets the incarnation of the scheduler that the client was connected with before (empty:
none), and how many of its messages the client has handled. Raises `NoScheduler` or `RefusedError` when it gives up."""


class NotStarted:
    """No loop runs the engine yet."""

    status: ClassVar[Status] = "connecting"

    def error(self) -> Exception:
        """What a call raises now."""
        return RuntimeError("the client is not connected yet: enter it with `async with`")


class Connecting:
    """It dials, for the first time or after a lost connection; requests wait."""

    status: ClassVar[Status] = "connecting"


class Connected:
    """There is a connection, until it ends by itself or is given up by `fail`."""

    status: ClassVar[Status] = "running"

    __slots__ = ("connection", "failure", "scope")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.scope = trio.CancelScope()
        """Around listening to it."""
        self.failure = ""

    def fail(self, error: Exception) -> None:
        """The client has a bug: end the connection, so that no call waits for ever. For the loop's own thread."""
        _logger.error("the client failed", exc_info=error)
        self.failure = repr(error)
        self.scope.cancel()


@dataclass(frozen=True, slots=True)
class Lost:
    """The scheduler is lost with all requests to it; the next request makes the client dial again."""

    asked: trio.Event

    status: ClassVar[Status] = "lost"


@dataclass(frozen=True, slots=True)
class Closed:
    """The client has ended; `ended` says why."""

    ended: Ended

    status: ClassVar[Status] = "closed"

    def error(self) -> Exception:
        """What a call raises now."""
        return SchedulerLost(self.ended.text) if self.ended.lost else RuntimeError(self.ended.text)


@dataclass(frozen=True, slots=True)
class Forked:
    """This process was forked from the one that the client belongs to."""

    owner: int
    address: str

    status: ClassVar[Status] = "forked"

    def error(self) -> Exception:
        """What a call raises now."""
        at = f"({self.address!r})" if self.address else "(...)"
        return ForkedClientError(
            f"this client belongs to process {self.owner}, from which process {os.getpid()} was forked: its connection "
            f"and its threads exist only there. Make another client here, `Client{at}`, perhaps in a function for "
            "`os.register_at_fork(after_in_child=...)`"
        )


Phase: TypeAlias = NotStarted | Connecting | Connected | Lost | Closed | Forked


class SharedState:
    """The core under its lock, and the phase."""

    def __init__(self) -> None:
        self.core = ClientCore()
        # Reentrant: the garbage collector may run anybody's finalizer in the middle of our own code.
        self.lock: AbstractContextManager[object] = threading.RLock()
        self.phase: Phase = NotStarted()

    def check_open(self) -> None:
        """Raise an error if nothing can be asked: the client is closed, not started, or belongs to another process.

        It is `SchedulerLost` if there never was a scheduler, `ForkedClientError` in a forked child, else
        `RuntimeError`.
        """
        phase = self.phase
        if isinstance(phase, NotStarted | Closed | Forked):
            raise phase.error()
