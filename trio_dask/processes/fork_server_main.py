"""The fork server itself: load what its children need, then fork on request (see `fork_server`).

It never has a second thread, because a fork copies the locks that such a thread holds, but not the thread. That is why
it runs no Trio.
"""

from __future__ import annotations

import gc
import os
import select
import socket
from collections.abc import Callable

from trio_dask.processes import child_main
from trio_dask.processes.child_context import ChildContext, Program
from trio_dask.processes.clone_parent import fork_sibling
from trio_dask.processes.environment import raise_file_limit
from trio_dask.processes.fork_requests import Request, answer
from trio_dask.processes.parent_watch import release_streams


def serve(child: ChildContext) -> int:
    """Serve until the launcher is done with us. A forked process begins again as another child."""
    release_streams(1)  # so that a reader of the launcher's output sees its end; a request brings that output
    raise_file_limit()  # the launcher may have done so, and hand over large numbers
    Program(*child.settings["load"]).load()()
    gc.freeze()  # a later collection of garbage need not look at what was loaded, nor copy it
    child.report({"ready": True})
    channel = socket.socket(fileno=child.settings["fd"])
    ends = [0] if child.parent_fd is None else [0, child.parent_fd]
    request = wait_for_fork(channel, ends, _fork)
    if request is None:
        os._exit(0)
    channel.detach()  # its number is about to mean something else
    request.apply()
    return child_main.main()


def wait_for_fork(channel: socket.socket, ends: list[int], fork: Callable[[], int]) -> Request | None:
    """Fork for each request. Gives the request in a forked process, None once the launcher is done with us.

    The launcher is done when one of `ends` is readable or `channel` has ended.
    """
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    for fd in ends:
        poller.register(fd, select.POLLIN)
    try:
        while [fd for fd, _ in poller.poll()] == [channel.fileno()]:
            try:
                request = Request.receive(channel)
                if request is None:
                    return None
                try:
                    pid = fork()
                except OSError:
                    request.close()
                    raise
            except OSError as exc:
                answer(channel, error=exc.strerror or str(exc))
                continue
            if not pid:
                answer(channel, pid=os.getpid())
                return request
            request.close()
    except OSError:  # the launcher is gone
        pass
    return None


def _fork() -> int:
    pid = fork_sibling()
    if not pid:
        # Before the launcher hears of us: the server's group, in which we are still, is killed when the server ends.
        os.setsid()
    return pid
