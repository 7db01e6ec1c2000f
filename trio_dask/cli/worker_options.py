"""The options of `dask-worker`: those that the settings declare, and those from which several settings follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from trio_dask.cli.legacy_options import LEGACY, NOT_OF_WORKER, legacy_options
from trio_dask.cli.options import LOG, Checked, SectionOption, log_options, setting_options
from trio_dask.config import (
    CREDENTIALS,
    DEFAULT_SCHEME,
    DEFAULT_TLS_SCHEME,
    HOW_THEY_RUN,
    INTERFACE,
    MEMORY,
    MODULE,
    NANNIES,
    SIZE,
    WHEN_THEY_LEAVE,
    WHERE_THEY_LISTEN,
    WHICH_SCHEDULER,
    NannySettings,
    WorkerSettings,
    own_key,
)
from trio_dask.errors import UsageError
from trio_dask.parsing import parse_memory_limit, parse_port_range, parse_threads

if TYPE_CHECKING:
    from trio_dask.comm.addresses import Address


def _read_memory_limit(text: str) -> str:
    """Check the text early; its value depends on other options."""
    parse_memory_limit(text, machine_bytes=1)
    return text


def _read_address(text: str) -> Address:
    from trio_dask.comm.addresses import parse_address

    address = parse_address(text, default_port=0)
    if address.scheme not in (DEFAULT_SCHEME, DEFAULT_TLS_SCHEME):
        raise UsageError(f"{text!a}: workers listen on {DEFAULT_SCHEME} or {DEFAULT_TLS_SCHEME} only")
    return address


def _read_host(text: str) -> str:
    from trio_dask.comm.addresses import check_host

    check_host(text)
    return text


ADDRESS: Final = Checked("ADDRESS", _read_address)

SECTIONS: Final = (
    WHICH_SCHEDULER,
    CREDENTIALS,
    SIZE,
    WHERE_THEY_LISTEN,
    WHEN_THEY_LEAVE,
    MEMORY,
    NANNIES,
    HOW_THEY_RUN,
    LOG,
    LEGACY,
)

PARAMETERS: Final[list[click.Parameter]] = [
    click.Argument(["scheduler"], required=False),
    click.Argument(["preload_argv"], nargs=-1, metavar="[ARGS]..."),
    SectionOption(
        ["--nworkers", "--nprocs", "nworkers"],
        declared=own_key("nworkers"),
        section=SIZE,
        metavar="N",
        default="1",
        show_default=True,
        help="Worker processes: a number, -1 for one per CPU (-2: one less), or auto.",
    ),
    SectionOption(
        ["--nthreads"],
        declared=own_key("nthreads"),
        section=SIZE,
        type=Checked("N", parse_threads),
        help="Tasks that each worker runs at once. Default: the CPUs, divided among the workers.",
    ),
    SectionOption(
        ["--memory-limit"],
        declared=own_key("memory-limit"),
        section=SIZE,
        type=Checked("SIZE", _read_memory_limit),
        default="auto",
        help="Memory limit of each worker: 4GiB, 0.5 (of the machine), 0 or none (no limit). "
        "Default: auto, a share of the machine's.",
    ),
    SectionOption(
        ["--host"],
        declared=own_key("host"),
        instead=("interface", "listen_address"),
        section=WHERE_THEY_LISTEN,
        type=Checked("TEXT", _read_host),
        default="",
        help="Name or address to listen on. Default: this machine's address on the route to the scheduler.",
    ),
    SectionOption(
        ["--interface"],
        declared=own_key("interface"),
        instead=("host", "listen_address"),
        section=WHERE_THEY_LISTEN,
        type=Checked(INTERFACE.metavar, INTERFACE.read),
        help="Network interface to listen on, such as eth0.",
    ),
    SectionOption(
        ["--worker-port"],
        declared=own_key("worker-port"),
        instead=("listen_address",),
        section=WHERE_THEY_LISTEN,
        type=Checked("PORT", parse_port_range),
        default="0",
        help="Port to listen on, or first:last, tried in order and shared by all workers. Default: any free port.",
    ),
    SectionOption(
        ["--listen-address"],
        declared=own_key("listen-address"),
        instead=("host", "interface", "worker_port"),
        section=WHERE_THEY_LISTEN,
        type=ADDRESS,
        help="Address to listen on, such as tcp://0.0.0.0:9000.",
    ),
    SectionOption(
        ["--contact-address"],
        declared=own_key("contact-address"),
        section=WHERE_THEY_LISTEN,
        type=ADDRESS,
        help="Address that others use to reach the worker, if it differs.",
    ),
    SectionOption(
        ["--nanny/--no-nanny"],
        declared=own_key("nanny"),
        section=NANNIES,
        default=True,
        help="Run each worker in its own process and restart it when it crashes, or run one worker in this process.",
    ),
    SectionOption(
        ["--preload-nanny"],
        declared=own_key("preload-nanny", "distributed.nanny.preload", collect=tuple),
        section=HOW_THEY_RUN,
        after="--preload",
        type=Checked(MODULE.metavar, MODULE.read),
        multiple=True,
        help="Module, .py file, URL or code that the launcher imports first; its dask_setup(nanny) is called. Can be "
        "repeated.",
    ),
    *setting_options(NannySettings),
    *setting_options(WorkerSettings),
    *log_options(),
    *legacy_options(NOT_OF_WORKER),
]
