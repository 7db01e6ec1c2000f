"""`progress`: show in a terminal or a notebook how far a computation has come."""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TextIO

import trio

from trio_dask.client.call_forms import Done, ForCall, Waiting, awaitable, blocking
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import states_of
from trio_dask.client.nested_futures import futures_given
from trio_dask.client.progress_views import Counts, NotebookBars, View, view_of
from trio_dask.client.wait_signals import SettleWaiter, as_seconds, in_notebook
from trio_dask.errors import UsageError
from trio_dask.ids import Key

SHARE: Final = 20
"""The next question is asked after this many times as long as the last answer took: the scheduler has other work."""
QUESTIONS: Final = {"prefix": "remaining", "spans": "remaining_spans"}
"""What the scheduler is asked, for each `group_by`."""
CLOSING_S: Final = 1.0
"""How long a terminal may take for the last words of a call that is cancelled."""


def _progress(
    *futures: Any,
    notebook: bool | None = None,
    multi: bool = True,
    complete: bool = True,
    group_by: str | Callable[[Key], object] = "prefix",
    interval: float | str | datetime.timedelta = "100ms",
    width: int = 40,
    file: TextIO | None = None,
    loop: object = None,
) -> Waiting[NotebookBars | None]:
    """Show how many of the tasks that these futures or collections need are done, until all of them are.

    On a terminal there is a bar for all tasks, and with `multi` one for each function; elsewhere a line every 30 s, and
    one at the end. Errors end it, are counted, and are not raised. In a notebook it returns at once, as the last value
    of a cell, bars that go on after the cell has ended.

    Args:
      notebook: whether it is in a notebook; by default it finds out.
      complete: count what was done before as well.
      group_by: "prefix" for the names of functions, "spans" for those of `span` blocks, or a function that gives the
        name of a bar for each key.
      interval: how often bars are drawn at most, in seconds or as a text.
      width: of a bar, in characters.
      file: where to write; by default standard error.
      loop: means nothing.

    Raises:
      UsageError: `group_by` is none of these.
      RuntimeError: a blocking call in a thread that runs Trio or asyncio.
    """
    if not callable(group_by) and group_by not in tuple(QUESTIONS):
        raise UsageError(
            f"progress() groups tasks by 'prefix', 'spans', or a function of their keys, not by {group_by!r:.60}"
        )
    found = futures_given(futures, "progress()")
    if not found:
        return Done(None)
    engine = found[0].engine
    states = list(dict.fromkeys(states_of(found)))
    count_left = _Grouped(engine, group_by) if callable(group_by) else partial(_ask, engine, QUESTIONS[group_by])
    follow = partial(_follow, engine, states, count_left, complete=complete, futures=found)
    pause_s = as_seconds(interval) or 0.0
    if in_notebook() if notebook is None else notebook:
        bars = NotebookBars(width, pause_s, by_name=multi)
        engine.start(partial(follow, bars))
        return Done(bars)
    return ForCall(engine, partial(follow, view_of(file or sys.stderr, width, pause_s, by_name=multi)))


async def _follow(
    engine: Engine,
    states: Sequence[KeyState],
    count_left: Callable[[list[Key]], Any],
    view: View,
    *,
    complete: bool,
    futures: object,
) -> None:
    """`futures` are kept alive meanwhile."""
    counts = Counts()
    began_at = trio.current_time()
    if not complete:
        states = [state for state in states if state.status == "pending"]
    done = sum(state.status != "pending" for state in states)
    view.open()
    try:
        while pending := [state for state in states if state.status == "pending"]:
            asked_at = trio.current_time()
            left: Mapping[str, int] | None = await count_left([state.key for state in pending])
            now = trio.current_time()
            if left is None:
                counts.miss(now - began_at)
            else:
                counts.update(left, now - began_at, done)
                done = 0
            await trio.to_thread.run_sync(view.show, counts)
            with trio.move_on_after(max(view.pause_s, SHARE * (now - asked_at))):
                await engine.wait_for_async(pending, SettleWaiter(len(pending), len(pending)))
        failed = sum(state.status != "finished" for state in states)
        counts.finish(len(states), failed, trio.current_time() - began_at)
        await trio.to_thread.run_sync(view.show, counts)
    finally:
        with trio.move_on_after(CLOSING_S, shield=True):
            await trio.to_thread.run_sync(view.close, abandon_on_cancel=True)


async def _ask(engine: Engine, question: str, keys: list[Key]) -> Mapping[str, int] | None:
    """How many tasks are left, by name; None if they are too many to count."""
    left: Mapping[str, int] | None = await engine.ask(question, keys)
    return left


class _Grouped:
    """The same by what a function of the user says of each key; it is asked once for each."""

    def __init__(self, engine: Engine, name_of: Callable[[Key], object]) -> None:
        self._engine = engine
        self._name_of = name_of
        self._names: dict[Key, str] = {}

    async def __call__(self, keys: list[Key]) -> Mapping[str, int] | None:
        left: Sequence[Key] | None = await self._engine.ask("remaining_keys", keys)
        if left is None:
            return None
        self._names.update((key, str(self._name_of(key))) for key in left if key not in self._names)
        return Counter(map(self._names.__getitem__, left))


progress = blocking(_progress, for_trio="`await client.progress(...)`")
progress_async = awaitable(_progress)
