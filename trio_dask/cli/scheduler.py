"""`dask-scheduler`: the process that clients and workers connect to."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from trio_dask.cli.command import (
    check_different_files,
    check_host_is_here,
    check_interface,
    check_protection,
    naming,
    only_one,
    reading,
    run_command,
    run_service,
)
from trio_dask.cli.legacy_options import LEGACY, NOT_OF_SCHEDULER, legacy_options
from trio_dask.cli.options import (
    LOG,
    OTHER,
    Checked,
    PreloadingProgram,
    SectionOption,
    given_settings,
    is_given,
    log_options,
    preload_argv,
    setting_options,
)
from trio_dask.cli.stdout import show
from trio_dask.config import (
    CREDENTIALS,
    DEFAULT_PORT,
    DEFAULT_TLS_SCHEME,
    FAILURES,
    FILES,
    HOW_IT_RUNS,
    LONE_WORKER_TTLS,
    WHERE_TO_LISTEN,
    SchedulerSettings,
    own_key,
)
from trio_dask.deploy.program_runner import spare_garbage_collection
from trio_dask.errors import UsageError
from trio_dask.parsing import parse_ports

if TYPE_CHECKING:
    from trio_dask.security.cluster_key import ClusterKey


@click.command(
    cls=PreloadingProgram,
    program="scheduler",
    sections=[WHERE_TO_LISTEN, CREDENTIALS, FAILURES, FILES, HOW_IT_RUNS, LOG, LEGACY],
    params=[
        click.Argument(["preload_argv"], nargs=-1, metavar="[ARGS]..."),
        SectionOption(
            ["--host"],
            section=WHERE_TO_LISTEN,
            declared=own_key("host"),
            instead=("interface",),
            default="",
            help="Name or address to listen on. Default: all interfaces.",
        ),
        SectionOption(
            ["--port"],
            section=WHERE_TO_LISTEN,
            declared=own_key("port"),
            type=Checked("PORT,...", parse_ports),
            help=f"Port to listen on, or several, one for each protocol; 0: any free port. Default: {DEFAULT_PORT}, "
            "and 0 for further protocols.",
        ),
        *setting_options(SchedulerSettings),
        SectionOption(
            ["--print-join"],
            section=OTHER,
            is_flag=True,
            help="Print how to join from here, and from machines that do not share this home; keep running.",
        ),
        *log_options(),
        *legacy_options(NOT_OF_SCHEDULER),
    ],
)
@click.pass_context
def scheduler(context: click.Context, /, **options: Any) -> int:
    """Start a scheduler.

    Workers join it with `dask-worker ADDRESS`; programs use it with Client("ADDRESS"). ARGS are passed on to the
    --preload modules.
    """
    settings = _settings(context)

    async def service() -> None:
        import trio

        from trio_dask.scheduler.service import run_scheduler
        from trio_dask.security.credentials import find_credentials

        spare_garbage_collection()
        around = None
        if settings.preload:
            from trio_dask.deploy.preload import preload, set_up
            from trio_dask.deploy.remote_modules import read_remote_modules

            sources = await read_remote_modules(settings.preload)
            modules = preload(settings.preload, settings.preload_argv, sources=sources)
            around = partial(set_up, modules, settings.preload_argv)
        credentials = find_credentials(settings, "scheduler")
        async with trio.open_nursery() as nursery:
            running = partial(run_scheduler, credentials=credentials, around=around)
            address = await nursery.start(running, settings)
            if options["print_join"]:
                show(*how_to_join(str(address), credentials.key))

    return run_service(service, origin="" if options["log_format"] == "text" else "scheduler")


def how_to_join(address: str, key: ClusterKey | None) -> list[str]:
    """What to type on other machines; without a key, peers are let in without one."""
    if key is None:
        return ["To join:", f"  dask-worker {address} --no-auth"]
    place = key.place or "USER@HOST:FILE"  # a name that no line can show
    login, _, path = place.partition(":")
    user, _, host = login.partition("@")
    copy, here, there = "cluster.key", "", ""
    if key.source:
        # A name that is no other key's there, and not that of the one in the home.
        copy = shlex.quote(f"{host}-{os.path.basename(path)}")
        own = os.path.expanduser(f"~{user}{path[1:]}") if path.startswith("~/") else path
        here, there = f" --cluster-key {shlex.quote(own)}", f" --cluster-key ~/.config/trio_dask/{copy}"
    return [
        f"To join from a machine that {'sees this file' if key.source else 'shares this home'}:",
        f"  dask-worker {address}{here}",
        "From any other machine, copy the key once, and then join with it:",
        "  mkdir -p -m 700 ~/.config/trio_dask",
        f"  scp -p {shlex.quote(place.replace(':~/', ':', 1))} ~/.config/trio_dask/{copy}",
        f"  dask-worker {address}{there}",
    ]


def _settings(context: click.Context) -> SchedulerSettings:
    from trio_dask.comm.addresses import Address

    options = context.params
    only_one({"--interface": options["interface"], "--host": options["host"]})
    check_interface(options["interface"])
    check_different_files(
        {f"--{name}": options[name.replace("-", "_")] for name in ("scheduler-file", "pid-file", "log-file")}
    )
    given = given_settings(context, SchedulerSettings)
    ports: tuple[int, ...] | None = options["port"]
    with naming("--host"):
        scheme, host, host_port = _split_host(options["host"], DEFAULT_PORT if ports is None else ports[0])
    is_host_given = is_given(context, "host")
    if ports is not None and host_port is not None and ports != (host_port,):
        if is_given(context, "port") == is_host_given:
            shown = ",".join(map(str, ports))
            raise click.UsageError(f"--port {shown} and --host with port {host_port}: give the port once")
        ports = (host_port,) if is_host_given else ports
    if scheme is not None and is_host_given and not is_given(context, "protocol"):
        given["protocols"] = (scheme,)
    if scheme is not None and given.setdefault("protocols", (scheme,)) != (scheme,):
        shown = ",".join(given["protocols"])
        raise click.UsageError(f"--protocol {shown} and --host with {scheme}://: give the protocol once")
    if ports is None:
        ports = (DEFAULT_PORT if host_port is None else host_port,)
    if given.get("tls_cert") is not None:
        given.setdefault("protocols", (DEFAULT_TLS_SCHEME,))
    check_host_is_here("--host", host)
    settings = SchedulerSettings(host=host, ports=ports, **given)
    with naming("--port"):
        listeners = settings.listeners()
    for protocol, port in listeners:
        check_protection(settings, "scheduler", str(Address(protocol, host, port)))
    argv = preload_argv(context)
    if argv.words:
        settings = settings._replace(preload_argv=argv)
    return settings._replace(lone_worker_ttl_s=LONE_WORKER_TTLS * settings.worker_ttl_s)


def _split_host(text: str, default_port: int) -> tuple[str | None, str, int | None]:
    """The protocol, host and port of `--host`: a name or an address, or, as with distributed, a URI."""
    from trio_dask.comm.addresses import check_host, parse_address

    if "://" not in text and not (text.count(":") == 1 or text.startswith("[")):
        check_host(text)
        return None, text, None

    address = parse_address(text, default_port=default_port)
    if address.is_in_process:
        raise UsageError(f"{text!r} is an address inside one program; give the host where others reach the scheduler")
    return address.scheme if "://" in text else None, address.host, address.port


def read_settings(arguments: Sequence[str]) -> SchedulerSettings:
    """The settings that these arguments give, for a program that starts the scheduler itself.

    Raises:
      UsageError: an argument is wrong.
    """
    with reading(scheduler, "dask-scheduler", arguments) as context:
        return _settings(context)


def main(arguments: Sequence[str] | None = None, name: str = "dask-scheduler") -> int:
    """The console script: run the command line and give the exit status."""
    return run_command(scheduler, name, arguments)
