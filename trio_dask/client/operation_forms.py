"""What each client can ask of the cluster: the forms of `operations`."""

from __future__ import annotations

from trio_dask.client import operations
from trio_dask.client.call_forms import CallForms, awaitable, blocking


class BlockingOperations(CallForms):
    """The calls of `Client`."""

    has_what = blocking(operations.has_what)
    nbytes = blocking(operations.nbytes)
    nthreads = blocking(operations.nthreads)
    ncores = nthreads
    processing = blocking(operations.processing)
    restart = blocking(operations.restart)
    restart_workers = blocking(operations.restart_workers)
    retire_workers = blocking(operations.retire_workers)
    run = blocking(operations.run, waits_if="wait")
    run_on_scheduler = blocking(operations.run_on_scheduler)
    scheduler_info = blocking(operations.scheduler_info)
    story = blocking(operations.story)
    wait_for_workers = blocking(operations.wait_for_workers)
    who_has = blocking(operations.who_has)


class AsyncOperations(CallForms):
    """The calls of `AsyncClient`."""

    has_what = awaitable(operations.has_what)
    nbytes = awaitable(operations.nbytes)
    nthreads = awaitable(operations.nthreads)
    ncores = nthreads
    processing = awaitable(operations.processing)
    restart = awaitable(operations.restart)
    restart_workers = awaitable(operations.restart_workers)
    retire_workers = awaitable(operations.retire_workers)
    run = awaitable(operations.run)
    run_on_scheduler = awaitable(operations.run_on_scheduler)
    scheduler_info = awaitable(operations.scheduler_info)
    story = awaitable(operations.story)
    wait_for_workers = awaitable(operations.wait_for_workers)
    who_has = awaitable(operations.who_has)
