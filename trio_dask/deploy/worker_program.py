"""A worker as a program: what signals mean to it, that it ends in time, and what it leaves behind if it is killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from trio_dask.config import NO_ARGV, Argv, WorkerSettings
from trio_dask.deploy.preload import Preloaded, set_up
from trio_dask.deploy.program_runner import Stopper
from trio_dask.exit_status import ExitStatus
from trio_dask.processes.exit_watchdog import ExitWatchdog

if TYPE_CHECKING:
    import trio

    from trio_dask.comm import Address
    from trio_dask.security.credentials import Credentials


LATE_S = 1.0
REMOVAL_S = 1.0


async def work(
    settings: WorkerSettings,
    stopper: Stopper,
    *,
    credentials: Credentials | None = None,
    leaving: Callable[[str], None] | None = None,
    at_rest: Callable[[], None] | None = None,
    preloaded: Sequence[Preloaded] = (),
    argv: Argv = NO_ARGV,
    task_status: trio.TaskStatus[Address] | None = None,
) -> None:
    """Run a worker in this process, which does nothing else. A signal makes it drain.

    `preloaded` modules are set up before it with `argv`, and torn down after it; see `preload`.
    See `run_worker` for `credentials`, `leaving`, `at_rest`, `task_status` and what is raised.
    """
    import trio  # the program's start must not wait for what options alone do not need

    from trio_dask.worker.drain_request import DrainRequest
    from trio_dask.worker.interpreter_settings import tuned_interpreter
    from trio_dask.worker.service import run_worker

    drain = DrainRequest()

    def on_signal(number: int) -> bool:
        drains = drain.on_signal(number)
        if not drains and leaving is not None:
            leaving("signal")  # else the worker would count as ended by its task
        return drains

    with tuned_interpreter(), ExitWatchdog() as watchdog, stopper.stopping_by(on_signal):

        def ends_in(seconds: float, failure: str) -> None:
            status = ExitStatus.NO_SCHEDULER if failure else ExitStatus.STOPPED
            text = f"{failure or 'leaving'}: took too long, ending the process"
            watchdog.expect_end(seconds + LATE_S, status, text)

        await run_worker(
            settings,
            credentials=credentials,
            drain=drain,
            leaving=leaving,
            at_rest=at_rest,
            ends_in=ends_in,
            around=partial(set_up, preloaded, argv),
            owns_process=True,
            task_status=task_status or trio.TASK_STATUS_IGNORED,
        )


async def remove_scratch(local_directory: str | None) -> None:
    """Remove what killed workers have spilled there, for a second at most: perhaps no later worker does.

    Cancellation does not interrupt it, because it is part of a cleanup.
    """
    import trio

    from trio_dask.worker.spill_directory import SpillDirectory, remove_leftovers

    with trio.move_on_after(REMOVAL_S, shield=True):
        base = SpillDirectory(local_directory).base
        await trio.to_thread.run_sync(remove_leftovers, base, abandon_on_cancel=True)
