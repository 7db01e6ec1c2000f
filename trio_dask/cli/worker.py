"""`dask-worker`: one or more processes that run tasks for a scheduler."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from trio_dask.cli.command import Program, run_command
from trio_dask.cli.legacy_options import notes
from trio_dask.cli.worker_options import SECTIONS, worker_options
from trio_dask.config import NannySettings, WorkerSettings, check_memory_limit, counted
from trio_dask.deploy.cluster_sizing import WorkerSizing, divide
from trio_dask.deploy.program_runner import Stopper, run_program
from trio_dask.errors import UsageError
from trio_dask.host_limits import cpus, memory
from trio_dask.processes.environment import raise_file_limit

if TYPE_CHECKING:
    from trio_dask.comm.addresses import Address

__all__ = ["main"]


@dataclass(frozen=True)
class _Where:
    """Where workers listen and where they are reached, as the options say."""

    host: str
    interface: str | None
    port_range: tuple[int, int]
    contact_address: str | None


@click.command(cls=Program, sections=SECTIONS)
@worker_options
@click.pass_obj
def worker(stopper: Stopper, /, debug: bool, **options: Any) -> int:
    """Start workers that run tasks for the scheduler at SCHEDULER, such as tcp://10.0.0.5:8786 or just 10.0.0.5.

    Without SCHEDULER and --scheduler-file, the environment variable DASK_SCHEDULER_ADDRESS is used. Each worker is a
    process with a nanny, which restarts it when it crashes. ARGS are passed on to the --preload modules.
    """
    context = click.get_current_context()
    label = context.command_path
    share = _divide(options)
    nannies = _nanny_settings(options, share)
    for note in notes(context):
        click.echo(f"{label}: {note}", err=True)

    async def service() -> None:
        import logging

        from trio_dask.deploy.preload import preload

        logging.getLogger("trio_dask.launcher").info("Starting %s", share.text)
        argv = nannies[0].preload_argv
        if options["nanny"]:
            from trio_dask.deploy.nanny_group import run_nannies

            preload(options["preload_nanny"], argv, option="--preload-nanny")
            await run_nannies(nannies, stopper, label=label, pid_file=options["pid_file"], debug=debug)
        else:
            from trio_dask.deploy.worker_program import work

            preloaded = preload(options["preload"], argv)
            await work(_without_nanny(nannies[0], options["pid_file"]), stopper, preloaded=preloaded, argv=argv)

    raise_file_limit()
    return run_program(
        label,
        service,
        stopper,
        debug=debug,
        log_format=options["log_format"],
        log_file=options["log_file"],
        origin="launcher" if options["nanny"] else options["name"] or "worker",
    )


def _divide(options: dict[str, Any]) -> WorkerSizing:
    workers, limit, available = options["nworkers"], options["memory_limit"], memory()
    try:
        share = divide(workers, options["nthreads"], limit, cpus=cpus(), memory=available)
    except UsageError as error:
        raise click.UsageError(f"--nworkers: {error}") from error
    try:
        check_memory_limit(limit, share.memory_limit_bytes, machine_bytes=available.number)
    except UsageError as error:
        raise click.UsageError(f"--memory-limit: {error}") from error
    for name in ("worker_port", "nanny_port"):
        first, last = options[name]
        if first and last - first + 1 < share.workers:
            option = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{option}: {counted(last - first + 1, 'port')} for {share.workers} workers; give a range, such as "
                f"{first}:{min(65535, first + share.workers - 1)}"
            )
    if not options["nanny"] and share.workers > 1:
        raise click.UsageError("--nworkers and --no-nanny: without nannies there is one worker, in this process")
    if not options["nanny"] and options["lifetime_restart"]:
        raise click.UsageError("--lifetime-restart and --no-nanny: only a nanny can start another worker")
    if options["on_scheduler_stop"] == "wait" and options["reconnect"] is False:
        raise click.UsageError("--on-scheduler-stop wait and --no-reconnect: give only one of them")
    if options["preload_argv"] and not (options["preload"] or options["preload_nanny"]):
        raise click.UsageError(f"unexpected extra argument {options['preload_argv'][0]!a}")
    return share


def _nanny_settings(options: dict[str, Any], share: WorkerSizing) -> list[NannySettings]:
    where = _where(options, share)
    settings = WorkerSettings(
        scheduler=_scheduler_address(options["scheduler"], options["scheduler_file"]),
        scheduler_file=options["scheduler_file"],
        host=where.host,
        interface=where.interface,
        contact_address=where.contact_address,
        port_range=where.port_range,
        nthreads=share.threads,
        name=options["name"],
        memory_limit_bytes=share.memory_limit_bytes,
        resources=options["resources"] or {},
        local_directory=options["local_directory"],
        death_timeout_s=options["death_timeout"] or math.inf,
        reconnect=options["reconnect"] is not False,
        on_scheduler_stop=_on_scheduler_stop(options),
        drain_timeout_s=options["drain_timeout"],
        lifetime_s=options["lifetime"] or math.inf,
        max_tasks=options["max_tasks"],
        spill_managed=options["memory_target"],
        spill_process=options["memory_spill"],
        pause_process=options["memory_pause"],
        max_spill_bytes=options["max_spill"],
    )
    first_backoff_s, max_backoff_s = options["restart_backoff"]
    nanny = NannySettings(
        worker=settings,
        port_range=options["nanny_port"],
        max_restarts=options["max_restarts"],
        restart_window_s=options["restart_window"],
        first_backoff_s=first_backoff_s,
        max_backoff_s=max_backoff_s,
        start_timeout_s=options["start_timeout"],
        memory_terminate=options["memory_terminate"],
        lifetime_stagger_s=options["lifetime_stagger"],
        lifetime_restart=options["lifetime_restart"],
        environment=dict(options["env"]),
        preload=options["preload"],
        preload_argv=options["preload_argv"],
    )
    if share.workers == 1 or settings.name is None:
        return [nanny] * share.workers
    names = (f"{settings.name}-{number}" for number in range(share.workers))
    return [nanny._replace(worker=settings._replace(name=name)) for name in names]


def _on_scheduler_stop(options: dict[str, Any]) -> Literal["leave", "wait"]:
    """A user that sets --death-timeout or --reconnect expects another scheduler after the first."""
    given: Literal["leave", "wait"] | None = options["on_scheduler_stop"]
    if given is not None:
        return given
    waits = options["reconnect"] or (options["reconnect"] is None and options["death_timeout"])
    return "wait" if waits else "leave"


def _without_nanny(settings: NannySettings, pid_file: str | None) -> WorkerSettings:
    stagger_s = random.uniform(-1, 1) * settings.lifetime_stagger_s
    lifetime_s = settings.worker.lifetime_s + stagger_s
    return settings.worker._replace(pid_file=pid_file, lifetime_s=max(1.0, lifetime_s) if stagger_s else lifetime_s)


def _where(options: dict[str, Any], share: WorkerSizing) -> _Where:
    host, interface, ports, contact = (
        options[name] for name in ("host", "interface", "worker_port", "contact_address")
    )
    if interface is not None and host:
        raise click.UsageError("--interface and --host: give only one of them")
    listen: Address | None = options["listen_address"]
    if listen is not None:
        for name, given in (("--host", host), ("--interface", interface), ("--worker-port", ports[0])):
            if given:
                raise click.UsageError(f"--listen-address and {name}: give only one of them")
        host, ports = listen.host, (listen.port, listen.port)
    for name, address in (("--listen-address", listen), ("--contact-address", contact)):
        if address is not None and address.port and share.workers > 1:
            raise click.UsageError(f"{name}: one port for {share.workers} workers; leave it out, or start one worker")
    # Without a port of its own it gets that of the listener.
    return _Where(host, interface, ports, None if contact is None else str(contact).removesuffix(":0"))


def _scheduler_address(argument: str | None, scheduler_file: str | None) -> str | None:
    from trio_dask.comm.addresses import parse_scheduler_address

    if scheduler_file is not None:
        if argument is not None:
            raise click.UsageError("SCHEDULER and --scheduler-file: give only one of them")
        return None
    if argument is None:
        argument = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if not argument:
        raise click.UsageError("no scheduler given; write dask-worker HOST:PORT, or give --scheduler-file FILE")
    return str(parse_scheduler_address(argument))


def main(arguments: Sequence[str] | None = None, name: str = "dask-worker") -> int:
    """The console script: run the command line and give the exit status."""
    return run_command(worker, name, arguments)
