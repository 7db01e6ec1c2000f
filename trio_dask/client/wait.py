"""`wait` for some or all of many futures."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, overload

import trio

from trio_dask.client.call_forms import Done, ForKeys, Timeout, Waiting, awaitable, blocking
from trio_dask.client.core.key_state import TERMINAL
from trio_dask.client.futures import AsyncFuture, states_of
from trio_dask.client.nested_futures import futures_given
from trio_dask.client.task_errors import no_value
from trio_dask.client.wait_signals import SettleWaiter, within
from trio_dask.parsing import counted

ALL_COMPLETED: Final = "ALL_COMPLETED"
FIRST_COMPLETED: Final = "FIRST_COMPLETED"
ReturnWhen: TypeAlias = Literal["ALL_COMPLETED", "FIRST_COMPLETED"]


class DoneAndNotDone(NamedTuple):
    """The two sets that `wait` returns."""

    done: set[Any]
    not_done: set[Any]


def _wait(fs: Any, timeout: Timeout = None, return_when: ReturnWhen = "ALL_COMPLETED") -> Waiting[DoneAndNotDone]:
    """Wait until all of these futures are done, or the first is. An error counts as done and is not raised.

    Those of an `AsyncClient` are awaited, under Trio.

    Raises:
      TimeoutError: the time was up before.
      FutureCancelledError: one of them was cancelled.
      SchedulerLost: the scheduler is gone.
      RuntimeError: a blocking call in a thread that runs Trio or asyncio.
    """
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise ValueError(f"return_when must be {ALL_COMPLETED!r} or {FIRST_COMPLETED!r}, not {return_when!r}")
    futures = futures_given(fs, "wait()")
    if not futures:
        return Done(DoneAndNotDone(set(), set()))
    engine = futures[0].engine
    states = list(dict.fromkeys(states_of(futures)))
    enough = len(states) if return_when == ALL_COMPLETED else 1
    is_async = any(isinstance(future, AsyncFuture) for future in futures)

    def finish(in_time: bool) -> DoneAndNotDone:
        if not in_time:
            left = [future.state for future in futures if not future.done()]
            raise engine.too_late(f"{were_not_done(len(left))} {within(timeout)}", left)
        for state in states:
            if state.status in TERMINAL:
                raise no_value(state, "")
        done = {future for future in futures if future.done()}
        return DoneAndNotDone(done, {future for future in futures if future not in done})

    refusal = "these are futures of an AsyncClient; use `await client.wait(...)`" if is_async else ""
    return ForKeys(engine, states, SettleWaiter(len(states), enough), finish, futures, timeout, refusal)


_wait_blocking = blocking(_wait)
wait_async = awaitable(_wait)


@overload
def wait(  # pyright: ignore[reportOverlappingOverload] # the second one is for collections, which have no type
    fs: AsyncFuture | Iterable[AsyncFuture], timeout: Timeout = None, return_when: ReturnWhen = "ALL_COMPLETED"
) -> Coroutine[Any, Any, DoneAndNotDone]: ...


@overload
def wait(fs: Any, timeout: Timeout = None, return_when: ReturnWhen = "ALL_COMPLETED") -> DoneAndNotDone: ...


def wait(fs: Any, timeout: Timeout = None, return_when: ReturnWhen = "ALL_COMPLETED") -> Any:
    if trio.lowlevel.in_trio_run():
        futures = futures_given(fs, "wait()")
        if all(isinstance(future, AsyncFuture) for future in futures):
            return wait_async(futures, timeout, return_when)
    try:
        return _wait_blocking(fs, timeout, return_when)
    except BaseException:  # as in `blocking`
        del fs
        raise


wait.__doc__ = _wait.__doc__


def were_not_done(number: int) -> str:
    """How to say that this many futures were not done."""
    return f"{counted(number, 'future')} {'was' if number == 1 else 'were'} not done"
