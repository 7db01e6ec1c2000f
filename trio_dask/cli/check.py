"""`trio-dask check`, also `trio-dask --check`: is this machine ready for a cluster, and does it reach one?"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from trio_dask.cli import checks
from trio_dask.cli.checks import Check
from trio_dask.cli.command import check_protection, find_scheduler_for, run_command, run_service
from trio_dask.cli.options import (
    OF_QUESTIONS,
    Program,
    given_settings,
    is_given,
    question_options,
    read_configuration,
)
from trio_dask.cli.stdout import show
from trio_dask.config import ClientSettings, WorkerSettings, own_key
from trio_dask.errors import NoScheduler, RefusedError, UnavailableError, UsageError
from trio_dask.exit_status import ExitStatus
from trio_dask.parsing import parse_port_range

if TYPE_CHECKING:
    import trio

    from trio_dask.comm.addresses import Address
    from trio_dask.configuration import Configuration

LINES: Mapping[str, str] = {"key": "key", "encryption": "TLS", "version": "versions"}
"""By what a refusal is about: the line that it belongs to."""


@click.command(
    cls=Program,
    program="client",
    sections=OF_QUESTIONS,
    params=question_options("Give the scheduler this long to answer."),
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

    It prints one line each: names, limits, disk, the cluster key, TLS, the connection, versions, clocks, the way back.
    A line is "ok", or "wrong" or "warn" with the one thing to do. The exit status is that of the worst "wrong", else 0.
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
    settings = settings._replace(scheduler=None, scheduler_file=None)
    wrong: Check | None = None
    if is_named or any(configured_scheduler(configuration, "client")):
        try:
            address, file = find_scheduler_for(scheduler, scheduler_file, options["protocol"], options["tls_cert"])
            settings = settings._replace(scheduler=address, scheduler_file=file)
        except UnavailableError as error:
            wrong = checks.refused("scheduler", error, otherwise="give the file that the scheduler has written")
    else:
        wrong = Check("scheduler", "none is named; trio-dask check ADDRESS looks at the way to it and back")
    try:
        check_protection(settings, "client", settings.scheduler)
    except UsageError as error:
        otherwise = "give --tls-ca-file, --tls-cert and --tls-key that belong together, as PEM files"
        found.append(checks.refused("TLS", error, otherwise=otherwise))
        wrong = wrong or Check("scheduler", "not asked, because TLS cannot be used as it is")
    status = ExitStatus.STOPPED

    async def service() -> None:
        nonlocal status
        if wrong is not None:
            found.extend([_check_key(settings), wrong])
        else:
            found.extend(await _check_connection(settings, timeout, _worker_ports(configuration)))
        status = max((each.status for each in found), default=ExitStatus.STOPPED)
        lines = [each.line for each in found]
        show(json.dumps([_as_json(each) for each in found]) if as_json else "\n".join(lines))

    return run_service(service, quiet=True) or status


def _worker_ports(configuration: Configuration) -> tuple[int, int]:
    """Where workers of this machine listen, as far as the configuration says."""
    ports = configuration.find(own_key("worker-port"), "worker")
    return parse_port_range(ports.texts[0]) if ports and ports.texts else (0, 0)


async def _check_connection(settings: ClientSettings, timeout_s: float, ports: tuple[int, int]) -> list[Check]:
    """The key, and the way to the scheduler and back."""
    from trio_dask.client.rpc_client import connected_rpc
    from trio_dask.comm.addresses import choose_advertised_host, parse_scheduler_address
    from trio_dask.comm.look_back import package_versions
    from trio_dask.comm.transport import NoTlsError

    found: list[Check] = []
    try:
        sent = time.time()
        async with connected_rpc(settings, timeout_s) as peer:
            key = "both ends have the same" if settings.auth else "nobody is asked for it"
            answer_s = time.time() - sent
            identity = await peer.identity()
            found += [Check("key", key), Check("scheduler", f"{peer.address} answers after {answer_s:.2f} s")]
            address = parse_scheduler_address(peer.address)
            found.append(Check("TLS", f"{'' if address.is_encrypted else 'not '}used, over {address.scheme}"))
            if identity["type"] != "scheduler":
                text, remedy = f"{peer.address} is a {identity['type']}", "give the address that a scheduler logs"
                return [*found, Check("scheduler", text, remedy, ExitStatus.WRONG_USAGE)]
            host = choose_advertised_host("", address.host)
            async with await _listen(host, ports) as listener:
                port = listener.socket.getsockname()[1]
                sent = time.time()
                theirs = await peer.look_back(host, port)
                received = time.time()
            return [
                *found,
                Check("route", f"this machine is {host} on the way to {address.host}"),
                checks.check_versions({**identity, **theirs}, package_versions()),
                checks.check_clocks(theirs["time"], sent, received),
                checks.check_way_back(host, port, theirs["unreached"]),
            ]
    except RefusedError as error:
        name = LINES.get(error.kind, "scheduler")
        keys = [] if name == "key" or found else [_check_key(settings)]
        otherwise = "give --tls-ca-file, --tls-cert and --tls-key of this cluster" if name == "TLS" else ""
        return [*found, *keys, checks.refused(name, error, _remedy_of(error, settings), otherwise=otherwise)]
    except UnavailableError as error:
        return [*found, checks.refused("key", error)]
    except (NoScheduler, TimeoutError) as error:
        is_tls = isinstance(error.__cause__, NoTlsError)
        remedy = _without_tls(settings) if is_tls else checks.remedy_of_lack(error, settings.scheduler_file)
        name = "TLS" if is_tls else "scheduler"
        return [*found, _check_key(settings), Check(name, str(error), remedy, ExitStatus.NO_SCHEDULER)]


async def _listen(host: str, ports: tuple[int, int]) -> trio.SocketListener:
    """Listen as a worker here would, at the first port that is free."""
    import trio

    for port in range(ports[0], ports[1] + 1):
        try:
            return (await trio.open_tcp_listeners(port, host=host))[0]
        except OSError:
            pass  # in use: the next one, as a worker does it
    return (await trio.open_tcp_listeners(0, host=host))[0]


def _other_address(settings: ClientSettings) -> Address | None:
    """The scheduler's address with TLS instead of without, or the other way round."""
    from trio_dask.comm.addresses import parse_scheduler_address, twin

    return None if settings.scheduler is None else twin(parse_scheduler_address(settings.scheduler))


