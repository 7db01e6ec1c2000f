"""`trio-dask check`, also `trio-dask --check`: is this machine ready for a cluster, and does it reach one?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from trio_dask.cli import checks
from trio_dask.cli.checks import Check
from trio_dask.cli.command import find_scheduler_for, run_command, run_service
from trio_dask.cli.options import (
    Checked,
    Program,
    SectionOption,
    given_settings,
    is_given,
    read_configuration,
    setting_options,
)
from trio_dask.cli.stdout import show
from trio_dask.config import CREDENTIALS, FILE, WHICH_SCHEDULER, ClientSettings, WorkerSettings
from trio_dask.errors import NoScheduler, RefusedError, UnavailableError
from trio_dask.exit_status import ExitStatus
from trio_dask.parsing import parse_timedelta

OUTPUT = "Output"


@click.command(
    cls=Program,
    program="client",
    sections=[WHICH_SCHEDULER, CREDENTIALS, OUTPUT],
    params=[
        click.Argument(["scheduler"], required=False),
        SectionOption(
            ["--scheduler-file"],
            section=WHICH_SCHEDULER,
            type=Checked(FILE.metavar, FILE.read),
            help="File with the scheduler's address.",
        ),
        SectionOption(
            ["--timeout"],
            section=WHICH_SCHEDULER,
            type=Checked("TIME", parse_timedelta),
            default="10s",
            show_default=True,
            help="Give the scheduler this long to answer.",
        ),
        *setting_options(ClientSettings),
        SectionOption(["--json", "as_json"], section=OUTPUT, is_flag=True, help="Print one line of JSON."),
    ],
)
@click.pass_context
def check(
    context: click.Context,
    /,
    scheduler: str | None,
    scheduler_file: str | None,
    timeout: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Check this machine and, if one is named, its way to the scheduler at SCHEDULER and back.

    It prints one line each: names, limits, disk, the cluster key, the connection, versions, clocks, the way back. A
    line is "ok", or "wrong" with the one thing to do. The exit status is 0 if all is in order, else that of the worst.
    """
    from trio_dask.configuration import configured, configured_scheduler

    configuration = read_configuration(context)
    settings = ClientSettings(**given_settings(context, ClientSettings))
    worker = WorkerSettings(**configured(WorkerSettings, "worker", configuration))
    found = [
        checks.check_name(),
        checks.check_open_files(),
        checks.check_processes(),
        checks.check_memory(),
        checks.check_disk(worker.local_directory),
    ]
    is_named = bool(scheduler) or is_given(context, "scheduler_file")
    if is_named or any(configured_scheduler(configuration, "client")):
        address, file = find_scheduler_for(scheduler, scheduler_file, options["protocol"], options["tls_cert"])
        settings = settings._replace(scheduler=address, scheduler_file=file)
    else:
        settings = settings._replace(scheduler=None, scheduler_file=None)
    status = ExitStatus.STOPPED

    async def service() -> None:
        nonlocal status
        found.extend(await _check_connection(settings, timeout))
        status = max((each.status for each in found), default=ExitStatus.STOPPED)
        lines = [each.line for each in found]
        show(json.dumps([_as_json(each) for each in found]) if as_json else "\n".join(lines))

    return run_service(service, quiet=True) or status


async def _check_connection(settings: ClientSettings, timeout_s: float) -> list[Check]:
    """The key, and the way to the scheduler and back."""
    import trio

    from trio_dask.client.rpc_client import connected_rpc
    from trio_dask.comm.addresses import choose_advertised_host, parse_scheduler_address
    from trio_dask.comm.look_back import package_versions

    if settings.scheduler is None and settings.scheduler_file is None:
        where = "none is named; trio-dask check ADDRESS looks at the way to it and back"
        return [_check_key(settings), Check("scheduler", where)]
    found: list[Check] = []
    try:
        sent = time.time()
        async with connected_rpc(settings, timeout_s) as peer:
            key = "both ends have the same" if settings.auth else "nobody is asked for it"
            answer_s = time.time() - sent
            identity = await peer.identity()
            found += [Check("key", key), Check("scheduler", f"{peer.address} answers after {answer_s:.2f} s")]
            if identity["type"] != "scheduler":
                text, remedy = f"{peer.address} is a {identity['type']}", "give the address that a scheduler logs"
                return [*found, Check("scheduler", text, remedy, ExitStatus.WRONG_USAGE)]
            address = parse_scheduler_address(peer.address)
            host = choose_advertised_host("", address.host)
            (listener, *_) = await trio.open_tcp_listeners(0, host=host)
            async with listener:
                port = listener.socket.getsockname()[1]
                sent = time.time()
                theirs = await peer.look_back(host, port)
                received = time.time()
            return [
                *found,
                Check("TLS", f"{'' if address.is_encrypted else 'not '}used, over {address.scheme}"),
                Check("route", f"this machine is {host} on the way to {address.host}"),
                checks.check_versions({**identity, **theirs}, package_versions()),
                checks.check_clocks(theirs["time"], sent, received),
                checks.check_way_back(host, port, theirs["unreached"]),
            ]
    except (RefusedError, UnavailableError) as error:
        return [*found, Check("key" if not found else "scheduler", str(error), "", ExitStatus.REFUSED)]
    except (NoScheduler, TimeoutError) as error:
        remedy = "start dask-scheduler there, or open its port in the firewall there"
        return [*found, _check_key(settings), Check("scheduler", str(error), remedy, ExitStatus.NO_SCHEDULER)]


def _check_key(settings: ClientSettings) -> Check:
    """The cluster key of this user, without making one."""
    from trio_dask.security.cluster_key import home_key_file, read_key_file

    if not settings.auth:
        return Check("key", "nobody is asked for it")
    try:
        named = settings.cluster_key or settings.default_cluster_key
        path = home_key_file() if named is None else named
        if named is None and not home_key_file().exists():
            return Check("key", f"there is none yet; the first program makes {path}")
        read_key_file(path)
    except UnavailableError as error:
        return Check("key", str(error), "", ExitStatus.REFUSED)
    return Check("key", f"in {path}")


def _as_json(each: Check) -> dict[str, Any]:
    return {"name": each.name, "ok": not each.status, "text": each.text, "remedy": each.remedy}


def main(arguments: Sequence[str] | None = None, name: str = "trio-dask check") -> int:
    """Run the command line and give the exit status."""
    return run_command(check, name, arguments)
