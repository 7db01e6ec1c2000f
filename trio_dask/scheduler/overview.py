"""A picture of the whole cluster, for people.

Tasks are counted as they change, so a million of them cost nothing here. The runs of the workers are looked at, those
of a few workers at a time, and whatever else there is to do is done in between.
"""

from __future__ import annotations

from typing import Any

import trio

from trio_dask.scheduler.core import SchedulerCore
from trio_dask.scheduler.core.queries import count_states, describe_workers, oldest_run

__all__ = ["overview"]

WORKERS_AT_ONCE = 20


async def overview(core: SchedulerCore) -> dict[str, Any]:
    """Its workers, how many tasks are in each state, and which task has been running for longest."""
    state = core.state
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
        "tasks": count_states(state),
        "oldest": oldest,
    }
