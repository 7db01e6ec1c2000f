"""`dask-worker`: a process that runs tasks for a scheduler."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import click

from trio_dask.cli.common import Checked, Program, common_options, file_option, run_command
from trio_dask.config import (
    WorkerSettings,
    parse_memory_limit,
    parse_name,
    parse_port_range,
    parse_resources,
    parse_threads,
    parse_timedelta,
)
from trio_dask.deploy.program import Stopper, raise_file_limit, run_program
from trio_dask.machine import cpu_count, memory_bytes

__all__ = ["main"]

SECTIONS = {
    "Which scheduler": ["scheduler_file", "death_timeout"],
    "What this worker offers": ["nthreads", "memory_limit", "resources", "name"],
    "Where it listens": ["host", "interface", "worker_port"],
    "How it runs": ["no_nanny", "pid_file"],
}


def _read_memory_limit(text: str) -> str:
    """Check the text early; its value depends on another option."""
    parse_memory_limit(text, machine_bytes=1)
    return text


@click.command(cls=Program, sections=SECTIONS)
@click.argument("scheduler", required=False)
@click.option("--scheduler-file", metavar="FILE", help="File in which the scheduler wrote its address; waited for.")
@click.option(
    "--death-timeout",
    type=Checked("TIME", parse_timedelta),
    help="Leave after this long without a scheduler, such as 60 or 5min. Default: never (0).",
)
@click.option("--nthreads", type=Checked("N", parse_threads), help="Tasks that run at once. Default: one per CPU.")
@click.option(
    "--memory-limit",
    type=Checked("SIZE", _read_memory_limit),
    default="auto",
    help="Such as 4GiB, 0.5 (of the machine), 0 (none). Default: this worker's share of the machine.",
)
@click.option(
    "--resources", type=Checked("PAIRS", parse_resources), help="What tasks can ask for, such as GPU=2,MEM=10e9."
)
@click.option("--name", type=Checked("NAME", parse_name), help="Default: the worker's address.")
@click.option("--host", default="", help="Name or address to listen on. Default: that of the way to the scheduler.")
@click.option("--interface", metavar="NAME", help="Network interface to listen on, such as eth0.")
@click.option(
    "--worker-port",
    type=Checked("PORT", parse_port_range),
    default=(0, 0),
    help="Port to listen on, or first:last to try in order. Default: any free port.",
)
@click.option("--no-nanny", is_flag=True, expose_value=False, help="No process that restarts it; as yet there is none.")
@file_option("--pid-file", help="Write the process id there.")
@common_options
@click.pass_obj
def worker(
    stopper: Stopper,
    scheduler: str | None,
    scheduler_file: str | None,
    death_timeout: float | None,
    nthreads: int | None,
    memory_limit: str,
    resources: dict[str, float] | None,
    name: str | None,
    host: str,
    interface: str | None,
    worker_port: tuple[int, int],
    pid_file: str | None,
    debug: bool,
) -> int:
    """Start a worker that runs tasks for the scheduler at SCHEDULER, such as tcp://10.0.0.5:8786 or just 10.0.0.5:8786.

    Without SCHEDULER and --scheduler-file the environment's DASK_SCHEDULER_ADDRESS counts.
    """
    if interface is not None and host:
        raise click.UsageError("--interface and --host: give one of them, each says where to listen")
    cpus = cpu_count()
    threads = cpus if nthreads is None else nthreads
    settings = WorkerSettings(
        scheduler=_scheduler_address(scheduler, scheduler_file),
        scheduler_file=scheduler_file,
        host=host,
        interface=interface,
        port_range=worker_port,
        nthreads=threads,
        name=name,
        memory_limit_bytes=parse_memory_limit(memory_limit, machine_bytes=memory_bytes(), share=threads / cpus),
        resources=resources or {},
        pid_file=pid_file,
        death_timeout_s=death_timeout or math.inf,
    )

    async def service() -> None:
        from trio_dask.worker.service import run_worker

        await run_worker(settings)

    raise_file_limit()
    return run_program(click.get_current_context().command_path, service, stopper, debug=debug)


def _scheduler_address(argument: str | None, scheduler_file: str | None) -> str | None:
    from trio_dask.comm.addresses import parse_address

    if scheduler_file is not None:
        if argument is not None:
            raise click.UsageError("SCHEDULER and --scheduler-file: give one of them, each says where the scheduler is")
        return None
    if argument is None:
        argument = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if not argument:
        raise click.UsageError("no scheduler given; write dask-worker HOST:PORT, or give --scheduler-file FILE")
    return str(parse_address(argument))


def main(arguments: Sequence[str] | None = None, name: str = "dask-worker") -> int:
    """The console script: run the command line and give the exit status."""
    return run_command(worker, name, arguments)
