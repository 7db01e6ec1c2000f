"""A line of queued tasks, by priority.

Nearly all tasks come in the order of their priorities, so the line is a plain row at whose end they are put, and beside
it a heap for those that come out of turn.

A task that leaves the queue otherwise than by being taken stays in line as a stale entry, and one that comes back is in
line twice. Both are harmless: an entry counts only while its task is queued. Stale entries go when they come to the
head; behind one that is never taken, since no worker meets its demands, they would gather for ever, so a line that has
grown long is swept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import Task

__all__ = ["Line"]

SWEEP_FROM: Final = 10_000
"""A line that is shorter is not swept."""

SWEEP_FACTOR: Final = 4
"""A line is swept when it is so many times as long as it was after the last time: that costs little per entry."""


class Line:
    """Tasks, the least priority number first. Its length counts stale entries too."""

    __slots__ = ("_arrivals", "_heap", "_row", "_sweep_at")

    def __init__(self) -> None:
        self._row: deque[Task] = deque()
        self._heap: list[tuple[int, int, Task]] = []
        self._arrivals = 0
        self._sweep_at = SWEEP_FROM

    def __len__(self) -> int:
        return len(self._row) + len(self._heap)

    def __bool__(self) -> bool:
        return bool(self._row or self._heap)

    def __iter__(self) -> Iterator[Task]:
        yield from self._row
        for _, _, task in self._heap:
            yield task

    def put(self, task: Task) -> None:
        """Add a task."""
        row = self._row
        if len(row) + len(self._heap) >= self._sweep_at:
            self._sweep()
            row = self._row
        if not row or row[-1].priority <= task.priority:
            row.append(task)
        else:
            self._arrivals += 1
            heappush(self._heap, (task.priority, self._arrivals, task))

    def first(self) -> Task | None:
        """The task that `take` would give."""
        row, heap = self._row, self._heap
        while row and not row[0].phase.is_queued:
            row.popleft()
        if not heap:
            return row[0] if row else None
        while heap and not heap[0][2].phase.is_queued:
            heappop(heap)
        if row and (not heap or row[0].priority <= heap[0][0]):
            return row[0]
        return heap[0][2] if heap else None

    def take(self) -> Task | None:
        """Take the best task, if there is one."""
        task = self.first()
        if task is not None:
            if self._row and self._row[0] is task:
                self._row.popleft()
            else:
                heappop(self._heap)
        return task

    def _sweep(self) -> None:
        seen = {task: None for task in self._row if task.phase.is_queued}
        self._row = deque(seen)
        heap: list[tuple[int, int, Task]] = []
        for entry in sorted(self._heap):  # which is a heap too
            task = entry[2]
            if task.phase.is_queued and task not in seen:
                seen[task] = None
                heap.append(entry)
        self._heap = heap
        self._sweep_at = max(SWEEP_FROM, SWEEP_FACTOR * len(seen))

    def clear(self) -> None:
        """Drop every entry."""
        self._row.clear()
        self._heap.clear()
