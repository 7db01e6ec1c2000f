"""The child's side of a started process: it ends when its parent is done with it, or dead.

The parent holds the other end of our stdin. End of file there means: leave in good order, and should that take longer
than `GRACE_S`, end at once with the process group. A thread watches, because a blocked event loop must not keep us
alive. Before the end come orders, a line of JSON each: `signal`, a number to act on like that signal, and `reason`,
why, or why the end is near. A parent that died gives none.

A thread cannot run while foreign code holds the interpreter lock. On Linux a second pipe, the kill pipe, makes the
kernel end the whole process group the moment the parent closes it or is gone, whatever any thread is doing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


GRACE_S = 0.5
PARENT_ENDED = "the parent process ended"


def open_parent(pid: int) -> int | None:
    """A descriptor that is readable once our parent has ended, if the system has such; exits if it has ended.

    The other ends of our pipes do not show that: a process that the parent forked may hold them open after its death.
    """
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError):  # it is gone, or this is not Linux
        fd = None
    # Check only now: the descriptor may be of another process that got the number of a dead parent.
    if os.getppid() != pid:
        sys.exit(0)
    return fd


def release_streams(*numbers: int) -> None:
    """Replace these of the standard streams by empty ones."""
    empty = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(empty, number)
    os.close(empty)


def end_group() -> None:
    """Kill this process, and if it leads a process group, everything in that group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class StdinWatch:
    """Watches `fd` and, if given, `parent_fd` (see `open_parent`). `already_read` was read from `fd` before.

    It calls `end` when time is up.
    """

    def __init__(
        self, fd: int, parent_fd: int | None = None, already_read: bytes = b"", end: Callable[[], object] = end_group
    ) -> None:
        self._fd = fd
        self._parent_fd = parent_fd
        self._already_read = already_read
        self._end = end

    @classmethod
    def of_stdin(cls, parent_fd: int | None, already_read: bytes) -> StdinWatch:
        """Take stdin away from the program, which reads an empty one from now on, to watch it."""
        fd = os.dup(0)
        release_streams(0)
        return cls(fd, parent_fd, already_read)

    def start(self, ask: Callable[[str, int | None], None], *, grace_s: float = GRACE_S) -> threading.Thread:
        """Call `ask`, in another thread, with the reason and the number of each signal that is ordered.

        At an order to end, and at the end of file, call it without a number; `grace_s` later end the process group.
        """

        def wait() -> None:
            ask(self._pass_orders_on(ask), None)
            time.sleep(grace_s)
            self._end()

        thread = threading.Thread(target=wait, name="stdin watch", daemon=True)
        thread.start()
        return thread

    def _pass_orders_on(self, ask: Callable[[str, int | None], None]) -> str:
        """Pass orders on until the end; returns the reason for that.

        The order to end is the end: another process that the parent has forked may keep the pipe open for long.
        """
        data, rest = self._already_read, b""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        if self._parent_fd is not None:
            poller.register(self._parent_fd, select.POLLIN)
        while True:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order: dict[str, Any] = json.loads(line)
                if "signal" not in order:
                    return str(order["reason"])
                ask(order["reason"], order["signal"])
            ready = [fd for fd, _ in poller.poll()]
            data = os.read(self._fd, 4096) if self._fd in ready else b""
            if not data:
                return PARENT_ENDED


def arm_kill_pipe(fd: int) -> None:
    """Have the kernel kill this process group when the other end of the pipe `fd` is closed; elsewhere do nothing."""
    if fcntl is None or not hasattr(fcntl, "F_SETSIG") or os.getpgrp() != os.getpid():
        return
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    # The other end may have been closed before the kernel knew which group to signal.
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if poller.poll(0):
        end_group()
