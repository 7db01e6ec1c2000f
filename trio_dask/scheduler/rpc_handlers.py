"""The commands that programs and scripts can send to a scheduler, see `comm.rpc_server`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from trio_dask.comm.rpc_server import Command
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler.cluster_overview import overview
from trio_dask.scheduler.core import SchedulerCore


def scheduler_commands(
    core: SchedulerCore,
    mine: Hello,
    *,
    address: Callable[[], str],
    restart: Callable[[str], object],
    stop: Callable[[str], object],
) -> Mapping[str, Command]:
    """The commands. `restart` has all workers begin afresh, `stop` ends the scheduler; both take a reason."""

    def identity(arguments: Mapping[str, Any]) -> Any:
        return {
            "type": "scheduler",
            "address": address(),
            "incarnation": mine.incarnation,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "package": mine.package,
            "python": mine.python,
            "workers": core.worker_addresses(),
        }

    def status(arguments: Mapping[str, Any]) -> Any:
        return {"status": "running", **core.counts()}

    async def describe(arguments: Mapping[str, Any]) -> Any:
        return {**identity(arguments), **await overview(core)}

    def restart_all(arguments: Mapping[str, Any]) -> Any:
        restart("requested by rpc")

    def terminate(arguments: Mapping[str, Any]) -> Any:
        stop("requested by rpc")

    return {
        "identity": identity,
        "overview": describe,
        "status": status,
        "restart": restart_all,
        "terminate": terminate,
    }
