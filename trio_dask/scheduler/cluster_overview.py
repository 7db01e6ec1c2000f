"""A picture of the whole cluster, for people, made while the scheduler goes on with its work."""

from __future__ import annotations

from typing import Any

import trio

from trio_dask.scheduler.core import SchedulerCore


async def overview(core: SchedulerCore) -> dict[str, Any]:
    """Its workers, how many tasks are in each state, and which task has been running for longest."""
    steps = core.overview(trio.current_time)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            picture: dict[str, Any] = end.value
            return picture
        await trio.lowlevel.checkpoint()
