"""What is acquired and released: the common part of locks, semaphores and locks of several names."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Any, Self

import trio

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
        self._owner: object = None

    def _acquire(self) -> Waiting[bool]:
        raise NotImplementedError

    def refuse_reentrance(self) -> None:
        """Raise `RuntimeError` if this object holds a lock for this thread or Trio task: it would wait for itself."""
        if self.leases and self._owner == _caller():
            raise RuntimeError(f"{self!r} is held here already, by this object, which would wait for itself")

    def add(self, lease: RequestId) -> None:
        """Hold this for this thread or Trio task."""
        self.leases.append(lease)
        self._owner = _caller()

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


def _caller() -> object:
    return trio.lowlevel.current_task() if trio.lowlevel.in_trio_run() else threading.get_ident()


def release(leased: Leased) -> Waiting[None]:
    """Let the next one have what this object acquired first, and still holds.

    Raises `RuntimeError` if it holds nothing.
    """
    if not leased.leases:
        raise RuntimeError(f"{leased!r} is not held by this object")
    leased.leases.popleft().end()
    return Done(None)
