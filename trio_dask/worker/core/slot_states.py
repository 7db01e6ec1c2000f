"""What the core knows of the slots: which runs have begun, until when they may run, and which slots do not return.

A slot whose run was stopped is *stopping*: it has some time to leave the run. After that it is *overdue*, and counts as
lost until its thread returns.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from trio_dask.ids import RunId
from trio_dask.protocol.messages import Run


class StoppedRun(NamedTuple):
    """A run that was stopped while a slot had it, and when the slot is due."""

    run: Run
    due: float


class SlotStates:
    """The slots that need attention. Runs that merely execute are not in here."""

    def __init__(self, slots: int, grace_s: float) -> None:
        self.slots = slots
        self._grace_s = grace_s
        self.announced: set[RunId] = set()
        self.deadlines: dict[RunId, float] = {}
        # By identity: runs are values, and equal ones of two sessions must not be mixed up.
        self.stopping: dict[int, StoppedRun] = {}
        self.overdue: dict[int, Run] = {}
        self.outside: dict[int, Run] = {}
        """Runs that have seceded and go on."""

    @property
    def capacity(self) -> int:
        """Slots that can be counted on."""
        # A slot may have left one stopped run, and be in the next one, before the outcome of the first is known.
        return max(0, self.slots - len(self.overdue))

    def next_deadline(self) -> float:
        """When a run is out of time, or a slot overdue."""
        if not (self.deadlines or self.stopping):
            return inf  # the usual case
        return min([*self.deadlines.values(), *(stopped.due for stopped in self.stopping.values())])

    def begin(self, run: Run, now: float) -> bool:
        """A slot has begun this run; False if that was known."""
        if run.run in self.announced:
            return False
        self.announced.add(run.run)
        limit = run.extra.get("time_limit") if run.extra else None
        if limit is not None:
            self.deadlines[run.run] = now + limit
        return True

    def end(self, number: RunId) -> None:
        """This run is not current any more."""
        if self.announced:
            self.announced.discard(number)
            self.deadlines.pop(number, None)

    def seceded(self, run: Run) -> None:
        """A run has seceded; its slot is free, so it cannot be overdue."""
        self.returned(run)
        self.outside[id(run)] = run

    def rejoined(self, run: Run) -> None:
        """A run has a slot again, or has ended."""
        self.outside.pop(id(run), None)

    def stop(self, run: Run, now: float) -> bool:
        """A slot is to leave this run; False if it has none."""
        if id(run) in self.outside:
            return False
        self.stopping[id(run)] = StoppedRun(run, now + self._grace_s)
        return True

    def returned(self, run: Run) -> bool:
        """A slot has left a run that was stopped; True if it had been overdue."""
        self.stopping.pop(id(run), None)
        return self.overdue.pop(id(run), None) is not None

    def expired(self, now: float) -> list[RunId]:
        """The runs that are out of time."""
        return [number for number, deadline in self.deadlines.items() if deadline <= now]

    def mark_overdue(self, now: float) -> bool:
        """Count late slots as overdue; True if there were any."""
        late = [identity for identity, stopped in self.stopping.items() if stopped.due <= now]
        for identity in late:
            self.overdue[identity] = self.stopping.pop(identity).run
        return bool(late)
