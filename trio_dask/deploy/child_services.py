"""The programs that a child process can be; each reports what its parent has to know.

Each imports what it needs itself: a scheduler must never load what unpickles, and every import delays the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_dask.deploy.program_runner import Stopper

__all__ = ["Report", "scheduler", "worker"]

Report = Callable[[Mapping[str, Any]], None]


async def scheduler(settings: Mapping[str, Any], report: Report, stopper: Stopper) -> None:
    """A scheduler with these `SchedulerSettings`. It reports its address."""
    import trio

    from trio_dask.config import SchedulerSettings
    from trio_dask.deploy.program_runner import spare_garbage_collection
    from trio_dask.scheduler.service import run_scheduler
    from trio_dask.settings_json import from_json

    spare_garbage_collection()
    async with trio.open_nursery() as nursery:
        address = await nursery.start(run_scheduler, from_json(SchedulerSettings, settings))
        report({"address": str(address)})


async def worker(settings: Mapping[str, Any], report: Report, stopper: Stopper) -> None:
    """A worker under a nanny, with these `NannySettings`.

    It reports that it runs, its address once it is registered, why it leaves before it does, and when it is at rest.
    """
    import trio

    from trio_dask.config import NannySettings
    from trio_dask.deploy.preload import PreloadError, preload
    from trio_dask.deploy.worker_program import work
    from trio_dask.settings_json import from_json

    nanny = from_json(NannySettings, settings)
    argv = nanny.preload_argv
    try:
        preloaded = preload(nanny.preload, argv)
    except PreloadError:
        report({"hopeless": True})
        raise

    def leaving(reason: str) -> None:
        report({"leaving": reason})

    def at_rest() -> None:
        report({"at_rest": True})

    report({"running": True})
    serve = partial(work, nanny.worker, stopper, leaving=leaving, at_rest=at_rest, preloaded=preloaded, argv=argv)
    try:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve)
            report({"address": str(address)})
    except* PreloadError:
        report({"hopeless": True})
        raise
