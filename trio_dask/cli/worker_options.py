"""The options of `dask-worker`, each with its reader and its line of help."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trio_dask.cli.command import LOG_OPTIONS, Checked, common_options, file_option, log_options
from trio_dask.cli.legacy_options import NOT_OF_WORKER, REFUSED, former_options
from trio_dask.config import (
    DEFAULT_SCHEME,
    parse_bytes,
    parse_count,
    parse_fraction,
    parse_memory_limit,
    parse_name,
    parse_port_range,
    parse_resources,
    parse_threads,
    parse_timedelta,
)
from trio_dask.errors import UsageError

if TYPE_CHECKING:
    from trio_dask.comm.addresses import Address

__all__ = ["SECTIONS", "worker_options"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _read_memory_limit(text: str) -> str:
    """Check the text early; its value depends on another option."""
    parse_memory_limit(text, machine_bytes=1)
    return text


def _read_address(text: str) -> Address:
    from trio_dask.comm.addresses import parse_address

    address = parse_address(text, default_port=0)
    if address.scheme != DEFAULT_SCHEME:
        raise UsageError(f"workers listen on {DEFAULT_SCHEME} only, not on {address.scheme}")
    return address


def _read_host(text: str) -> str:
    from trio_dask.comm.addresses import check_host

    check_host(text)
    return text


def _read_protocol(text: str) -> str:
    if text.strip().rstrip(":/").lower() != DEFAULT_SCHEME:
        raise UsageError(f"{text[:40]!a} is not a protocol that workers listen on; give {DEFAULT_SCHEME}")
    return DEFAULT_SCHEME


def _read_max_spill(text: str) -> int | None:
    return None if text.strip().lower() in ("none", "off", "false", "0") else parse_bytes(text)


def _read_restarts(text: str) -> int:
    return 0 if text.strip() == "0" else parse_count(text)


def _read_backoff(text: str) -> tuple[float, float]:
    first_text, colon, longest_text = text.partition(":")
    first = parse_timedelta(first_text)
    longest = parse_timedelta(longest_text) if colon else first
    if longest < first:
        raise UsageError(f"{text[:40]!a} ends below its start; write for example 0.5s:30s")
    return first, longest


def _read_environment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals) or "\0" in text:
        raise UsageError(f"{text[:40]!a} is not NAME=VALUE")
    return name, value


def _read_timeout(text: str) -> float:
    """0 means that there is no limit."""
    return parse_timedelta(text) or math.inf


TIME: Final = Checked("TIME", parse_timedelta)
FRACTION: Final = Checked("FRACTION", parse_fraction)
PORT: Final = Checked("PORT", parse_port_range)
ADDRESS: Final = Checked("ADDRESS", _read_address)

SECTIONS: Final = {
    "Which scheduler": ["scheduler_file", "death_timeout", "reconnect", "on_scheduler_stop"],
    "How many workers, and their size": ["nworkers", "nthreads", "memory_limit", "resources", "name"],
    "Where they listen": ["host", "interface", "worker_port", "nanny_port", "listen_address", "contact_address"],
    "When they leave": ["drain_timeout", "lifetime", "lifetime_stagger", "lifetime_restart", "max_tasks"],
    "Memory (fractions of the limit; each can be off)": [
        "memory_target",
        "memory_spill",
        "memory_pause",
        "memory_terminate",
        "max_spill",
        "local_directory",
    ],
    "Nannies": ["nanny", "max_restarts", "restart_window", "restart_backoff", "start_timeout", "env"],
    "How they run": ["preload", "preload_nanny", "pid_file"],
    "Log": LOG_OPTIONS,
    "Accepted for compatibility, and ignored or refused": [
        "protocol",
        *(name.split("/")[0].removeprefix("--").replace("-", "_") for name in (*NOT_OF_WORKER, *REFUSED)),
    ],
}

OPTIONS: Final = (
    click.argument("scheduler", required=False),
    click.argument("preload_argv", nargs=-1, metavar="[ARGS]..."),
    click.option(
        "--scheduler-file", metavar="FILE", help="File with the scheduler's address; the worker waits for it."
    ),
    click.option(
        "--death-timeout",
        type=TIME,
        help="Exit with status 3 after this long without a scheduler, such as 60 or 5min. Default: never (0).",
    ),
    click.option(
        "--reconnect/--no-reconnect",
        default=None,
        help="After losing the scheduler, reconnect and keep all results (the default), or exit with status 3.",
    ),
    click.option(
        "--on-scheduler-stop",
        type=click.Choice(["leave", "wait"]),
        help="When the scheduler is stopped, exit with status 0 or wait for the next scheduler. Default: wait if "
        "--death-timeout or --reconnect is given.",
    ),
    click.option(
        "--nworkers",
        "--nprocs",
        "nworkers",
        metavar="N",
        default="1",
        show_default=True,
        help="Worker processes: a number, -1 for one per CPU (-2: one less), or auto.",
    ),
    click.option(
        "--nthreads",
        type=Checked("N", parse_threads),
        help="Tasks that each worker runs at once. Default: the CPUs, divided among the workers.",
    ),
    click.option(
        "--memory-limit",
        type=Checked("SIZE", _read_memory_limit),
        default="auto",
        help="Memory limit of each worker: 4GiB, 0.5 (of the machine), 0 or none (no limit). "
        "Default: auto, a share of the machine's.",
    ),
    click.option(
        "--resources",
        type=Checked("PAIRS", parse_resources),
        help="Resources of each worker that tasks can require, such as GPU=2,MEM=10e9.",
    ),
    click.option(
        "--name",
        type=Checked("NAME", parse_name),
        help="Name of the worker; several get NAME-0, NAME-1, ... Default: its address.",
    ),
    click.option(
        "--host",
        type=Checked("TEXT", _read_host),
        default="",
        help="Name or address to listen on. Default: this machine's address on the route to the scheduler.",
    ),
    click.option("--interface", metavar="NAME", help="Network interface to listen on, such as eth0."),
    click.option(
        "--worker-port",
        type=PORT,
        default=(0, 0),
        help="Port to listen on, or first:last, tried in order and shared by all workers. Default: any free port.",
    ),
    click.option(
        "--nanny-port",
        "--port",
        "nanny_port",
        type=PORT,
        default=(0, 0),
        help="Port of the nanny, or first:last, as for --worker-port.",
    ),
    click.option("--listen-address", type=ADDRESS, help="Address to listen on, such as tcp://0.0.0.0:9000."),
    click.option("--contact-address", type=ADDRESS, help="Address that others use to reach the worker, if it differs."),
    click.option(
        "--drain-timeout",
        type=TIME,
        default="30s",
        show_default=True,
        help="On SIGTERM, let running tasks finish and results move for at most this long. On SIGINT: 2s.",
    ),
    click.option("--lifetime", type=TIME, help="Drain and leave after this long. Default: never (0)."),
    click.option(
        "--lifetime-stagger",
        type=TIME,
        default="0",
        help="Vary the lifetime of each worker at random by up to this much.",
    ),
    click.option(
        "--lifetime-restart/--no-lifetime-restart", default=False, help="Start a new worker after that. Default: no."
    ),
    click.option(
        "--max-tasks",
        type=Checked("N", parse_count),
        help="Drain after this many tasks; the nanny then starts a new worker.",
    ),
    click.option(
        "--memory-target",
        type=FRACTION,
        default="0.6",
        show_default=True,
        help="Spill results to disk when they exceed this.",
    ),
    click.option(
        "--memory-spill",
        type=FRACTION,
        default="0.7",
        show_default=True,
        help="Spill results to disk when the process exceeds this.",
    ),
    click.option(
        "--memory-pause",
        type=FRACTION,
        default="0.8",
        show_default=True,
        help="Take no tasks while the process exceeds this.",
    ),
    click.option(
        "--memory-terminate",
        type=FRACTION,
        default="0.95",
        show_default=True,
        help="Kill and restart the process when it exceeds this.",
    ),
    click.option(
        "--max-spill",
        type=Checked("SIZE", _read_max_spill),
        help="Limit on spilled bytes of each worker. Default: no limit.",
    ),
    click.option(
        "--local-directory", metavar="PATH", help="Folder to spill to. Default: the system's temporary folder."
    ),
    click.option(
        "--nanny/--no-nanny",
        default=True,
        help="Run each worker in its own process and restart it when it crashes, or run one worker in this process.",
    ),
    click.option(
        "--max-restarts",
        type=Checked("N", _read_restarts),
        default="5",
        show_default=True,
        help="Restart a crashed worker at most this many times within --restart-window; then exit with status 5.",
    ),
    click.option(
        "--restart-window", type=TIME, default="60s", show_default=True, help="Period over which --max-restarts counts."
    ),
    click.option(
        "--restart-backoff",
        type=Checked("FIRST:LONGEST", _read_backoff),
        default="0.5s:30s",
        show_default=True,
        help="Pause before a restart; it doubles from the first to the longest.",
    ),
    click.option(
        "--start-timeout",
        type=Checked("TIME", _read_timeout),
        default="60s",
        show_default=True,
        help="Count a start that takes longer as a crash.",
    ),
    click.option(
        "--env",
        type=Checked("NAME=VALUE", _read_environment),
        multiple=True,
        help="Environment variable for the workers. Can be repeated.",
    ),
    click.option(
        "--preload",
        metavar="MODULE",
        multiple=True,
        help="Module or .py file that each worker imports first; its dask_setup(worker) is called. Can be repeated.",
    ),
    click.option(
        "--preload-nanny",
        metavar="MODULE",
        multiple=True,
        help="Module or .py file that the launcher imports first. Can be repeated.",
    ),
    file_option("--pid-file", help="Write the process id to this file."),
    click.option(
        "--protocol",
        type=Checked("TEXT", _read_protocol),
        expose_value=False,
        help=f"Only {DEFAULT_SCHEME} is supported.",
    ),
    former_options(NOT_OF_WORKER),
    log_options,
    common_options,
)


def worker_options(function: Decorated) -> Decorated:
    """All of them, in this order."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function
