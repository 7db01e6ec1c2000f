"""`dask-scheduler`: the process that clients and workers connect to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import click

from trio_dask.cli.command import (
    LOG_OPTIONS,
    Checked,
    Program,
    common_options,
    file_option,
    log_options,
    run_command,
)
from trio_dask.cli.legacy_options import NOT_OF_SCHEDULER, REFUSED, former_options, notes
from trio_dask.config import (
    DEFAULT_PORT,
    DEFAULT_SCHEME,
    SCHEMES,
    SchedulerSettings,
    parse_count,
    parse_port,
    parse_timedelta,
)
from trio_dask.deploy.program_runner import Stopper, raise_file_limit, run_program, spare_garbage_collection

__all__ = ["main"]

LONE_WORKER_TTLS = 6
"""So much longer a worker may be silent without a nanny: nobody vouches for it while a task holds the interpreter."""

SECTIONS = {
    "Where to listen": ["host", "port", "interface", "protocol"],
    "Timeouts and failures": ["reconnect_grace", "worker_ttl", "allowed_failures", "stuck_after", "idle_timeout"],
    "Files": ["scheduler_file", "pid_file"],
    "Log": LOG_OPTIONS,
    "Accepted for compatibility, and ignored or refused": [
        *(name.partition("/")[0].lstrip("-").replace("-", "_") for name in (*NOT_OF_SCHEDULER, *REFUSED)),
    ],
}


def _read_allowed(text: str) -> int:
    return 0 if text.strip() == "0" else parse_count(text)


@click.command(cls=Program, sections=SECTIONS)
@click.option("--host", default="", help="Name or address to listen on. Default: all interfaces.")
@click.option(
    "--port",
    type=Checked("PORT", parse_port),
    default=None,
    help=f"Port to listen on; 0: any free port. Default: {DEFAULT_PORT}.",
)
@click.option("--interface", default=None, metavar="NAME", help="Network interface to listen on, such as eth0.")
@click.option(
    "--reconnect-grace",
    type=Checked("TIME", parse_timedelta),
    default="5s",
    show_default=True,
    help="Keep the results and tasks of a lost worker for this long, in case it reconnects; 0: recompute them at once.",
)
@click.option(
    "--worker-ttl",
    type=Checked("TIME", parse_timedelta),
    default="10s",
    show_default=True,
    help="Give up on a worker if neither it nor its nanny sends anything for this long "
    "(without a nanny: 6 times that).",
)
@click.option(
    "--allowed-failures",
    type=Checked("N", _read_allowed),
    default=3,
    show_default=True,
    help="Fail a task once more than this many workers have died while running it.",
)
@click.option(
    "--idle-timeout",
    type=Checked("TIME", parse_timedelta),
    help="Stop the cluster after this long without work, such as 1h. Default: never (0).",
)
@click.option(
    "--stuck-after",
    type=Checked("TIME", parse_timedelta),
    default="10s",
    show_default=True,
    help="Report tasks that have waited this long for a worker able to run them (0: never).",
)
@file_option(
    "--scheduler-file", help="Write the scheduler's address to this file, for --scheduler-file of workers and clients."
)
@file_option("--pid-file", help="Write the process id to this file.")
@click.option(
    "--protocol", default=DEFAULT_SCHEME, show_default=True, type=click.Choice(SCHEMES), help="Protocol of connections."
)
@former_options(NOT_OF_SCHEDULER)
@log_options
@common_options
@click.pass_obj
def scheduler(
    stopper: Stopper,
    host: str,
    port: int | None,
    interface: str | None,
    reconnect_grace: float,
    worker_ttl: float,
    allowed_failures: int,
    idle_timeout: float | None,
    stuck_after: float,
    scheduler_file: str | None,
    pid_file: str | None,
    protocol: str,
    log_format: Literal["text", "json"],
    log_file: str | None,
    debug: bool,
) -> int:
    """Start a scheduler.

    Workers join it with `dask-worker ADDRESS`; programs use it with Client("ADDRESS").
    """
    if interface is not None and host:
        raise click.UsageError("--interface and --host: give only one of them")
    host, host_port = _split_host(host, DEFAULT_PORT if port is None else port)
    if port is not None and host_port is not None and port != host_port:
        raise click.UsageError(f"--port {port} and --host with port {host_port}: give the port once")
    settings = SchedulerSettings(
        protocol=protocol,
        host=host,
        port=next((number for number in (port, host_port) if number is not None), DEFAULT_PORT),
        interface=interface,
        scheduler_file=scheduler_file,
        pid_file=pid_file,
        allowed_failures=allowed_failures,
        reconnect_grace_s=reconnect_grace,
        worker_ttl_s=worker_ttl or math.inf,
        lone_worker_ttl_s=LONE_WORKER_TTLS * worker_ttl or math.inf,
        idle_timeout_s=idle_timeout or math.inf,
        stuck_after_s=stuck_after or math.inf,
    )

    context = click.get_current_context()
    for note in notes(context):
        click.echo(f"{context.command_path}: {note}", err=True)

    async def service() -> None:
        from trio_dask.scheduler.service import run_scheduler

        spare_garbage_collection()
        await run_scheduler(settings)

    raise_file_limit()
    return run_program(
        context.command_path,
        service,
        stopper,
        debug=debug,
        log_format=log_format,
        log_file=log_file,
        origin="" if log_format == "text" else "scheduler",
    )


def _split_host(text: str, default_port: int) -> tuple[str, int | None]:
    """What `--host` says: a name or an address, or, as with distributed, a URI, which may have a port."""
    from trio_dask.comm.addresses import check_host, parse_address

    if "://" not in text and not (text.count(":") == 1 or text.startswith("[")):
        check_host(text)
        return text, None

    address = parse_address(text, default_port=default_port)
    return address.host, address.port


def main(arguments: Sequence[str] | None = None, name: str = "dask-scheduler") -> int:
    """The console script: run the command line and give the exit status."""
    return run_command(scheduler, name, arguments)
