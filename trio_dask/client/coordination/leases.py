"""What is acquired and released: the common part of locks, semaphores and locks of several names."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import trio

from trio_dask.client.call_forms import Done, Timeout, Waiting
from trio_dask.client.coordination.requests import ForAnswer, Primitive, RequestId, end_of_session, refusal
from trio_dask.client.core.key_state import Ended
from trio_dask.client.core.local_leases import Lease, LeaseWaiter, Place, Refused
from trio_dask.client.engine import Engine
from trio_dask.client.wait_signals import Signal, ThreadSignal, TrioSignal, as_seconds, limit, refuse_in_event_loop


class HeldLease(NamedTuple):
    """A lease that other callers of the client can take over."""

    engine: Engine
    lease: Lease

    def end(self) -> None:
        """Release it."""
        self.engine.release_lease(self.lease)


class Leased(Primitive):
    """An object that holds leases. They belong to the session of the client that acquired them.

    Both forms serve in `async with` under Trio, and in `with` elsewhere: in a plain task of a program under Trio, too.
    Its definition of `acquire` is `_acquire`.
    """

    def __init__(self, name: str | None = None, client: Any = None) -> None:
        super().__init__(name, client)
        self.leases: deque[RequestId | HeldLease] = deque()
        """What this object holds, the oldest first."""
        self._owner: object = None

    def _acquire(self) -> Waiting[bool]:
        raise NotImplementedError

    def refuse_reentrance(self) -> None:
        """Raise `RuntimeError` if this object holds a lock for this thread or Trio task: it would wait for itself."""
        if self.leases and self._owner == _caller():
            raise RuntimeError(f"{self!r} is held here already, by this object, which would wait for itself")

    def add(self, lease: RequestId | HeldLease) -> None:
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

    def __enter__(self) -> Self:
        refuse_in_event_loop(f"with {type(self).__name__}(...)", "`async with`")
        self._acquire().block()
        return self

    def __exit__(self, *_: object) -> None:
        release(self)


@dataclass(slots=True, eq=False)
class ForLease:
    """Waits for a lease, perhaps for one that another caller of this client releases. False if none came in time."""

    leased: Leased
    arguments: tuple[Any, ...]
    timeout: Timeout = None

    def block(self) -> bool:
        seconds = as_seconds(self.timeout)
        signal = ThreadSignal()
        engine, place, waiter = self._new_waiter(signal)
        try:
            engine.acquire_lease(place, waiter)
            is_in_time = signal.wait(seconds)
        except BaseException:  # Ctrl-C: what comes meanwhile must not be lost
            engine.leave_line(place, waiter)
            raise
        return self._result(engine, place, waiter, is_in_time)

    async def wait(self) -> bool:
        signal = TrioSignal()
        engine, place, waiter = self._new_waiter(signal)
        try:
            engine.acquire_lease(place, waiter)
            with limit(self.timeout) if self.timeout is not None else nullcontext():
                await signal.wait()
        except BaseException:  # cancelled: what comes meanwhile must not be lost
            engine.leave_line(place, waiter)
            raise
        return self._result(engine, place, waiter, signal.is_set)

    def _new_waiter(self, signal: Signal) -> tuple[Engine, Place, LeaseWaiter]:
        leased = self.leased
        return leased.engine, Place(leased.KIND, leased.name_sent, self.arguments), LeaseWaiter(signal.set)

    def _result(self, engine: Engine, place: Place, waiter: LeaseWaiter, is_in_time: bool) -> bool:
        if not is_in_time:
            engine.leave_line(place, waiter)
            return False
        match waiter.answer:
            case Lease() as lease:
                self.leased.add(HeldLease(engine, lease))
                return True
            case Ended() as ended:
                raise end_of_session(ended)
            case Refused(outcome, text):
                raise refusal(outcome, text)
            case None:
                raise AssertionError("a waiter is woken with an answer")


def for_lease(leased: Leased, at_once: bool, arguments: tuple[Any, ...], timeout: Timeout) -> Waiting[bool]:
    """Acquire a lease, in turn or (`at_once`) if there is a free one."""
    if not at_once:
        return ForLease(leased, (True, *arguments), timeout)

    def finish(request: RequestId, is_acquired: bool) -> bool:
        if is_acquired:
            leased.add(request)
        return is_acquired

    return ForAnswer(leased, "acquire", (False, *arguments), finish)


def _caller() -> object:
    return trio.lowlevel.current_task() if trio.lowlevel.in_trio_run() else threading.get_ident()


def release(leased: Leased) -> Waiting[None]:
    """Let the next one have what this object acquired first, and still holds.

    It does not wait for the scheduler: for a moment other clients may still see it as held.

    Raises `RuntimeError` if it holds nothing.
    """
    if not leased.leases:
        raise RuntimeError(f"{leased!r} is not held by this object")
    leased.leases.popleft().end()
    return Done(None)
