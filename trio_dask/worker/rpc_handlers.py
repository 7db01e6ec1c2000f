"""The commands that programs and scripts can send to a worker, see `comm.rpc_server`."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from trio_dask.comm.rpc_server import Command
from trio_dask.config import WorkerSettings
from trio_dask.protocol.hello import Hello
from trio_dask.worker.drain_request import DrainRequest
from trio_dask.worker.task_context import WorkerHandle

RESTART_DRAIN_S = 2.0


def worker_commands(
    settings: WorkerSettings,
    handle: WorkerHandle,
    drain: DrainRequest,
    begin_afresh: Callable[[], Awaitable[None]] | None,
) -> Mapping[str, Command]:
    """The commands. A restart ends the process, or has the worker `begin_afresh` in one that it shares."""
    mine = Hello(role="worker")

    def identity(arguments: Mapping[str, Any]) -> Any:
        return {
            "type": "worker",
            "address": handle.address,
            "incarnation": handle.incarnation,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "package": mine.package,
            "python": mine.python,
            "name": str(handle.name),
            "nthreads": settings.nthreads,
            "memory_limit_bytes": settings.memory_limit_bytes or 0,
            "scheduler": handle.scheduler_address,
            "nanny": settings.nanny_address,
        }

    def status(arguments: Mapping[str, Any]) -> Any:
        running = "running" if handle.address else "connecting"
        return {"status": "leaving" if drain.reason else running, "keys": len(handle.data)}

    async def restart(arguments: Mapping[str, Any]) -> Any:
        if begin_afresh is None:
            drain.ask("restart", RESTART_DRAIN_S)
        else:
            await begin_afresh()

    def terminate(arguments: Mapping[str, Any]) -> Any:
        drain.ask("terminate")

    return {"identity": identity, "status": status, "restart": restart, "terminate": terminate}
