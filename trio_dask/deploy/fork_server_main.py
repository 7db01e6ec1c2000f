"""The fork server itself: load what a worker needs, then fork whenever asked (see `processes.fork_server`).

It never has a second thread, for none would be in what is forked, though its locks would. That is why it runs no Trio.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from trio_dask.deploy.program_runner import raise_file_limit
from trio_dask.processes.clone_parent import fork_beside
from trio_dask.processes.fork_requests import Request
from trio_dask.processes.parent_watch import open_parent, put_on_leash

__all__ = ["serve"]

LOADED = (
    "ctypes",
    "faulthandler",
    "trio_dask.deploy.program_runner",
    "trio_dask.deploy.child_services",
    "trio_dask.deploy.worker_program",
    "trio_dask.processes.subreaper",
    "trio_dask.worker.drain_request",
    "trio_dask.worker.service",
)


def serve(orders: Mapping[str, Any]) -> None:
    """Serve until the launcher is done with us. Returns only in the processes that are forked, at their beginning."""
    parent_fd = open_parent(orders["parent_pid"])
    report_fd: int = orders["report_fd"]
    os.set_inheritable(report_fd, False)
    os.set_inheritable(orders["leash_fd"], False)
    put_on_leash(orders["leash_fd"])
    _release_stdout()
    raise_file_limit()  # the launcher may have done so, and hand over large numbers
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # who collects garbage later on need not look at this, nor copy it
    with suppress(OSError):
        os.write(report_fd, json.dumps({"pid": os.getpid(), "ready": True}).encode() + b"\n")
    channel = socket.socket(fileno=orders["settings"]["fd"])
    poller = select.poll()
    poller.register(0, 0)  # the lifeline: nothing is said there, but its end is told
    poller.register(channel, select.POLLIN)
    if parent_fd is not None:
        poller.register(parent_fd, select.POLLIN)
    while [fd for fd, _ in poller.poll()] == [channel.fileno()]:
        request = _fork(channel)
        if request is not None:
            channel.detach()  # its number is about to mean something else
            request.become()
            return
    os._exit(0)


def _release_stdout() -> None:
    """Let whoever reads the launcher's output see its end; what is forked gets the one of its own time."""
    empty = os.open(os.devnull, os.O_RDWR)
    os.dup2(empty, 1)
    os.close(empty)


def _fork(channel: socket.socket) -> Request | None:
    """Do what is asked for next. In the process that is forked then, give the request."""
    try:
        request = Request.receive(channel)
        if request is None:
            os._exit(0)
        try:
            pid = fork_beside()
        except OSError:
            request.close()
            raise
    except OSError as exc:
        _tell(channel, {"error": exc.strerror or str(exc)})
        return None
    if pid:
        request.close()
        return None
    # Whoever is told of us finds us outside of the server's group, which is killed when the server ends.
    os.setsid()
    _tell(channel, {"pid": os.getpid()})
    return request


def _tell(channel: socket.socket, content: Mapping[str, Any]) -> None:
    try:
        channel.send(json.dumps(content).encode())
    except OSError:  # the launcher is gone
        os._exit(0)
