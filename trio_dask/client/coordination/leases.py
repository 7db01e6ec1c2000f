"""What is acquired and released: the common part of locks, semaphores and locks of several names."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any, Self

from trio_dask.client.call_forms import Done, Waiting
from trio_dask.client.coordination.requests import Primitive, RequestId
from trio_dask.client.wait_signals import refuse_in_event_loop


class Leased(Primitive):
    """An object that holds leases. They belong to the session of the client that acquired them.

    Its definition of `acquire` is `_acquire`.
    """

    def __init__(self, name: str | None = None, client: Any = None) -> None:
        super().__init__(name, client)
        self.leases: deque[RequestId] = deque()
        """What this object holds, the oldest first."""

    def _acquire(self) -> Waiting[bool]:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self._acquire().wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        release(self)


class BlockingBlock(Leased):
    """The `with` block of the blocking forms."""

    def __enter__(self) -> Self:
        refuse_in_event_loop(f"with {type(self).__name__}(...)")
        self._acquire().block()
        return self

    def __exit__(self, *_: object) -> None:
        release(self)


def release(leased: Leased) -> Waiting[None]:
    """Let the next one have what this object acquired first, and still holds.

    Raises `RuntimeError` if it holds nothing.
    """
    if not leased.leases:
        raise RuntimeError(f"the {leased.KIND} {leased.name!r} is not held by this object")
    leased.leases.popleft().end()
    return Done(None)