def _without_tls(settings: ClientSettings) -> str:
    other = _other_address(settings)
    return f"start the scheduler with TLS, or run: trio-dask check {other}" if other else "start the scheduler anew"


def _remedy_of(error: RefusedError, settings: ClientSettings) -> str:
    """What mends a refusal, where this command knows it better than what the other side says."""
    other = _other_address(settings)
    if error.kind == "encryption" and other is not None and other.is_encrypted:
        return f"run: trio-dask check {other}"
    return "install the scheduler's version of trio_dask here" if error.kind == "version" else ""


def _check_key(settings: ClientSettings) -> Check:
    """The cluster key of this user, without making one."""
    from trio_dask.scheduler_file import find_scheduler
    from trio_dask.security.cluster_key import ClusterKey, home_key, home_key_file
    from trio_dask.security.credentials import find_key

    def in_scheduler_file() -> ClusterKey | None:
        return None if settings.scheduler_file is None else find_scheduler(None, settings.scheduler_file).key

    def at_home() -> ClusterKey | None:
        return home_key() if home_key_file().exists() else None

    if not settings.auth:
        return Check("key", "nobody is asked for it")
    try:
        key = find_key(settings, in_scheduler_file, at_home)
        if key is None:
            return Check("key", f"there is none yet; the first program makes {home_key_file()}")
        return Check("key", key.source or f"in {home_key_file()}")
    except UnavailableError as error:
        return checks.refused("key", error)
    except NoScheduler:
        return Check("key", "the one that the scheduler writes into its file")


def _as_json(each: Check) -> dict[str, Any]:
    return {"name": each.name, "ok": each.word == "ok", "text": each.text, "remedy": each.remedy}


def main(arguments: Sequence[str] | None = None, name: str = "trio-dask check") -> int:
    """Run the command line and give the exit status."""
    return run_command(check, name, arguments)
