"""What an engine needs of its connection with the scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.protocol.messages import Goodbye, Message

__all__ = ["Dial", "Link"]


class Link(Protocol):
    """The connection with the scheduler; `comm.connection.Connection` is it."""

    @property
    def thread_safe_send(self) -> bool:
        """Whether any thread may send, and not only that of the loop."""
        ...

    def send_many_nowait(self, messages: Iterable[Message]) -> None:
        """Append to what will be sent."""
        ...

    def flush_nowait(self) -> None:
        """Send what can be sent without waiting, leave the rest to the connection's writer."""
        ...

    def batches(self) -> AsyncIterable[Sequence[Message]]:
        """What arrives, as it arrives. Ends at a proper end of the stream, raises at a loss."""
        ...

    @property
    def hello(self) -> Hello | Welcome:
        """How the scheduler answered the hello."""
        ...

    @property
    def goodbye(self) -> Goodbye | None:
        """What the scheduler said when it left, if it did."""
        ...

    def abort(self, reason: str = "") -> None:
        """Close at once, in the middle of whatever."""
        ...

    async def aclose(self, reason: str = "") -> None:
        """Say goodbye, send what is left, close."""
        ...

    def __aenter__(self) -> Coroutine[Any, Any, object]:
        """Start what serves the connection."""
        ...

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Coroutine[Any, Any, bool | None]:
        """Stop it."""
        ...


Dial = Callable[[str, int], Awaitable[Link]]
"""Connects to the scheduler, and says from whom the link was lost: from the scheduler of this incarnation, after so
many of its messages (an empty text: from none). Raises `NoScheduler` or `RefusedError` when it gives up."""
