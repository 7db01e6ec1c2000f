"""Waiting for many futures: `wait` for some or all of them, `as_completed` for one after the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias
from weakref import WeakMethod

import trio

from trio_dask.client.core.key_state import OVER, Frames, KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import AsyncFuture, BaseFuture, Timeout, states_of
from trio_dask.client.nested_futures import futures_given
from trio_dask.client.task_errors import no_value
from trio_dask.client.wait_signals import Signal, ThreadSignal, TrioSignal, as_seconds, limit, refuse_in_event_loop
from trio_dask.parsing import counted

__all__ = ["ALL_COMPLETED", "FIRST_COMPLETED", "DoneAndNotDone", "ReturnWhen", "as_completed", "wait", "wait_async"]

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"
ReturnWhen: TypeAlias = Literal["ALL_COMPLETED", "FIRST_COMPLETED"]


class DoneAndNotDone(NamedTuple):
    """The two sets that `wait` returns."""

    done: set[Any]
    not_done: set[Any]


def wait(fs: Any, timeout: Timeout = None, return_when: ReturnWhen = "ALL_COMPLETED") -> DoneAndNotDone:
    """Block until all of these futures are done, or the first is. An error counts as done and is not raised.

    Raises:
      TimeoutError: the time was up before.
      FutureCancelledError: one of them was cancelled.
      SchedulerLost: the scheduler is gone.
      RuntimeError: this thread runs Trio or asyncio.
    """
    refuse_in_event_loop("wait()")
    futures = futures_given(fs, "wait()")
    if any(isinstance(future, AsyncFuture) for future in futures):
        raise TypeError("these are futures of an AsyncClient; use `await client.wait(...)`")
    states = list(dict.fromkeys(states_of(futures)))
    try:
        settled = not states or futures[0].engine.settle(states, _enough(states, return_when), as_seconds(timeout))
    except BaseException:
        del fs, futures  # a traceback of Ctrl-C may be kept for long, and would keep them, and so their tasks
        raise
    if not settled:
        raise _too_late(futures, timeout)
    return _sorted_out(futures)


async def wait_async(fs: Any, timeout: Timeout = None, return_when: ReturnWhen = "ALL_COMPLETED") -> DoneAndNotDone:
    """As `wait`, for Trio."""
    futures = futures_given(fs, "wait()")
    states = list(dict.fromkeys(states_of(futures)))
    if states:
        with limit(timeout) as scope:
            await futures[0].engine.settle_async(states, _enough(states, return_when))
        if scope.cancelled_caught:
            raise _too_late(futures, timeout)
    else:
        await trio.lowlevel.checkpoint()
    return _sorted_out(futures)


def _too_late(futures: list[BaseFuture], timeout: Timeout) -> TimeoutError:
    left = [future.state for future in futures if not future.done()]
    return futures[0].engine.too_late(f"{_were_not_done(len(left))} within {timeout} s", left)


def _were_not_done(number: int) -> str:
    return f"{counted(number, 'future')} {'was' if number == 1 else 'were'} not done"


def _enough(states: list[KeyState], return_when: str) -> int:
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise ValueError(f"return_when must be {ALL_COMPLETED!r} or {FIRST_COMPLETED!r}, not {return_when!r}")
    return len(states) if return_when == ALL_COMPLETED else 1


def _sorted_out(futures: list[BaseFuture]) -> DoneAndNotDone:
    for state in states_of(futures):
        if state.status in OVER:
            raise no_value(state, "")
    done = {future for future in futures if future.done()}
    return DoneAndNotDone(done, {future for future in futures if future not in done})


class _Completed(NamedTuple):
    future: BaseFuture
    frames: Frames | None
    reason: str


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """The method, without keeping its object: nobody may want the futures any more that it waits for."""
    reference = WeakMethod(method)

    def call(*arguments: Any) -> None:
        found = reference()
        if found is not None:
            found(*arguments)

    return call


class as_completed:
    """Futures in the order in which they are done, for `for` and for `async for`; more can be added on the way.

    With `with_results` the items are pairs of a future and its result. The error of a failed task is raised then, or,
    unless `raise_errors`, stands in the result's place as `(type, exception, traceback)`; for a cancelled task its
    `FutureCancelledError` does. `timeout` counts from here on.

    Iterating raises `TimeoutError` when the time is up; a blocking `for` raises `RuntimeError` in a thread that runs
    Trio or asyncio.
    """

    def __init__(
        self,
        futures: Iterable[Any] | None = None,
        loop: object = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: Timeout = None,
    ) -> None:
        seconds = as_seconds(timeout)
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._with_results = with_results
        self._raise_errors = raise_errors
        self._engine: Engine | None = None
        self._waiting: dict[KeyState, list[BaseFuture]] = {}
        self._ready: deque[_Completed] = deque()
        self._signals: list[Signal] = []
        self._weakly_arrived = _weakly(self._arrived)
        self._weakly_settled = _weakly(self._settled)
        if futures is not None:
            self.update(futures)

    def add(self, future: BaseFuture) -> None:
        """Have this future come out as well, once it is done."""
        self.update((future,))

    def update(self, futures: Iterable[Any]) -> None:
        """Have these futures come out as well, each once it is done."""
        added = futures_given(futures, "as_completed()")
        if not added:
            return
        engine = self._engine = self._engine or added[0].engine
        with engine.lock:
            for future in added:
                waiting = self._waiting.get(future.state)
                if waiting is not None:
                    waiting.append(future)
                    continue
                self._waiting[future.state] = [future]
                if self._with_results:
                    engine.core.read(future.state, self._weakly_arrived)
                else:
                    engine.core.wait(future.state, self._weakly_settled)
        engine.push()

    def count(self) -> int:
        """How many futures have not come out yet."""
        return len(self._ready) + sum(len(futures) for futures in list(self._waiting.values()))

    def is_empty(self) -> bool:
        """Whether none is left to come out."""
        return not self._ready and not self._waiting

    def has_ready(self) -> bool:
        """Whether one is done, so that the next step will not wait."""
        return bool(self._ready)

    def clear(self) -> None:
        """Forget all futures that have not come out yet."""
        if self._engine is not None:
            with self._engine.lock:
                for state in self._waiting:
                    self._engine.core.abandon(
                        state, self._weakly_arrived if self._with_results else self._weakly_settled
                    )
                self._waiting.clear()
                self._ready.clear()
                self._notify()

    def next_batch(self, block: bool = True) -> list[Any]:
        """All that are done by now; with `block` at least one, unless none is left."""
        if block and not self._ready:
            try:
                first = [next(self)]
            except StopIteration:
                return []
        else:
            first = []
        batch: list[Any] = first
        while self._ready:
            batch.append(self._item(self._ready.popleft()))
        return batch

    def batches(self) -> _Batches:
        """Iterate, with `for` or `async for`, over lists: each time all that are done."""
        return _Batches(self)

    def __iter__(self) -> as_completed:
        return self

    def __aiter__(self) -> as_completed:
        return self

    def __next__(self) -> Any:
        refuse_in_event_loop("iterating over as_completed()")
        while not self._ready:
            signal = ThreadSignal()
            if not self._listen(signal):
                raise StopIteration
            engine = self._engine
            assert engine is not None
            left_s = None if self._deadline is None else self._deadline - time.monotonic()
            try:
                in_time = engine.block(signal, left_s)
            except BaseException:
                del self  # as in `wait`
                raise
            if not in_time:
                raise engine.too_late(f"{_were_not_done(self.count())} in time", list(self._waiting))
        return self._item(self._ready.popleft())

    async def __anext__(self) -> Any:
        await trio.lowlevel.checkpoint()
        while not self._ready:
            signal = TrioSignal()
            if not self._listen(signal):
                raise StopAsyncIteration
            seconds = float("inf") if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
            assert self._engine is not None
            with trio.move_on_after(seconds) as scope:
                await self._engine.rest(signal)
            if scope.cancelled_caught:
                raise self._engine.too_late(f"{_were_not_done(self.count())} in time", list(self._waiting))
        return self._item(self._ready.popleft())

    def next(self) -> Any:
        """The next one that is done, as the builtin `next` gives it."""
        return self.__next__()

    def _listen(self, signal: Signal) -> bool:
        """Have the signal set when something is ready; False if there is nothing to wait for."""
        if self._engine is None:
            return False
        with self._engine.lock:
            if self._ready:
                signal.set()
            elif not self._waiting:
                return False
            else:
                self._signals.append(signal)
        return True

    def _settled(self, state: KeyState) -> None:
        self._ready += [_Completed(future, None, "") for future in self._waiting.pop(state, ())]
        self._notify()

    def _arrived(self, state: KeyState, frames: Frames | None, reason: str) -> None:
        self._ready += [_Completed(future, frames, reason) for future in self._waiting.pop(state, ())]
        self._notify()

    def _notify(self) -> None:
        signals, self._signals = self._signals, []
        for signal in signals:
            signal.set()

    def _item(self, completed: _Completed) -> Any:
        future, frames, reason = completed
        if not self._with_results:
            return future
        if frames is not None:
            return future, future.engine.load(frames)
        state = future.state
        if self._raise_errors and state.status not in OVER:
            raise no_value(state, reason)
        error = no_value(state, reason)
        return future, error if state.status in OVER else (type(error), error, error.__traceback__)


class _Batches:
    """The batches of an `as_completed`, for either kind of loop."""

    def __init__(self, source: as_completed) -> None:
        self._source = source

    def __iter__(self) -> Iterator[list[Any]]:
        while batch := self._source.next_batch():
            yield batch

    async def __aiter__(self) -> AsyncIterator[list[Any]]:
        async for first in self._source:
            yield [first, *self._source.next_batch(block=False)]
