"""`progress`: show in a terminal how far a computation has come."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, TextIO

import trio

from trio_dask.client.call_forms import Done, ForCall, Waiting, awaitable, blocking
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import states_of
from trio_dask.client.nested_futures import futures_given
from trio_dask.client.wait_signals import SettleWaiter, as_seconds
from trio_dask.errors import UsageError

SHARE: Final = 20
"""The next question is asked after this many times as long as the last answer took: the scheduler has other work."""
MOST_LINES: Final = 20


class Bars:
    """How many tasks there are and how many are done, as text: one bar, or with `by_name` one for each function."""

    def __init__(self, width: int, *, by_name: bool) -> None:
        self._width = width
        self._by_name = by_name
        self._totals: dict[str, int] = {}
        self._left: Mapping[str, int] = {}
        self._started_at = time.monotonic()
        self._lines = 0

    def update(self, left: Mapping[str, int], done: int = 0) -> None:
        """Take how many tasks are left, by name, and how many were `done` before the first count."""
        if done:
            self._totals["done before"] = done
        self._left = left
        for name, number in left.items():
            self._totals[name] = max(self._totals.get(name, 0), number)

    def finish(self, number: int) -> None:
        """All is done: what was counted, or this many tasks if nothing was."""
        self._left = {}
        if not self._totals:
            self._totals["done"] = number

    def text(self) -> str:
        """What to write over what was written before."""
        total, left = sum(self._totals.values()), sum(self._left.values())
        elapsed_s = time.monotonic() - self._started_at
        all_in_one = f"{self._bar(total, left)} | {self._percent(total, left):3.0f}% Completed | {elapsed_s:6.1f} s"
        if not self._by_name:
            return f"\r{all_in_one}"
        names = sorted(self._totals, key=lambda name: -self._totals[name])[:MOST_LINES]
        longest = max(map(len, names), default=0)
        lines = [all_in_one]
        for name in names:
            number, rest = self._totals[name], self._left.get(name, 0)
            lines.append(f"{self._bar(number, rest)} | {name:{longest}} | {number - rest} / {number}")
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._lines = len(lines) - 1
        return f"\r{up}" + "\n".join(f"{line}\x1b[K" for line in lines)

    def _bar(self, total: int, left: int) -> str:
        full = int(self._width * self._percent(total, left) / 100)
        return f"[{'#' * full}{' ' * (self._width - full)}]"

    @staticmethod
    def _percent(total: int, left: int) -> float:
        return 100 * (total - left) / total if total else 0.0


def _progress(
    *futures: Any,
    notebook: bool | None = None,
    multi: bool = True,
    complete: bool = True,
    group_by: str = "prefix",
    interval: float | str | datetime.timedelta = "100ms",
    width: int = 40,
    file: TextIO | None = None,
) -> Waiting[None]:
    """Show how many of the tasks that these futures or collections need are done, until all of them are.

    It is text, also in a notebook; `notebook` means nothing. In a terminal there is a bar for all tasks, and with
    `multi` one for each function; elsewhere there is the first one only. Errors end it, and are not raised.

    Args:
      complete: count what was done before as well.
      interval: how often it is drawn at most, in seconds or as a text.
      width: of a bar, in characters.
      file: where to write it; standard output by default.

    Raises:
      RuntimeError: a blocking call in a thread that runs Trio or asyncio.
    """
    if group_by != "prefix":
        raise UsageError(
            f"progress() groups tasks by the names of their functions, group_by='prefix', not {group_by!r}"
        )
    found = futures_given(futures, "progress()")
    if not found:
        return Done(None)
    engine = found[0].engine
    states = list(dict.fromkeys(states_of(found)))
    stream = sys.stdout if file is None else file
    bars = Bars(width, by_name=multi and stream.isatty())
    return ForCall(engine, partial(_show, engine, states, bars, stream, as_seconds(interval) or 0.0, complete, found))


async def _show(
    engine: Engine,
    states: Sequence[KeyState],
    bars: Bars,
    stream: TextIO,
    interval_s: float,
    complete: bool,
    futures: object,
) -> None:
    """`futures` are kept alive meanwhile."""
    done = sum(state.status != "pending" for state in states) if complete else 0
    while pending := [state for state in states if state.status == "pending"]:
        asked_at = trio.current_time()
        left: Mapping[str, int] | None = await engine.ask("remaining", [state.key for state in pending])
        took_s = trio.current_time() - asked_at
        if left is not None:
            bars.update(left, done)
            done = 0
            await trio.to_thread.run_sync(_write, stream, bars.text())
        with trio.move_on_after(max(interval_s, SHARE * took_s)):
            await engine.wait_for_async(pending, SettleWaiter(len(pending), len(pending)))
    bars.finish(len(states))
    await trio.to_thread.run_sync(_write, stream, f"{bars.text()}\n")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


progress = blocking(_progress)
progress_async = awaitable(_progress)
