"""Runs that nothing stands in the way of, best first; slots take from here."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from trio_dask.identity import RunId
from trio_dask.protocol.messages import Run

__all__ = ["ReadyQueue"]


class ReadyQueue:
    """Ready runs by (priority, arrival).

    Slots are threads and take runs back to back, without asking the thread of the core. That is safe because each step
    here is one operation that the interpreter does not divide (`heappush`, `heappop` on integers, `dict.pop`), and
    because a run belongs to whoever pops it from `_open`: to a slot, or to the core that withdraws it.
    """

    __slots__ = ("_arrival", "_heap", "_open", "offered")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Run]] = []
        self._open: dict[RunId, Run] = {}
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
        heappush(self._heap, (run.priority, self._arrival, run))
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

    def withdraw(self, number: RunId) -> bool:
        """Take a run back; False means that a slot was faster."""
        return self._open.pop(number, None) is not None

    def runs(self) -> Iterable[Run]:
        """The runs that no slot has taken, in order of arrival."""
        return list(self._open.values())
