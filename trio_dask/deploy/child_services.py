"""The programs of our child processes: scheduler and worker. Each reports what its parent has to know.

They import what they need when they run: a scheduler must never load what unpickles, and every import delays the start.
"""

from __future__ import annotations

from functools import partial

from trio_dask.deploy.child_program import child_program
from trio_dask.deploy.program_runner import Stopper, spare_garbage_collection
from trio_dask.processes.child_context import ChildContext


@child_program
async def scheduler(child: ChildContext, stopper: Stopper) -> None:
    """A scheduler with these `SchedulerSettings`. It reports its address."""
    import trio

    from trio_dask.config import SchedulerSettings
    from trio_dask.scheduler.service import run_scheduler
    from trio_dask.settings_json import from_json

    spare_garbage_collection()
    async with trio.open_nursery() as nursery:
        address = await nursery.start(run_scheduler, from_json(SchedulerSettings, child.settings))
        child.report({"address": str(address)})


@child_program
async def worker(child: ChildContext, stopper: Stopper) -> None:
    """A worker under a nanny, with these `NannySettings`.

    It reports that it runs, its address once it is registered, why it leaves before it does, and that its slots are
    free for good.
    """
    import trio

    from trio_dask.config import NannySettings
    from trio_dask.deploy.preload import PreloadError, preload
    from trio_dask.deploy.worker_program import work
    from trio_dask.settings_json import from_json

    nanny = from_json(NannySettings, child.settings)
    argv = nanny.preload_argv
    try:
        preloaded = preload(nanny.preload, argv)
    except PreloadError:
        child.report({"hopeless": True})
        raise

    def leaving(reason: str) -> None:
        child.report({"leaving": reason})

    def at_rest() -> None:
        child.report({"at_rest": True})

    child.report({"running": True})
    serve = partial(work, nanny.worker, stopper, leaving=leaving, at_rest=at_rest, preloaded=preloaded, argv=argv)
    try:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve)
            child.report({"address": str(address)})
    except* PreloadError:
        child.report({"hopeless": True})
        raise


def load_worker() -> None:
    """Import what a worker and its guard need, and nothing that starts a thread: for a fork server."""
    import ctypes

    from trio_dask.deploy import worker_program
    from trio_dask.processes import subreaper
    from trio_dask.worker import drain_request, service

    _ = ctypes, worker_program, subreaper, drain_request, service
