"""Runs that nothing stands in the way of, best first; slots take from here."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from trio_dask.ids import RunId
from trio_dask.protocol.messages import Run
from trio_dask.protocol.wire_constants import PRIORITY_BITS

__all__ = ["ReadyQueue"]


class ReadyQueue:
    """Ready runs by (rank, arrival).

    Slots are threads and take runs back to back, without asking the thread of the core. That is safe because each step
    here is one operation that the interpreter does not divide (`heappush`, `heappop` on integers, `dict.pop`), and
    because a run belongs to whoever pops it from `_open`: to a slot, or to the core that withdraws it.

    A run that misses nothing but the result of another run here can *follow* that one: the slot that has the result
    goes on with it at once, so that the links of a chain do not pass through the core between them. It belongs to
    whoever pops it from `_followers`.
    """

    __slots__ = ("_arrival", "_followers", "_heap", "_open", "offered")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Run]] = []
        self._open: dict[RunId, Run] = {}
        self._followers: dict[RunId, tuple[Run, Run]] = {}  # by the leader's number: leader, follower
        self._arrival = 0
        self.offered = 0

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, number: RunId) -> bool:
        return number in self._open

    def push(self, run: Run) -> None:
        """Offer a run to the slots."""
        self._arrival += 1
        self._open[run.run] = run
        heappush(self._heap, (_rank(run) if run.extra else run.priority, self._arrival, run))
        self.offered += 1

    def take(self) -> Run | None:
        """The best run, which belongs to the caller now, or None if there is none. Any thread may call this."""
        while True:
            try:
                run = heappop(self._heap)[2]
            except IndexError:
                return None
            # After a new session this may be a namesake of the run that was popped: it was offered too, so it will do.
            claimed = self._open.pop(run.run, None)
            if claimed is not None:
                return claimed

    def follow(self, leader: Run, run: Run) -> bool:
        """Let a run follow another, if none does yet."""
        pair = leader, run
        return self._followers.setdefault(leader.run, pair) is pair

    def unfollow(self, leader: RunId, number: RunId) -> bool:
        """Take a follower back; False means that a slot was faster."""
        pair = self._followers.get(leader)
        if pair is None or pair[1].run != number:  # taken, and perhaps another one follows by now
            return False
        return self._followers.pop(leader, None) is not None

    def take_follower(self, leader: Run) -> Run | None:
        """The run that follows this one, which has given its result. It belongs to the caller now.

        A follower lets a ready run of a higher class of priority pass. Any thread may call this.
        """
        pair = self._followers.get(leader.run)
        if pair is None or pair[0] is not leader:  # it follows a namesake, of a new session
            return None
        run = pair[1]
        rank = _rank(run) if run.extra else run.priority
        try:
            best = self._heap[0][0]
        except IndexError:
            best = rank
        if best >> PRIORITY_BITS < rank >> PRIORITY_BITS:
            return None
        claimed = self._followers.pop(leader.run, None)
        return None if claimed is None else claimed[1]

    def withdraw(self, number: RunId) -> bool:
        """Take a run back; False means that a slot was faster."""
        return self._open.pop(number, None) is not None

    def runs(self) -> Iterable[Run]:
        """The runs that no slot has taken, in order of arrival."""
        return list(self._open.values())


def _rank(run: Run) -> int:
    """The less, the sooner: the user's priority, then the order of submission.

    For runs that have extras. For the others it is `run.priority`, and the two callers spare themselves the call, which
    would make each `push` a tenth dearer.
    """
    given: int = run.extra.get("priority", 0)
    return (given << PRIORITY_BITS) + run.priority
