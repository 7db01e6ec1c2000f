"""A worker as a program: what its signals mean, and that it ends in time whatever its tasks do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from trio_dask.config import WorkerSettings
from trio_dask.deploy.preload import Preloaded, set_up
from trio_dask.deploy.process_tree import LastResort
from trio_dask.deploy.program_runner import ExitStatus, Stopper

if TYPE_CHECKING:
    import trio

    from trio_dask.comm import Address

__all__ = ["work"]


async def work(
    settings: WorkerSettings,
    stopper: Stopper,
    *,
    leaving: Callable[[str], None] | None = None,
    at_rest: Callable[[], None] | None = None,
    preloaded: Sequence[Preloaded] = (),
    argv: Sequence[str] = (),
    task_status: trio.TaskStatus[Address] | None = None,
) -> None:
    """Run a worker in this process, which is there for nothing else. A signal has it drain.

    `preloaded` modules are set up before, with `argv`, and torn down after it, see `preload`.
    See `run_worker` for `leaving`, `at_rest`, `task_status` and what is raised.
    """
    import trio  # the program's start must not wait for what options alone do not need

    from trio_dask.worker.drain_request import DrainRequest
    from trio_dask.worker.service import run_worker

    drain = DrainRequest()

    def heed(number: int) -> bool:
        heeded = drain.on_signal(number)
        if not heeded and leaving is not None:
            leaving("signal")  # a worker that ends without a word counts as ended by its task
        return heeded

    with LastResort() as resort, stopper.stopping_by(heed):

        def ends_in(seconds: float, failure: str) -> None:
            status = ExitStatus.NO_SCHEDULER if failure else ExitStatus.STOPPED
            resort.expect(seconds, status, f"{failure or 'leaving'}: took too long, ending the process")

        await run_worker(
            settings,
            drain=drain,
            leaving=leaving,
            at_rest=at_rest,
            ends_in=ends_in,
            around=partial(set_up, preloaded, argv),
            task_status=task_status or trio.TASK_STATUS_IGNORED,
        )
