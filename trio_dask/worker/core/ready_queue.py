"""Runs that can start, best first; slots take from here."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from trio_dask.ids import RunId
from trio_dask.protocol.messages import Run
from trio_dask.protocol.wire_constants import PRIORITY_BITS


class ReadyQueue:
    """Ready runs by (rank, arrival).

    Slots are threads and take runs back to back, without asking the thread of the core. That is safe because each step
    here is one operation that the interpreter does not divide (`heappush`, `heappop` on integers, `dict.pop`), and
    because a run belongs to the thread that pops it from `_open`: to a slot, or to the core that withdraws it.

    A run that lacks only the result of another run here can be *chained* after it: the slot that has the result goes on
    with this run at once, without the core. It belongs to the thread that pops it from `_chained`.
    """

    __slots__ = ("_arrival", "_chained", "_heap", "_open", "offered")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Run]] = []
        self._open: dict[RunId, Run] = {}
        self._chained: dict[RunId, tuple[Run, Run]] = {}  # by the predecessor's number: predecessor and run
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
            # After a new session this may be another run of that number: it was offered too, so it will do.
            claimed = self._open.pop(run.run, None)
            if claimed is not None:
                return claimed

    def chain_after(self, predecessor: Run, run: Run) -> bool:
        """Chain a run after another, if none is yet."""
        pair = predecessor, run
        return self._chained.setdefault(predecessor.run, pair) is pair

    def unchain(self, predecessor: RunId, number: RunId) -> bool:
        """Take a chained run back; False if a slot was faster."""
        pair = self._chained.get(predecessor)
        if pair is None or pair[1].run != number:  # taken, and perhaps another one is chained by now
            return False
        return self._chained.pop(predecessor, None) is not None

    def take_chained(self, predecessor: Run) -> Run | None:
        """The run chained after this one, which has given its result. It belongs to the caller now.

        A ready run of a higher user priority goes first. Any thread may call this.
        """
        pair = self._chained.get(predecessor.run)
        if pair is None or pair[0] is not predecessor:  # chained after a run of that number in a new session
            return None
        run = pair[1]
        rank = _rank(run) if run.extra else run.priority
        try:
            best = self._heap[0][0]
        except IndexError:
            best = rank
        if best >> PRIORITY_BITS < rank >> PRIORITY_BITS:
            return None
        claimed = self._chained.pop(predecessor.run, None)
        return None if claimed is None else claimed[1]

    def withdraw(self, number: RunId) -> bool:
        """Take a run back; False if a slot was faster."""
        return self._open.pop(number, None) is not None

    def runs(self) -> Iterable[Run]:
        """The runs that no slot has taken, in order of arrival."""
        return list(self._open.values())


def _rank(run: Run) -> int:
    """The lower, the sooner: the user's priority, then the order of submission.

    For runs with extras. For others it is `run.priority`, and the two callers avoid this call, which would slow each
    `push` by a tenth.
    """
    given: int = run.extra.get("priority", 0)
    return (given << PRIORITY_BITS) + run.priority
