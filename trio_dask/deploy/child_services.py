"""The programs of our child processes, scheduler and worker, and the decorator that makes a service such a program.

They import what they need when they run: a scheduler must never load what unpickles, and every import delays the start.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from functools import partial, wraps

from trio_dask.deploy.program_runner import Stopper, run_program, spare_garbage_collection
from trio_dask.processes.child_context import ChildContext, Entry
from trio_dask.processes.environment import raise_file_limit


def child_program(service: Callable[[ChildContext, Stopper], Awaitable[None]]) -> Entry:
    """Make a service a program for `ChildSpec.program`, which reports its failure to the parent."""

    @wraps(service)
    def run(child: ChildContext) -> int:
        stopper = Stopper(patient=True)
        stopper.install()
        child.watch_stdin(stopper.ask)

        async def begin() -> None:
            gc.freeze()  # else the first collection would look at everything that was imported
            gc.enable()
            await service(child, stopper)

        raise_file_limit()
        return run_program(
            child.name,
            begin,
            stopper,
            debug=child.log.debug,
            level=child.log.level,
            log_format="records" if child.log.records else "text",
            origin=child.log.origin,
            on_failure=lambda status, text: child.report({"failure": text}),
        )

    return run


@child_program
async def scheduler(child: ChildContext, stopper: Stopper) -> None:
    """A scheduler with these `SchedulerSettings`. It reports its address."""
    import trio

    from trio_dask.config import SchedulerSettings
    from trio_dask.scheduler.service import run_scheduler
    from trio_dask.settings_json import from_json

    spare_garbage_collection()
    running = partial(run_scheduler, credentials=child.credentials)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(running, from_json(SchedulerSettings, child.settings))
        child.report({"address": str(address)})


@child_program
async def worker(child: ChildContext, stopper: Stopper) -> None:
    """A worker under a nanny, with these `NannySettings`.

    It reports that it runs, its address once it is registered, why it is about to leave, and that its slots are free
    for good.
    """
    import trio

    from trio_dask.config import NannySettings
    from trio_dask.deploy.preload import PreloadError, preload
    from trio_dask.deploy.worker_program import work
    from trio_dask.settings_json import from_json

    nanny = from_json(NannySettings, child.settings)
    argv = nanny.preload_argv
    try:
        preloaded = preload(nanny.preload, argv, sources=nanny.preload_sources)
    except PreloadError:
        child.report({"hopeless": True})
        raise

    def leaving(reason: str) -> None:
        child.report({"leaving": reason})

    def at_rest() -> None:
        child.report({"at_rest": True})

    child.report({"running": True})
    serve = partial(
        work,
        nanny.worker,
        stopper,
        credentials=child.credentials,
        leaving=leaving,
        at_rest=at_rest,
        preloaded=preloaded,
        argv=argv,
    )
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
