"""A picture of the whole cluster, for people.

It looks at every task and at every run of the workers, some of them at a time, and lets the scheduler do its other
work in between, so the parts of the picture may be some moments apart.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import trio

from trio_dask.scheduler.core import SchedulerCore
from trio_dask.scheduler.core.queries import STATES, count_states, describe_workers, oldest_run

__all__ = ["overview"]

WORKERS_AT_ONCE = 20
TASKS_AT_ONCE = 20_000
"""These take about 2 ms."""


async def overview(core: SchedulerCore) -> dict[str, Any]:
    """Its workers, how many tasks are in each state, and which task has been running for longest."""
    state = core.state
    tasks = list(state.tasks.values())
    counts: Counter[str] = Counter()
    for start in range(0, len(tasks), TASKS_AT_ONCE):
        counts += count_states(tasks[start : start + TASKS_AT_ONCE])
        await trio.lowlevel.checkpoint()
    workers = list(state.workers.values())
    oldest: dict[str, Any] | None = None
    for start in range(0, len(workers), WORKERS_AT_ONCE):
        run = oldest_run(workers[start : start + WORKERS_AT_ONCE], trio.current_time())
        if run is not None and (oldest is None or run["seconds"] > oldest["seconds"]):
            oldest = run
        await trio.lowlevel.checkpoint()
    return {
        "workers": describe_workers(state),
        "clients": [client.name for client in state.clients.values()],
        "tasks": {name: counts[name] for name in STATES},
        "oldest": oldest,
    }
