"""What a cluster that adapts decides: how many units it needs, and which ones may go. Plain code without a clock.

A *unit* is what a cluster adds and removes: a worker, or all workers of one host.

It grows at once: to as many threads as compute all work within the target duration, but no more than there are tasks,
and to as much memory as the results need. It shrinks late: a unit goes when it was idle and superfluous several times
in a row. Units that run something stay, so no wrong guess of a duration takes a worker away from its tasks.

Work that no unit could do asks for none: tasks that require a resource which units lack, or a worker of a certain name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil, inf
from typing import Final, NamedTuple

from trio_dask.config import AdaptiveSettings

MEMORY_SHARE: Final = 0.6
"""The part of their memory that results may take; the rest is for running tasks."""

ROUNDING: Final = 1e-6
"""Sums of fractions of units may be wrong by this much."""


class Size(NamedTuple):
    """What one unit offers. Without a memory limit `memory_bytes` is 0."""

    threads: int
    memory_bytes: int
    resources: Mapping[str, float]


class Work(NamedTuple):
    """Tasks with the same demands, and how many seconds all of them take."""

    tasks: int
    seconds: float
    resources: Mapping[str, float]
    is_named: bool
    """They wait for certain workers, by name."""


class Unit(NamedTuple):
    """One unit whose workers are registered."""

    name: str
    is_idle: bool
    """It runs nothing, and no task waits for it in particular."""
    is_leaving: bool
    held_bytes: int
    holds: bool
    """It has results, though they may have no size."""


class Step(NamedTuple):
    """Add this many units, and let these go."""

    add: int
    release: tuple[str, ...]


NOTHING: Final = Step(0, ())


class AdaptivePolicy:
    """Decides at regular intervals. It remembers what it has seen of units, and for how long each was superfluous."""

    def __init__(self, settings: AdaptiveSettings, size: Size | None) -> None:
        self._settings = settings
        self._size = size
        """None until it is known."""
        self._superfluous: dict[str, int] = {}
        """For how many intervals each unit could have gone."""

    def decide(self, work: Sequence[Work], units: Collection[Unit], size: Size | None, expected: int) -> Step:
        """What to do now.

        `size` is that of the units that are there, if any are, and `expected` is how many units there will be: those
        that are starting are among them, those that are leaving are not.
        """
        self._size = size or self._size
        needed = self.needed(work, units)
        if needed > expected:
            self._superfluous.clear()
            return Step(needed - expected, ())
        surplus = expected - needed
        idle = [unit for unit in units if unit.is_idle and not unit.is_leaving] if surplus else []
        self._superfluous = {unit.name: self._superfluous.get(unit.name, 0) + 1 for unit in idle}
        ripe = [unit for unit in idle if self._superfluous[unit.name] >= self._settings.wait_count]
        ripe.reverse()  # the newest go first, where they hold the same
        ripe.sort(key=lambda unit: (unit.holds, unit.held_bytes))
        return Step(0, tuple(unit.name for unit in ripe[:surplus])) if ripe else NOTHING

    def needed(self, work: Sequence[Work], units: Collection[Unit]) -> int:
        """How many units it takes, within the limits."""
        settings = self._settings
        number = max(sum(self._units_for(row) for row in work), self._units_to_hold(units))
        return int(max(settings.minimum, min(ceil(number - ROUNDING), settings.maximum)))

    def _units_for(self, work: Work) -> float:
        if not work.tasks or work.is_named:
            return 0.0
        if self._size is None:
            return ROUNDING * 2  # a first unit tells what units are like
        at_once = float(self._size.threads)
        for name, amount in work.resources.items():
            offered = self._size.resources.get(name, 0.0)
            if offered < amount:
                return 0.0
            if amount:
                at_once = min(at_once, offered // amount)
        target_s = self._settings.target_duration_s
        threads = work.seconds / target_s if target_s else inf
        # A thread that has anything to do is needed whole.
        return max(1, min(work.tasks, ceil(threads) if threads < inf else work.tasks)) / at_once

    def _units_to_hold(self, units: Collection[Unit]) -> int:
        held_bytes = sum(unit.held_bytes for unit in units)
        least = int(any(unit.holds for unit in units))
        if self._size is None or not self._size.memory_bytes:
            return least
        return max(least, ceil(held_bytes / (MEMORY_SHARE * self._size.memory_bytes)))
