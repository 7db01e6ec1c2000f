"""`as_completed`: wait for many futures, and take one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakMethod

import trio

from trio_dask.client.call_forms import Timeout
from trio_dask.client.core.key_state import TERMINAL, Frames, KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import BaseFuture
from trio_dask.client.nested_futures import futures_given, is_series, materialize
from trio_dask.client.task_errors import no_value
from trio_dask.client.wait import were_not_done
from trio_dask.client.wait_signals import Signal, ThreadSignal, TrioSignal, as_seconds, limit, refuse_in_event_loop


class _Completed(NamedTuple):
    future: BaseFuture
    frames: Frames | None
    reason: str


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """The method, without keeping its object alive: the program may have dropped the futures it waits for."""
    reference = WeakMethod(method)

    def call(*arguments: Any) -> None:
        found = reference()
        if found is not None:
            found(*arguments)

    return call


def _each_future(given: Any) -> Iterator[BaseFuture]:
    """All futures in this. Raises `TypeError` for an item without one, which would never be yielded."""
    given = materialize(given)
    for item in given if is_series(given) else (given,):
        if isinstance(item, BaseFuture):
            yield item
        else:
            yield from futures_given(item, "as_completed()")


class as_completed:
    """Futures in the order in which they are done, for `for` and for `async for`; more can be added on the way.

    With `with_results` the items are pairs of a future and its result. It then raises the error of a failed task or,
    without `raise_errors`, gives `(type, exception, traceback)` in place of the result; for a cancelled task it gives
    the `FutureCancelledError`. `timeout` counts from now on.

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
        # Guards the three below. The engine calls us under its own lock, so we call nothing of it under this one.
        # Reentrant: the garbage collector may run anybody's finalizer in the middle of our own code.
        self._lock = threading.RLock()
        self._waiting: dict[KeyState, list[BaseFuture]] = {}
        self.queue: SimpleQueue[_Completed] = SimpleQueue()
        """What is done and not yielded yet."""
        self._signals: list[Signal] = []
        self._watcher = _weakly(self._on_done)
        if futures is not None:
            self.update(futures)

    def add(self, future: BaseFuture) -> None:
        """Yield this future too, once it is done."""
        self.update((future,))

    def update(self, futures: Iterable[Any]) -> None:
        """Yield these futures too, each once it is done."""
        added = list(_each_future(futures))
        if not added:
            return
        engine = self._engine = self._engine or added[0].engine
        new: list[KeyState] = []
        with self._lock:
            for future in added:
                waiting = self._waiting.setdefault(future.state, [])
                if not waiting:
                    new.append(future.state)
                waiting.append(future)
        engine.watch(new, self._watcher, values=self._with_results)

    def count(self) -> int:
        """How many futures are still to be yielded."""
        return self.queue.qsize() + self._waiting_count()

    def is_empty(self) -> bool:
        """Whether no future is left to be yielded."""
        return self.queue.empty() and not self._waiting

    def has_ready(self) -> bool:
        """Whether a future is done, so that the next step does not wait."""
        return not self.queue.empty()

    def clear(self) -> None:
        """Forget all futures that were not yielded yet."""
        with self._lock:
            states = list(self._waiting)
            self._waiting.clear()
            while not self.queue.empty():
                self.queue.get_nowait()
            self._notify()
        if self._engine is not None:
            self._engine.unwatch(states, self._watcher)

    def next_batch(self, block: bool = True) -> list[Any]:
        """All futures that are done by now; with `block` at least one, unless none is left."""
        if block and self.queue.empty():
            try:
                first = [next(self)]
            except StopIteration:
                return []
        else:
            first = []
        batch: list[Any] = first
        while not self.queue.empty():
            batch.append(self._item(self.queue.get_nowait()))
        return batch

    def batches(self) -> _Batches:
        """Iterate, with `for` or `async for`, over lists: each time all that are done."""
        return _Batches(self)

    def __repr__(self) -> str:
        return f"<as_completed: waiting={self._waiting_count()} done={self.queue.qsize()}>"

    def __iter__(self) -> as_completed:
        return self

    def __aiter__(self) -> as_completed:
        return self

    def __next__(self) -> Any:
        refuse_in_event_loop("iterating over as_completed()", "`async for`")
        while self.queue.empty():
            signal = ThreadSignal()
            engine = self._listen(signal)
            if engine is None:
                raise StopIteration
            try:
                in_time = engine.block(signal, self._left_s())
            except BaseException:  # a traceback of Ctrl-C may be kept for long, and would keep the futures
                del self
                raise
            if not in_time:
                raise self._too_late(engine)
        return self._item(self.queue.get_nowait())

    async def __anext__(self) -> Any:
        await trio.lowlevel.checkpoint()
        while self.queue.empty():
            signal = TrioSignal()
            engine = self._listen(signal)
            if engine is None:
                raise StopAsyncIteration
            with limit(self._left_s()) as scope:
                await engine.wait_async(signal)
            if scope.cancelled_caught:
                raise self._too_late(engine)
        return self._item(self.queue.get_nowait())

    def next(self) -> Any:
        """The next one that is done, as the builtin `next` gives it."""
        return self.__next__()

    def _waiting_count(self) -> int:
        return sum(len(futures) for futures in list(self._waiting.values()))

    def _left_s(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def _too_late(self, engine: Engine) -> TimeoutError:
        return engine.too_late(f"{were_not_done(self.count())} in time", list(self._waiting))

    def _listen(self, signal: Signal) -> Engine | None:
        """Have the signal set when something is ready; gives the engine to wait with, or None if nothing is left."""
        engine = self._engine
        if engine is None:
            return None
        if engine.status == "forked":
            engine.check_open()
        with self._lock:
            if not self.queue.empty():
                signal.set()
            elif not self._waiting:
                return None
            else:
                self._signals.append(signal)
        return engine

    def _on_done(self, state: KeyState, frames: Frames | None = None, reason: str = "") -> None:
        with self._lock:
            for future in self._waiting.pop(state, ()):
                self.queue.put(_Completed(future, frames, reason))
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
        if self._raise_errors and state.status not in TERMINAL:
            raise no_value(state, reason)
        error = no_value(state, reason)
        return future, error if state.status in TERMINAL else (type(error), error, error.__traceback__)


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
