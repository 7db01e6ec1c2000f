"""A `concurrent.futures.Executor` whose calls run in the cluster, for code that knows nothing of this library."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast
from weakref import WeakSet

from trio_dask.client.call_forms import Timeout
from trio_dask.client.core.key_state import Frames, KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import Future
from trio_dask.client.option_conflicts import parameters_of
from trio_dask.client.task_errors import no_value
from trio_dask.client.task_options import Options, extra_from, whole_number
from trio_dask.client.wait_signals import SettleWaiter, as_seconds, refuse_in_event_loop, within
from trio_dask.errors import SchedulerLost

if TYPE_CHECKING:
    from trio_dask.client.client import Client

OPTIONS: Final = frozenset(("allow_other_workers", "priority", "pure", "resources", "retries", "time_limit", "workers"))


class ClientExecutor(concurrent.futures.Executor):
    """What `Client.get_executor` makes; its futures are those of `concurrent.futures`.

    A value comes to this process when its call has ended. A call can be cancelled while it runs, as with
    `Future.cancel` of the client.
    """

    def __init__(self, client: Client, **options: Any) -> None:
        if unknown := sorted(options.keys() - OPTIONS):
            raise TypeError(f"unsupported arguments to ClientExecutor: {unknown}")
        extra_from(cast("Options", {name: options[name] for name in options if name != "pure"}))
        self._client = client
        self._options = options
        self._lock = threading.Lock()
        """Held while a future is noted, so that `shutdown` misses none."""
        self._is_shut_down = False
        self._unfinished: set[_TaskFuture] = set()
        self._mapped: WeakSet[Future] = WeakSet()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an executor stays in its program; a task makes its own by get_client().get_executor()")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run `fn(*args, **kwargs)` in the cluster; returns at once.

        Options of `Client.submit` can be among `kwargs`, unless the function has a parameter of that name.

        Raises `RuntimeError` after `shutdown`, and what `Client.submit` raises.
        """
        meant = [name for name in kwargs if name in parameters_of(fn, len(args))] if kwargs else ()
        if meant:
            fn = partial(fn, **{name: kwargs.pop(name) for name in meant})
        self._check_open()
        future = _TaskFuture(self._client.submit(fn, *args, **{**self._options, **kwargs}))
        with self._lock:
            self._check_open()
            self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        future.follow()
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: Timeout = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """The results of `fn` on the elements of the iterables, in their order. The calls begin at once.

        `chunksize` calls make one task. When the iterator is dropped, calls that have not ended are cancelled.

        Raises `TimeoutError` from the iterator if a result is not there `timeout` after this call.
        """
        size = whole_number("chunksize", chunksize, 1, 2**31)
        seconds = as_seconds(timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        self._check_open()
        if size == 1:
            futures = self._client.map(fn, *iterables, **self._options)
        else:
            calls = zip(*iterables, strict=False)
            chunks = iter(lambda: tuple(islice(calls, size)), ())
            futures = self._client.map(partial(_call_each, fn), chunks, **self._options)
        with self._lock:
            self._check_open()
            self._mapped.update(futures)
        return _results(futures, seconds, deadline, in_chunks=size > 1)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool | None = None) -> None:
        """Take no more calls; with `wait` return when all have ended.

        Calls that have not ended are cancelled if `cancel_futures` says so, or says nothing and there is no `wait`.
        """
        if wait:
            refuse_in_event_loop("shutdown()")
        with self._lock:
            self._is_shut_down = True
            unfinished, mapped = list(self._unfinished), list(self._mapped)
        if cancel_futures or (cancel_futures is None and not wait):
            for future in unfinished:
                future.cancel()
            self._client.cancel(mapped)
        if wait:
            states = list(dict.fromkeys(future.state for future in mapped))
            self._client.engine.wait_for(states, SettleWaiter(len(states), len(states)), None)
            concurrent.futures.wait(unfinished)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._client.name}{', shut down' * self._is_shut_down}>"

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("this executor was shut down, and takes no more calls")


class _TaskFuture(concurrent.futures.Future[Any]):
    """The future of one call. It holds the client's future, and with it the result in the cluster.

    It is never "running": whoever marks it so could not cancel it any more.
    """

    def __init__(self, task: Future) -> None:
        super().__init__()
        self._task = task
        self._cancelling = threading.Lock()
        """Held from the first successful `cancel` on."""

    def follow(self) -> None:
        """Have the outcome of the task become that of this future."""
        self._task.engine.watch([self._task.state], self._read, values=True)

    def cancel(self) -> bool:
        """Cancel the call, also while it runs. False if it has ended."""
        if not super().cancel():
            return False
        if self._cancelling.acquire(blocking=False):
            self.set_running_or_notify_cancel()  # else `wait` and `as_completed` would not hear of it
            self._task.cancel()
        return True

    def _read(self, state: KeyState, frames: Frames | None, reason: str) -> None:
        # The engine calls this under its lock. Unpickling runs the user's code.
        self._task.engine.run_callback(partial(self._settle, state, frames, reason))

    def _settle(self, state: KeyState, frames: Frames | None, reason: str) -> None:
        outcome = _outcome(self._task.engine, state, frames, reason)
        is_lost = isinstance(outcome, SchedulerLost)
        if isinstance(outcome, concurrent.futures.CancelledError) and not is_lost and self.cancel():
            return  # cancelled by another future of the same task, or with the client
        with suppress(concurrent.futures.InvalidStateError):  # it was cancelled
            if isinstance(outcome, _Value):
                self.set_result(outcome.value)
            else:
                self.set_exception(outcome)


class _Value:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _outcome(engine: Engine, state: KeyState, frames: Frames | None, reason: str) -> _Value | BaseException:
    if frames is None:
        return no_value(state, reason)
    try:
        return _Value(engine.load(frames))
    except BaseException as error:  # unpickling runs the user's code, and not in the user's thread
        return error


def _call_each(fn: Callable[..., Any], chunk: Collection[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in chunk]


def _results(futures: list[Future], seconds: float | None, deadline: float | None, *, in_chunks: bool) -> Iterator[Any]:
    """The results in order. Each future is let go before its result is given."""
    futures.reverse()
    try:
        while futures:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                result = futures[-1].result(left_s)
            except TimeoutError:
                if futures[-1].done():  # the call itself has raised this
                    raise
                raise TimeoutError(f"{futures[-1].key!r} gave no result {within(seconds)} of map()") from None
            del futures[-1]
            if in_chunks:
                yield from result
            else:
                yield result
    finally:
        if futures:
            futures[0].client.cancel(futures)
