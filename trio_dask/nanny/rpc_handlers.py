"""Where a nanny can be asked: what it is, how its worker is; and told to have another worker, or to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from trio_dask.comm import (
    Address,
    Connection,
    Endpoint,
    LinkLimits,
    addresses_of_interface,
    choose_advertised_host,
    parse_scheduler_address,
    serve,
)
from trio_dask.comm.port_range import listen_in_range
from trio_dask.comm.rpc_server import Command, admit_control, serve_control
from trio_dask.config import WorkerSettings
from trio_dask.errors import NoScheduler, UnavailableError, UsageError
from trio_dask.nanny.worker_process import Stop
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler_file import read_scheduler_file

if TYPE_CHECKING:
    from trio_dask.nanny.service import Nanny

__all__ = ["run_control"]

LOOK_UP_S = 1.0
"""A name server that does not answer must hold up nothing."""


async def run_control(nanny: Nanny, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled; `task_status.started` gives the address.

    Raises:
      OSError: it cannot listen where the settings say.
      UnavailableError: there is no such interface.
    """
    worker = nanny.settings.worker
    host = await _host(worker)
    failure: OSError | None = None
    async with trio.open_nursery() as nursery:

        async def listen(address: Address) -> list[Address]:
            bound: list[Address] = await nursery.start(_listen, nanny, address)
            return bound

        try:
            bound = await listen_in_range(host, nanny.settings.port_range or (0, 0), listen)
        except OSError as error:
            failure = error  # raised outside of the nursery, which would wrap it
        else:
            task_status.started(bound[0]._replace(host=await _towards_scheduler(bound[0].host, worker)))
    if failure is not None:
        raise failure


async def _listen(nanny: Nanny, address: Address, *, task_status: trio.TaskStatus[list[Address]]) -> None:
    commands = _commands(nanny)
    worker = nanny.settings.worker

    async def handle(connection: Connection) -> None:
        await serve_control(connection, commands)

    limits = LinkLimits(keepalive_s=worker.keepalive_s, silence_s=worker.silence_s, cleanup_s=worker.grace_s)
    await serve(
        Endpoint(address, limits),
        handle,
        identity=Hello(role="nanny", incarnation=nanny.incarnation, name=nanny.name),
        admit=admit_control(nanny.incarnation),
        task_status=task_status,
    )


def _commands(nanny: Nanny) -> Mapping[str, Command]:
    def identity(arguments: Mapping[str, Any]) -> Any:
        return nanny.identity()

    def status(arguments: Mapping[str, Any]) -> Any:
        return nanny.status()

    def restart(arguments: Mapping[str, Any]) -> Any:
        nanny.restart("rpc to its nanny: restart")

    def terminate(arguments: Mapping[str, Any]) -> Any:
        nanny.stop(Stop.DRAIN, "rpc to its nanny: terminate")

    return {"identity": identity, "status": status, "restart": restart, "terminate": terminate}


async def _host(worker: WorkerSettings) -> str:
    """What the worker listens on, as far as that can be known before there is a scheduler."""
    if worker.interface is not None:
        return addresses_of_interface(worker.interface)[0]
    return worker.host or await _towards_scheduler("", worker)


async def _towards_scheduler(bound: str, worker: WorkerSettings) -> str:
    """The host to tell others for a listener that is bound to this one."""
    with trio.move_on_after(LOOK_UP_S):
        return await trio.to_thread.run_sync(_way_to_scheduler, bound, worker, abandon_on_cancel=True)
    return choose_advertised_host(bound)


def _way_to_scheduler(bound: str, worker: WorkerSettings) -> str:
    """In a thread: a name may have to be looked up."""
    towards = ""
    try:
        address = worker.scheduler
        if worker.scheduler_file is not None:
            address = read_scheduler_file(worker.scheduler_file)
        if address:
            towards = parse_scheduler_address(address).host
    except (NoScheduler, UnavailableError, UsageError):
        pass  # the worker will say so
    return choose_advertised_host(bound, towards)
