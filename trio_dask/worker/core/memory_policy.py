"""What a worker does when memory becomes scarce: decisions only, see `worker.memory_monitor`.

    more than `spill_managed` of the limit in values    spill the least recently used
    more than `spill_process` in the whole process      the same; then collect garbage and return free pages
    more than `pause_process` in the whole process      pause: hand back the tasks that have not started

Each can be off. Before any of this, the memory kept for coming values is given back, so that only used memory counts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

from trio_dask.config import WorkerSettings

BUSY_INTERVAL_S: Final = 0.1
FIRST_IDLE_INTERVAL_S: Final = 0.5
MAX_IDLE_INTERVAL_S: Final = 5.0
"""The interval doubles while the process is idle: waking up would be most of its work."""

MIN_PORTION_BYTES: Final = 4 * 2**20
MAX_PORTION_BYTES: Final = 64 * 2**20
PORTIONS: Final = 32
"""The memory limit is written to disk in this many portions; the figures are read again after each."""

PAUSE_PATIENCE_S: Final = 5.0
RETRY_S: Final = 1.0
"""The time from an attempt that made no room to the next attempt."""

COLLECT_INTERVAL_S: Final = 5.0
COLLECT_SHARE: Final = 0.02
"""The largest share of time that garbage collections of ours may take."""

COMPLAINT_INTERVAL_S: Final = 60.0
NEWS_INTERVAL_S: Final = 10.0

KEPT_BELOW: Final = 0.6
"""Above this share of the limit no memory is kept for coming values: a nanny counts it like used memory."""


class MemoryLimits(NamedTuple):
    """In bytes; a limit that is off is infinite. Work that starts above a high limit ends below its low one."""

    limit: int
    managed_high: float = inf
    managed_low: float = inf
    process_high: float = inf
    process_low: float = inf
    pause_above: float = inf
    pause_below: float = inf

    @classmethod
    def of(cls, settings: WorkerSettings) -> MemoryLimits | None:
        """None if there is nothing to watch."""
        limit = settings.memory_limit_bytes
        managed, process, pause = settings.spill_managed, settings.spill_process, settings.pause_process
        if limit is None or (managed is None and process is None and pause is None):
            return None

        def part(share: float | None, factor: float = 1.0) -> float:
            return inf if share is None else limit * share * factor

        return cls(
            limit,
            managed_high=part(managed),
            managed_low=part(managed, 0.95),
            process_high=part(process),
            process_low=part(process, 0.85),
            pause_above=part(pause),
            pause_below=part(pause, 0.94),
        )

    @property
    def ceiling(self) -> float:
        """How far values from outside may fill the process: above `process_high`, lest each wait for a spill."""
        if self.pause_above == inf:
            return self.process_high
        return min(self.pause_above, (self.process_high + self.pause_above) / 2)

    @property
    def scarce_above(self) -> float:
        """Above this the process keeps no unused memory. All other limits are higher."""
        return min(self.process_low, self.pause_below, self.limit * KEPT_BELOW)

    @property
    def squeeze_above(self) -> float:
        """Above this, memory that was freed has to return to the system."""
        return min(self.process_low, self.pause_below)

    @property
    def spills(self) -> bool:
        """Whether anything goes to disk."""
        return min(self.managed_high, self.process_high) < inf


class Figures(NamedTuple):
    """The state of a worker's memory at one moment, in bytes."""

    process: int
    """Of the whole process, with what it keeps for coming values."""
    kept: int = 0
    """Kept for coming values."""
    values: int = 0
    """Of all results, in memory or on disk."""
    spilled: int = 0
    """Of the results that are on disk alone."""
    spillable: int = 0
    """Of the results in memory that are worth a file."""
    wanted: int = 0
    """What the next thread or transfer waits for, with what was promised to others."""
    has_garbage: bool = False
    """Whether there are files of results that are not needed any more."""
    is_busy: bool = False
    """Whether tasks run, or values are on their way here."""
    waits_for_itself: bool = False
    """Whether a running task may be waiting for tasks that this worker would have to run."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Return the memory kept for coming values. The figures change, so this action always comes alone."""


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """Spill values of this size; where that does not help, and `may_collect`, collect garbage.

    With `also_used`, spill values in use if there are no others: their memory returns only when their users are done.
    """

    nbytes: int
    also_used: bool
    may_collect: bool


@dataclass(frozen=True, slots=True)
class RemoveFiles:
    """Remove the files of results that are not needed any more."""


@dataclass(frozen=True, slots=True)
class SetPaused:
    """Take no more tasks, or take tasks again. `is_news`: say so in the log."""

    paused: bool
    is_news: bool


Action = GiveBack | MakeRoom | RemoveFiles | SetPaused


class RoomMade(NamedTuple):
    """What came of `MakeRoom`: the bytes freed, the problem, if any, and the time that a collection of garbage took."""

    nbytes: int
    problem: str = ""
    collection_s: float | None = None


class Step(NamedTuple):
    """What to do now, and in how many seconds to read the figures again."""

    actions: tuple[Action, ...]
    next_s: float


