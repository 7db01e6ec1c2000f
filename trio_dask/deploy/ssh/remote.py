"""`python -m trio_dask.deploy.ssh.remote`: what a launcher runs on a host, as a scheduler, workers, or to look around.

Its command line is always the same. It greets the launcher on stdout, and gets everything else on stdin, which is its
lifeline as well (see `orders` and `lifeline`). It logs on stderr, as records.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from trio_dask._version import __version__
from trio_dask.deploy.ssh.leftovers import name_this_process, sweep
from trio_dask.deploy.ssh.lifeline import Lifeline
from trio_dask.deploy.ssh.orders import MARK, Greeting, Order, Preparation, encode
from trio_dask.exit_status import ExitStatus
from trio_dask.hooks import hooks
from trio_dask.processes.exit_watchdog import end_descendants
from trio_dask.processes.parent_watch import end_group, release_streams
from trio_dask.security.credentials import Credentials, from_secrets
from trio_dask.settings_json import from_json

if TYPE_CHECKING:
    from trio_dask.deploy.program_runner import Stopper
    from trio_dask.nanny.service import Nanny


class _Reports:
    """Our stdout, which programs that we run do not get."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)

    def send(self, content: Mapping[str, Any]) -> None:
        try:
            os.write(self._fd, MARK + encode(content))
        except OSError:
            pass  # the launcher is gone, which the lifeline shows


def main() -> int:
    """Greet, and do what the launcher orders; gives the exit status."""
    reports = _Reports()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until there is a program that handles it
    reports.send({"greeting": _greeting()._asdict()})
    fd = os.dup(0)
    release_streams(0)
    lifeline = Lifeline(fd)
    first = lifeline.next_order()
    if first is None:
        return ExitStatus.STOPPED
    preparation = from_json(Preparation, first)
    if preparation.role == "sweep":
        found, left = sweep(preparation.run)
        reports.send({"found": found, "left": left})
        return ExitStatus.STOPPED
    if preparation.role in ("listen", "reach"):
        return _test_way_back(preparation, lifeline, reports)
    return _serve(preparation, lifeline, reports)


def _test_way_back(preparation: Preparation, lifeline: Lifeline, reports: _Reports) -> int:
    from trio_dask.deploy.ssh import way_back

    name_this_process(preparation.run)
    content = lifeline.next_order()
    if content is not None:
        order = from_json(Order, content["order"])
        if preparation.role == "listen":
            way_back.listen(order, lifeline, reports.send)
        else:
            way_back.reach(order, reports.send)
    return ExitStatus.STOPPED


def _greeting() -> Greeting:
    reached = os.environ.get("SSH_CONNECTION", "").split()
    return Greeting(
        package=__version__,
        python=sys.version.split()[0],
        executable=sys.executable,
        reached=reached[2] if len(reached) == 4 else "",
    )


def _serve(preparation: Preparation, lifeline: Lifeline, reports: _Reports) -> int:
    from trio_dask.deploy.program_runner import Stopper

    name_this_process(preparation.run)
    stopper = Stopper(patient=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stopper.install()
    lifeline.watch(stopper.ask, _end, silence_s=preparation.silence_s)
    program = _PROGRAMS[preparation.role]
    program.load()
    content = lifeline.orders.get()
    if content is None:
        return ExitStatus.STOPPED
    order = from_json(Order, content["order"])
    credentials = from_secrets(content["secrets"])
    os.environ.update(order.environment)
    return _run(partial(program.run, order, credentials, stopper, reports), order, stopper, reports)


def _end() -> None:
    end_descendants(os.getpid())
    end_group()


def _run(service: Callable[[], Awaitable[None]], order: Order, stopper: Stopper, reports: _Reports) -> int:
    from trio_dask.deploy.program_runner import run_program
    from trio_dask.processes.environment import raise_file_limit

    def failed(status: int, text: str) -> None:
        reports.send({"failure": text, "status": int(status)})

    raise_file_limit()
    try:
        log_file = _log_file(order)
    except OSError as exc:
        failed(ExitStatus.REFUSED, f"cannot write to the log directory {order.log_directory}: {exc.strerror}")
        return ExitStatus.REFUSED
    return run_program(
        order.label, service, stopper, log_format="records", log_file=log_file, origin=order.label, on_failure=failed
    )


def _log_file(order: Order) -> str | None:
    """The log file in the log directory, which is made. Raises OSError if nothing can be written there."""
    if order.log_directory is None:
        return None
    folder = os.path.expanduser(order.log_directory)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{order.label}.log")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    try:
        os.write(fd, b"\n")  # a full disk shows only now
    finally:
        os.close(fd)
    return path


def _load_scheduler() -> None:
    from trio_dask.deploy import program_runner
    from trio_dask.scheduler import service

    _ = program_runner, service


async def _scheduler(order: Order, credentials: Credentials | None, stopper: Stopper, reports: _Reports) -> None:
    import trio

    from trio_dask.deploy.program_runner import spare_garbage_collection
    from trio_dask.scheduler.service import run_scheduler

    assert hooks.scheduler_settings is not None
    settings = hooks.scheduler_settings(order.arguments)
    if order.contact_host is not None:
        settings = settings._replace(contact_host=order.contact_host)
    spare_garbage_collection()
    async with trio.open_nursery() as nursery:
        run = partial(run_scheduler, credentials=credentials)
        address = await nursery.start(run, settings)
        reports.send({"address": str(address)})


def _load_workers() -> None:
    from trio_dask.deploy import nanny_group, program_runner

    _ = nanny_group, program_runner


async def _workers(order: Order, credentials: Credentials | None, stopper: Stopper, reports: _Reports) -> None:
    from trio_dask.deploy.nanny_group import run_nannies

    assert hooks.worker_settings is not None
    settings = hooks.worker_settings(order.arguments)
    worker = settings[0].worker  # those of a host are alike
    each = {"nthreads": worker.nthreads, "memory_limit": worker.memory_limit_bytes}

    def changed(nannies: Sequence[Nanny]) -> None:
        registered = {one.name: one.address for one in nannies if one.address is not None}
        reports.send({"workers": registered, "of": len(nannies), "each": each})

    await run_nannies(settings, stopper, label=order.label, credentials=credentials, changed=changed)


class _RoleProgram(NamedTuple):
    """What a role imports before it has its order, and what it does then."""

    load: Callable[[], None]
    run: Callable[[Order, Credentials | None, Stopper, _Reports], Awaitable[None]]


_PROGRAMS: Mapping[str, _RoleProgram] = {
    "scheduler": _RoleProgram(_load_scheduler, _scheduler),
    "workers": _RoleProgram(_load_workers, _workers),
}


if __name__ == "__main__":
    # While an interpreter takes itself apart, which takes a second on a busy host, the lifeline's thread does not run.
    os._exit(main())
