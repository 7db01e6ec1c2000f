"""The workers that can take work, and those that have too much: one index, so that its sets cannot disagree."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, KeysView
from typing import TYPE_CHECKING

from trio_dask.scheduler.core.worker_states import HERE

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import CoreSettings, Worker


class WorkerIndex:
    """Which workers are idle, have capacity, are overloaded, or have changed. Others read its sets, and never write."""

    def __init__(self, settings: CoreSettings) -> None:
        self._ahead_s = settings.ahead_s
        self._ahead_runs = settings.ahead_runs
        self._idle: OrderedDict[Worker, None] = OrderedDict()
        self._has_capacity: OrderedDict[Worker, None] = OrderedDict()
        self._overloaded: OrderedDict[Worker, None] = OrderedDict()
        self._dirty: dict[Worker, None] = {}
        self.idle: KeysView[Worker] = self._idle.keys()
        """Workers with a free slot."""
        self.has_capacity: KeysView[Worker] = self._has_capacity.keys()
        """Workers that can be given more runs."""
        self.overloaded: KeysView[Worker] = self._overloaded.keys()
        """Workers with more runs than slots: an idle worker can steal from these."""
        self.dirty: KeysView[Worker] = self._dirty.keys()
        """Workers with a change that may give them capacity."""
        # The bound method of the dict itself: this is called for each run that ends.
        self.mark_dirty: Callable[[Worker], object] = self._dirty.setdefault

    def has_room(self, worker: Worker) -> bool:
        """Whether a worker should be given more."""
        count = len(worker.processing)
        slots = worker.slots
        return count < 2 * slots or (count < self._ahead_runs and worker.occupancy_s < self._ahead_s * slots)

    def update(self, worker: Worker) -> None:
        """Bring the sets up to date for one worker."""
        if worker.phase is not HERE:
            return
        count = len(worker.processing)
        slots = worker.slots
        if count < slots:
            if worker not in self._idle:
                self._idle[worker] = None
        else:
            self._idle.pop(worker, None)
        if count > slots:
            self._overloaded[worker] = None
        else:
            self._overloaded.pop(worker, None)
        if count < 2 * slots or (count < self._ahead_runs and worker.occupancy_s < self._ahead_s * slots):
            if worker not in self._has_capacity:
                self._has_capacity[worker] = None
        else:
            self._has_capacity.pop(worker, None)

    def update_last(self, worker: Worker) -> None:
        """Bring the sets up to date for a worker that was just given work: others come before it next time."""
        self.update(worker)
        for group in (self._idle, self._has_capacity):
            if worker in group:
                group.move_to_end(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a worker that is given no more work."""
        for group in (self._idle, self._has_capacity, self._overloaded, self._dirty):
            group.pop(worker, None)

    def take_dirty(self) -> list[Worker]:
        """The workers that have changed since the last call."""
        taken = list(self._dirty)
        self._dirty.clear()
        return taken