class PauseRule:
    """Paused above `above_bytes`, open again below `below_bytes`; in between it stays as it was.

    A paused worker may be *stuck*: nothing runs, nothing can be spilled or released, and memory does not come down.
    Then either tasks that no other worker can run need this memory, or it has leaked, and waiting would not end. So
    after `patience_s` the worker accepts its present use as normal: it opens, and pauses again when it uses
    `step_bytes` more. Tasks that need little memory then get done, perhaps one by one; if they need much, the nanny
    ends the process at its own limit, and the tasks fail with that reason.
    """

    def __init__(self, above_bytes: float, below_bytes: float, *, step_bytes: float, patience_s: float) -> None:
        self.paused = False
        self._above = self._usual_above = above_bytes
        self._below = self._usual_below = below_bytes
        self._step = step_bytes
        self._patience_s = patience_s
        self._stuck_since = inf

    def judge(self, now: float, used_bytes: float, *, stuck: bool) -> bool:
        """Whether to be paused at this use of memory."""
        if used_bytes < self._usual_below:
            self._above, self._below = self._usual_above, self._usual_below
        if not self.paused:
            self.paused = used_bytes > self._above
            self._stuck_since = inf
        elif used_bytes < self._below:
            self.paused = False
        elif not stuck:
            self._stuck_since = inf
        else:
            self._stuck_since = min(self._stuck_since, now)
            if now >= self._stuck_since + self._patience_s:
                self.paused = False
                self._above, self._below = used_bytes + self._step, used_bytes
        return self.paused


class MemoryPolicy:
    """Decides for one worker. After `MakeRoom` or `RemoveFiles` no other work is asked for until it has ended."""

    def __init__(self, limits: MemoryLimits) -> None:
        self.limits = limits
        self._pause = PauseRule(
            limits.pause_above, limits.pause_below, step_bytes=0.05 * limits.limit, patience_s=PAUSE_PATIENCE_S
        )
        self._portion_bytes = min(max(limits.limit // PORTIONS, MIN_PORTION_BYTES), MAX_PORTION_BYTES)
        self.is_working = False
        """Whether work was asked for that has not ended."""
        self._is_making_room = False
        self._wanted = 0  # the largest request while room is being made
        self._is_exhausted = False  # the last attempt made no room at all
        self._retry_at = -inf
        self._retry_above = 0  # spillable bytes
        self._collect_from = -inf
        self._complain_from = -inf
        self._tell_from = -inf
        self._active_at = -inf
        self._process = 0

    @property
    def paused(self) -> bool:
        """Whether the worker takes no tasks."""
        return self._pause.paused

    def must_give_back(self, process: float, kept: int) -> bool:
        """Whether memory is too scarce to keep some of it. Without a state of its own: any thread may call this."""
        return bool(kept) and process > self.limits.scarce_above

    def is_helpless(self, now: float, spillable: int) -> bool:
        """Whether no room can be made: the last attempt has just failed, and no more can be spilled now than then."""
        return now < self._retry_at and spillable <= self._retry_above

    def step(self, now: float, figures: Figures) -> Step:
        """Decide what to do. When it has given memory back, call this again with new figures at once."""
        helpless = self.is_helpless(now, figures.spillable)
        if not helpless:
            self._wanted = max(self._wanted, figures.wanted)
        if self.must_give_back(figures.process + self._wanted, figures.kept):
            return Step((GiveBack(),), 0.0)
        actions = self._change(now, figures)
        excess = self._excess(figures)
        if not self.is_working:
            actions += self._work(now, figures, 0 if helpless else excess)
        if figures.is_busy or self.paused or figures.process > self._process + 0.01 * self.limits.limit:
            self._active_at, next_s = now, BUSY_INTERVAL_S
        else:
            next_s = max(FIRST_IDLE_INTERVAL_S, min(now - self._active_at, MAX_IDLE_INTERVAL_S))
        if helpless and excess > 0:
            next_s = min(next_s, self._retry_at - now)
        self._process = figures.process
        return Step(tuple(actions), next_s)

    def work_ended(self, now: float, made: RoomMade | None, spillable: int) -> str:
        """The work that `step` asked for is done; `made` says what came of `MakeRoom`. Gives a warning for the log."""
        self.is_working = False
        if made is None:
            return ""
        if made.collection_s is not None:
            self._collect_from = now + max(COLLECT_INTERVAL_S, made.collection_s / COLLECT_SHARE)
        self._is_exhausted = made.nbytes <= 0
        if self._is_exhausted:
            self._retry_at = now + RETRY_S
            self._retry_above = sys.maxsize if made.problem else spillable
        if not made.problem or now < self._complain_from:
            return ""
        self._complain_from = now + COMPLAINT_INTERVAL_S
        return made.problem

    def _change(self, now: float, figures: Figures) -> list[Action]:
        was_paused = self.paused
        is_at_rest = not figures.is_busy or figures.waits_for_itself
        paused = self._pause.judge(now, figures.process, stuck=is_at_rest and self._is_exhausted)
        if paused == was_paused:
            return []
        is_news = now >= self._tell_from
        if is_news:
            self._tell_from = now + NEWS_INTERVAL_S
        return [SetPaused(paused, is_news)]

    def _work(self, now: float, figures: Figures, excess: float) -> list[Action]:
        self._is_making_room = excess > 0
        self.is_working = self._is_making_room or figures.has_garbage
        if self._is_making_room:
            is_severe = (
                figures.values - figures.spilled > self.limits.managed_high or figures.process > self.limits.pause_above
            )
            nbytes = int(min(excess, self._portion_bytes))
            return [MakeRoom(nbytes, also_used=is_severe, may_collect=now >= self._collect_from)]
        self._wanted = 0
        return [RemoveFiles()] if figures.has_garbage else []

    def _excess(self, figures: Figures) -> float:
        """By how many bytes values or process exceed their limits: the low ones while room is being made."""
        limits, lower = self.limits, self._is_making_room
        managed = figures.values - figures.spilled
        process = figures.process + self._wanted
        return max(
            managed - limits.managed_low if managed > (limits.managed_low if lower else limits.managed_high) else 0,
            process - limits.process_low if process > (limits.process_low if lower else limits.process_high) else 0,
            process - limits.pause_above,
        )
