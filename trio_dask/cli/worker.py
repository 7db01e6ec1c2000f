"""`dask-worker`: one or more processes that run tasks for a scheduler."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from trio_dask.batch_system import Amount
from trio_dask.cli.command import (
    check_different_files,
    check_host_is_here,
    check_interface,
    check_protection,
    find_scheduler_for,
    given_as,
    only_one,
    reading,
    run_command,
    run_service,
)
from trio_dask.cli.options import PreloadingProgram, given_settings, preload_argv, read_configuration
from trio_dask.cli.worker_options import PARAMETERS, SECTIONS
from trio_dask.config import Argv, NannySettings, WorkerSettings, on_scheduler_stop
from trio_dask.deploy.cluster_sizing import WorkerSizing, divide, machine_for
from trio_dask.errors import UsageError
from trio_dask.host_limits import cpus, memory
from trio_dask.parsing import check_memory_limit, counted

if TYPE_CHECKING:
    from trio_dask.comm.addresses import Address
    from trio_dask.deploy.program_runner import Stopper


@click.command(cls=PreloadingProgram, program="worker", sections=SECTIONS, params=PARAMETERS)
@click.pass_context
def worker(context: click.Context, /, **options: Any) -> int:
    """Start workers that run tasks for the scheduler at SCHEDULER, such as tcp://10.0.0.5:8786 or just 10.0.0.5.

    Without SCHEDULER and --scheduler-file it uses the environment variable DASK_SCHEDULER_ADDRESS, or what the
    configuration says. Each worker is a process with a nanny, which restarts it when it crashes. ARGS are passed on to
    the --preload modules.
    """
    stopper: Stopper = context.obj
    share = _divide(options, cpus(), memory())
    nannies = _nanny_settings(context, share)
    _check_machine(options)

    async def service() -> None:
        import logging

        from trio_dask.deploy.preload import check_syntax, preload
        from trio_dask.deploy.remote_modules import read_remote_modules

        log = logging.getLogger("trio_dask.launcher")
        argv = nannies[0].preload_argv
        if options["nanny"]:
            from trio_dask.deploy.nanny_group import run_nannies

            check_syntax(nannies[0].preload)
            modules, option = options["preload_nanny"], "--preload-nanny"
            sources = await read_remote_modules(modules, option=option)
            preloaded = preload(modules, argv, option=option, sources=sources)
            label, debug = context.command_path, options["debug"]
            log.info("Starting %s", share.text)
            await run_nannies(nannies, stopper, label=label, debug=debug, preloaded=preloaded)
        else:
            from trio_dask.deploy.worker_program import work
            from trio_dask.processes.environment import complete_own_environment

            complete_own_environment(nannies[0].environment, defaults=nannies[0].default_environment)
            sources = await read_remote_modules(nannies[0].preload)
            preloaded = preload(nannies[0].preload, argv, sources=sources)
            alone = nannies[0].worker._replace(lifetime_s=nannies[0].draw_lifetime_s(random.uniform))
            log.info("Starting %s", share.text)
            await work(alone, stopper, preloaded=preloaded, argv=argv)

    return run_service(service, origin="launcher" if options["nanny"] else options["name"] or "worker")


def _divide(options: dict[str, Any], cpus: Amount, available: Amount) -> WorkerSizing:
    workers, limit = options["nworkers"], options["memory_limit"]
    try:
        share = divide(workers, options["nthreads"], limit, cpus=cpus, memory=available)
    except UsageError as error:
        raise click.UsageError(f"{given_as('--nworkers')}: {error}") from error
    try:
        check_memory_limit(limit, share.memory_limit_bytes, machine_bytes=available.number)
    except UsageError as error:
        raise click.UsageError(f"{given_as('--memory-limit')}: {error}") from error
    for name, ports in (("--worker-port", options["worker_port"]), ("--nanny-port", options["nanny_port"])):
        first, last = ports or (0, 0)
        if first and last - first + 1 < share.workers:
            ports_text = counted(last - first + 1, "port")
            raise click.UsageError(
                f"{given_as(name)}: {ports_text} for {share.workers} workers; give a range, such as "
                f"{first}:{min(65535, first + share.workers - 1)}"
            )
    if not options["nanny"] and share.workers > 1:
        raise click.UsageError("--nworkers and --no-nanny: without nannies there is one worker, in this process")
    if not options["nanny"] and options["lifetime_restart"]:
        raise click.UsageError("--lifetime-restart and --no-nanny: only a nanny can start another worker")
    if not options["nanny"] and options["preload_nanny"]:
        raise click.UsageError("--preload-nanny and --no-nanny: there is no nanny that could use it")
    return share


def _check_machine(options: dict[str, Any]) -> None:
    """Find out here, in one line, what each worker would find out, and then each nanny, and in the end the program."""
    from trio_dask.worker.spill_directory import check_base

    check_interface(options["interface"])
    listen: Address | None = options["listen_address"]
    check_host_is_here("--host", options["host"])
    check_host_is_here("--listen-address", "" if listen is None else listen.host)
    files = {f"--{name}": options[name.replace("-", "_")] for name in ("scheduler-file", "pid-file", "log-file")}
    check_different_files(files)
    if options["local_directory"] is not None:
        check_base(options["local_directory"])


def _nanny_settings(context: click.Context, share: WorkerSizing) -> list[NannySettings]:
    options, given = context.params, given_settings(context, WorkerSettings)
    argv = _argv(context)
    address, file = find_scheduler_for(
        options["scheduler"], options["scheduler_file"], options["protocol"], options["tls_cert"]
    )
    if given.get("on_scheduler_stop") == "wait" and given.get("reconnect") is False:
        raise click.UsageError("--on-scheduler-stop wait and --no-reconnect: give only one of them")
    ours: dict[str, Any] = {
        "on_scheduler_stop": on_scheduler_stop(given),
        **_address_settings(options, share),
        "scheduler": address,
        "scheduler_file": file,
        "nthreads": share.threads,
        "memory_limit_bytes": share.memory_limit_bytes,
    }
    settings = WorkerSettings(**{**given, **ours})
    check_protection(settings, "worker", address)
    nanny = NannySettings(worker=settings, **given_settings(context, NannySettings))
    if argv.words:
        nanny = nanny._replace(preload_argv=argv)
    if share.workers == 1 or settings.name is None:
        return [nanny] * share.workers
    names = (f"{settings.name}-{number}" for number in range(share.workers))
    return [nanny._replace(worker=settings._replace(name=name)) for name in names]


def _argv(context: click.Context) -> Argv:
    """The arguments for modules. Their first option may stand where SCHEDULER would, if that is given otherwise."""
    from trio_dask.configuration import configured_scheduler

    options = context.params
    first: str = options["scheduler"] or ""
    if first.startswith("-"):
        options["scheduler"] = None
        options["preload_argv"] = (first, *options["preload_argv"])
        if not options["scheduler_file"] and configured_scheduler(read_configuration(context), "worker")[0] is None:
            raise click.UsageError(f"no such option: {first}; write options of --preload modules after SCHEDULER")
    return preload_argv(context)


def _address_settings(options: dict[str, Any], share: WorkerSizing) -> dict[str, Any]:
    """The settings for where a worker listens and where it is reached."""
    host, interface, ports = options["host"], options["interface"], options["worker_port"]
    only_one({"--interface": interface, "--host": host})
    listen: Address | None = options["listen_address"]
    contact: Address | None = options["contact_address"]
    if listen is not None:
        for name, value in (("--host", host), ("--interface", interface), ("--worker-port", ports[0])):
            only_one({"--listen-address": listen, name: value})
        if share.workers > 1:
            raise click.UsageError(
                f"--listen-address: one address for {share.workers} workers; give --host and a range to --worker-port"
            )
        host, ports = listen.host, (listen.port, listen.port)
    if contact is not None:
        option = given_as("--contact-address")
        if not contact.host:
            raise click.UsageError(f"{option}: {str(contact)!a} has no host")
        if contact.port and share.workers > 1:
            raise click.UsageError(f"{option}: one port for {share.workers} workers; leave it out, or start one worker")
        if listen is None and not ports[0]:
            raise click.UsageError(
                f"{option} {contact}: give --listen-address too, or --worker-port, the place that it leads to"
            )
    # A contact address without a port gets that of the listener.
    reached = None if contact is None else str(contact).removesuffix(":0")
    return {"host": host, "interface": interface, "port_range": ports, "contact_address": reached}


def read_settings(arguments: Sequence[str]) -> list[NannySettings]:
    """The settings that these arguments give on this machine, for a program that starts the nannies itself.

    Raises:
      UsageError: an argument is wrong, here or everywhere.
    """
    with reading(worker, "dask-worker", arguments) as context:
        nannies = _nanny_settings(context, _divide(context.params, cpus(), memory()))
        _check_machine(context.params)
        return nannies


def check_elsewhere(arguments: Sequence[str]) -> None:
    """Refuse what `dask-worker` would refuse on any machine, however large: these arguments are for another one.

    Raises:
      UsageError: an argument is wrong everywhere.
    """
    with reading(worker, "dask-worker", arguments, elsewhere=True) as context:
        machine = machine_for(context.params["nworkers"])
        _nanny_settings(context, _divide(context.params, *machine))


def main(arguments: Sequence[str] | None = None, name: str = "dask-worker") -> int:
    """The console script: run the command line and give the exit status."""
    return run_command(worker, name, arguments)
