"""The programs that a child process can be, each with the report that it gives once it is ready.

Each imports what it needs itself: a scheduler must never load what unpickles, and every import delays the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Report", "scheduler", "worker"]

Report = Callable[[Mapping[str, Any]], None]


async def scheduler(settings: Mapping[str, Any], report: Report) -> None:
    """A scheduler; `settings` are fields of `SchedulerSettings`. It reports its address."""
    import trio

    from trio_dask.config import SchedulerSettings
    from trio_dask.deploy.program import spare_garbage_collection
    from trio_dask.scheduler.service import run_scheduler

    spare_garbage_collection()
    async with trio.open_nursery() as nursery:
        address = await nursery.start(run_scheduler, SchedulerSettings(**settings))
        report({"address": str(address)})


async def worker(settings: Mapping[str, Any], report: Report) -> None:
    """A worker; `settings` are fields of `WorkerSettings`. It reports its address once it is registered."""
    import trio

    from trio_dask.config import WorkerSettings
    from trio_dask.worker.service import run_worker

    settings = {**settings, "port_range": tuple(settings["port_range"])}
    async with trio.open_nursery() as nursery:
        address = await nursery.start(run_worker, WorkerSettings(**settings))
        report({"address": str(address)})
