"""Complaints about peers in few lines, however many peers there are, and none swallowed.

The first complaint is logged at once. Others like it, about the same host and in the same words, are held, and become
one line with their number when `EVERY_S` is over, or at the end. When many different complaints come together, all but
the first `MOST` are held under one number.
"""

from __future__ import annotations

import logging
import math
from typing import Final, NamedTuple

import trio

EVERY_S: Final = 10.0

MOST: Final = 8
"""So many different complaints are told apart at a time."""


class _Alike(NamedTuple):
    """What complaints have in common that are counted together."""

    level: int
    host: str
    what: str


class _Fold:
    """A complaint that was logged at `since`, and those like it that are held."""

    __slots__ = ("count", "last", "level", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.level = logging.NOTSET
        self.last = ""


class FoldedLog:
    """Complaints for one logger. Somebody must `run` it, and `end` it."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._folds: dict[_Alike | None, _Fold] = {}  # None: all that are not told apart
        self._has_ended = False
        self._has_held = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Flush in time, until cancelled."""
        while True:
            with trio.move_on_at(self.next_deadline()):
                await self._has_held.park()
            self.flush(trio.current_time())

    def complain(self, level: int, host: str, who: str, what: str, now: float) -> None:
        """Log `what` became of whom, which is at `host`; only `who` may tell one complaint from others like it."""
        if not self._logger.isEnabledFor(level):
            return
        self.flush(now)
        line = f"{who} {what}"
        alike: _Alike | None = _Alike(level, host, what)
        is_new = alike not in self._folds
        if is_new and len(self._folds) >= MOST:
            alike, is_new = None, False
        if is_new or self._has_ended:
            self._logger.log(level, "%s", line)
        if self._has_ended:
            return
        fold = self._folds.setdefault(alike, _Fold(now))
        if not is_new:
            fold.count, fold.level, fold.last = fold.count + 1, level, line
            if fold.count == 1:
                self._has_held.unpark()

    def next_deadline(self) -> float:
        """When to `flush`, unless something happens before."""
        return min((fold.since for fold in self._folds.values() if fold.count), default=math.inf) + EVERY_S

    def flush(self, now: float) -> None:
        """Log what was held for long enough."""
        for alike, fold in [*self._folds.items()]:
            if now >= fold.since + EVERY_S:
                del self._folds[alike]
                if fold.count:  # more may come
                    self._log(alike, fold, now)
                    self._folds[alike] = _Fold(now)

    def end(self, now: float) -> None:
        """Log all that is held; from now on nothing is held any more."""
        self._has_ended = True
        for alike, fold in self._folds.items():
            if fold.count:
                self._log(alike, fold, now)
        self._folds.clear()

    def _log(self, alike: _Alike | None, fold: _Fold, now: float) -> None:
        text = fold.last
        if fold.count > 1:
            others = "from there" if alike else "connections closed or refused"
            text += f" (and {fold.count - 1} more {others} in the last {max(1.0, now - fold.since):.0f} s)"
        self._logger.log(fold.level, "%s", text)
