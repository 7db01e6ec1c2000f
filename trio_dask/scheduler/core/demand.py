"""How much work there is, and which workers are needed for it: for clusters that adapt their size to that.

It is counted when it is asked for, so it costs nothing per task; of long queues only the first tasks are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any, Final

from trio_dask.scheduler.core.estimates import UNKNOWN_S
from trio_dask.scheduler.core.retirement import WITHOUT_WORK, retire_by_itself
from trio_dask.scheduler.core.state import State, StoredBlob, Task, Worker
from trio_dask.scheduler.core.task_states import Processing

MOST_OF_QUEUE: Final = 2000
"""Tasks of one queue that are read; the others are taken to be like them."""

MOST_OF_WORKER: Final = 50
"""The same for the runs of one worker."""


def demand(state: State) -> dict[str, Any]:
    """The work that there is, by what it demands of workers, and what each worker does."""
    workers = list(state.workers.values())
    running = _longest_by_function(workers, state.now)
    queues = [state.queue.tasks, *(worker.backlog for worker in workers)]
    rows = [
        _row(running, [worker.processing.values() for worker in workers], MOST_OF_WORKER, {}, named=False),
        _row(running, queues, MOST_OF_QUEUE, {}, named=False),
    ]
    needed: dict[Worker, None] = {}
    for queue in state.queues.values():
        if queue.tasks.first() is not None:
            needed.update(queue.eligible)
            options = queue.options
            named = bool(options.workers)
            rows.append(_row(running, [queue.tasks], MOST_OF_QUEUE, dict(options.resources), named=named))
    return {"work": rows, "workers": [_worker_row(worker, is_needed=worker in needed) for worker in workers]}


def retire_idle(state: State, addresses: Collection[str]) -> bool:
    """Retire these workers, if none of them has anything to do: each leaves once others hold what it holds.

    Returns whether they leave.
    """
    workers = [worker for worker in state.workers.values() if worker.info.address in addresses]
    if any(worker.processing or worker.backlog for worker in workers):
        return False
    for worker in workers:
        if worker.phase.retirement is None:
            retire_by_itself(state, worker, WITHOUT_WORK)
    state.check_retirements_soon()
    return True


def _worker_row(worker: Worker, *, is_needed: bool) -> dict[str, Any]:
    info = worker.info
    return {
        "address": info.address,
        "threads": info.nthreads,
        "memory_limit": info.memory_limit,
        "resources": dict(info.resources),
        "held_bytes": worker.managed_bytes,
        "holds": bool(worker.holds),
        "is_idle": not worker.processing and not worker.backlog and not is_needed,
        "is_leaving": worker.phase.retirement is not None,
    }


def _longest_by_function(workers: Iterable[Worker], now: float) -> Mapping[StoredBlob, float]:
    """For how long a call of each function has been running already: it takes no less."""
    longest: dict[StoredBlob, float] = {}
    for worker in workers:
        for task in islice(worker.processing.values(), MOST_OF_WORKER):
            phase = task.phase
            if type(phase) is Processing and phase.started_at is not None and task.function is not None:
                longest[task.function] = max(now - phase.started_at, longest.get(task.function, 0.0))
    return longest


def _row(
    running: Mapping[StoredBlob, float],
    sources: Iterable[Collection[Task] | Any],
    most: int,
    resources: Mapping[str, float],
    *,
    named: bool,
) -> dict[str, Any]:
    """How many tasks these are, and how many seconds they take; `named` if they wait for certain workers."""
    tasks, seconds = 0, 0.0
    for source in sources:
        length = len(source)
        read, counted, counted_s = 0, 0, 0.0
        for task in islice(source, most):
            read += 1
            function = task.function
            phase = task.phase
            if function is not None and (phase.is_queued or type(phase) is Processing):
                known_s = UNKNOWN_S if function.expected_s is None else function.expected_s
                counted += 1
                counted_s += max(known_s, running.get(function, 0.0))
        if read:
            tasks += counted * length // read
            seconds += counted_s * length / read
    return {"tasks": tasks, "seconds": seconds, "resources": resources, "named": named}
