"""The commands that programs and scripts can send to a scheduler, see `comm.rpc_server`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import trio

from trio_dask.comm.look_back import look_back
from trio_dask.comm.rpc_server import Command
from trio_dask.errors import UsageError
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler.core import SchedulerCore


def scheduler_commands(
    core: SchedulerCore,
    mine: Hello,
    *,
    address: Callable[[], str],
    restart: Callable[[str], None],
    retire_idle: Callable[[Sequence[str]], bool],
    stop: Callable[[str], None],
) -> Mapping[str, Command]:
    """The commands. `restart` has all workers begin afresh, `stop` ends the scheduler; both take a reason.

    `retire_idle` has workers leave if they have nothing to do, and says whether they do.
    """

    def identity(arguments: Mapping[str, Any]) -> Any:
        return scheduler_identity(core, mine, address())

    def status(arguments: Mapping[str, Any]) -> Any:
        return {"status": "running", **core.counts()}

    async def describe(arguments: Mapping[str, Any]) -> Any:
        return {**identity(arguments), **await overview(core)}

    return {
        "demand": lambda arguments: core.demand(trio.current_time()),
        "identity": identity,
        "look_back": look_back,
        "overview": describe,
        "status": status,
        "restart": lambda arguments: restart("requested by rpc"),
        "retire_idle": lambda arguments: retire_idle(addresses_in(arguments)),
        "terminate": lambda arguments: stop("requested by rpc"),
    }


def addresses_in(arguments: Mapping[str, Any]) -> list[str]:
    """The addresses of workers that a command was given. Raises `UsageError` if there are none."""
    addresses = arguments.get("addresses")
    if not isinstance(addresses, list | tuple):
        raise UsageError("give the addresses of workers")
    return [str(address) for address in cast("Sequence[object]", addresses)]


def scheduler_identity(core: SchedulerCore, mine: Hello, address: str) -> dict[str, Any]:
    """What this scheduler is."""
    return {
        "type": "scheduler",
        "address": address,
        "incarnation": mine.incarnation,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "package": mine.package,
        "python": mine.python,
        "workers": core.worker_addresses(),
    }


async def overview(core: SchedulerCore) -> dict[str, Any]:
    """A picture of the whole cluster, for people, made while the scheduler goes on with its work."""
    steps = core.overview(trio.current_time)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            picture: dict[str, Any] = end.value
            return picture
        await trio.lowlevel.checkpoint()
