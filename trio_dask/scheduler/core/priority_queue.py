"""A queue of tasks, by priority.

Nearly all tasks come in the order of their priorities: these stand in a deque, and a heap beside it has the others.

A task that leaves the queue other than by `take` stays in it as a stale entry; a task that comes back is in it twice.
Both are harmless: an entry counts only while its task is queued. Stale entries are dropped at the head; behind a task
that is never taken, since no worker meets its demands, they would gather for ever, so a long queue drops all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import Task


DROP_STALE_FROM: Final = 10_000
"""A shorter queue keeps its stale entries."""

DROP_STALE_FACTOR: Final = 4
"""Stale entries are dropped once the queue has grown by this factor, so that an entry costs little."""


class TaskQueue:
    """Tasks, the least priority number first. Its length counts stale entries too."""

    __slots__ = ("_arrivals", "_drop_stale_at", "_heap", "_in_order")

    def __init__(self) -> None:
        self._in_order: deque[Task] = deque()
        self._heap: list[tuple[int, int, Task]] = []
        self._arrivals = 0
        self._drop_stale_at = DROP_STALE_FROM

    def __len__(self) -> int:
        return len(self._in_order) + len(self._heap)

    def __bool__(self) -> bool:
        return bool(self._in_order or self._heap)

    def __iter__(self) -> Iterator[Task]:
        yield from self._in_order
        for _, _, task in self._heap:
            yield task

    def put(self, task: Task) -> None:
        """Add a task."""
        row = self._in_order
        if len(row) + len(self._heap) >= self._drop_stale_at:
            self._drop_stale()
            row = self._in_order
        if not row or row[-1].priority <= task.priority:
            row.append(task)
        else:
            self._arrivals += 1
            heappush(self._heap, (task.priority, self._arrivals, task))

    def first(self) -> Task | None:
        """The task that `take` would give."""
        row, heap = self._in_order, self._heap
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
            if self._in_order and self._in_order[0] is task:
                self._in_order.popleft()
            else:
                heappop(self._heap)
        return task

    def _drop_stale(self) -> None:
        seen = {task: None for task in self._in_order if task.phase.is_queued}
        self._in_order = deque(seen)
        heap: list[tuple[int, int, Task]] = []
        for entry in sorted(self._heap):  # which is a heap too
            task = entry[2]
            if task.phase.is_queued and task not in seen:
                seen[task] = None
                heap.append(entry)
        self._heap = heap
        self._drop_stale_at = max(DROP_STALE_FROM, DROP_STALE_FACTOR * len(seen))

    def clear(self) -> None:
        """Drop every entry."""
        self._in_order.clear()
        self._heap.clear()
