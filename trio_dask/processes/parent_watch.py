"""The child's side of a started process: it lives as long as its stdin.

End of file on stdin means that whoever started us is done with us, or is dead: leave in good order, and should that
take longer than `GRACE_S`, end at once with everything we started ourselves. The watching stands in a thread, because a
blocked event loop must not keep us alive. What comes before the end are orders, a line of JSON each: `signal`, to be
taken like a signal with this number, and `reason`, why that is, or why the end is near. A parent that died gives none.

A thread cannot run while foreign code holds the interpreter lock. On Linux a second pipe, the leash, makes the kernel
end the whole process group the moment the parent is gone, whatever any thread is doing.
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

__all__ = ["GRACE_S", "Lifeline", "end_group", "open_parent", "open_pid", "put_on_leash"]

GRACE_S = 0.5
PARENT_ENDED = "the parent process ended"


def open_pid(pid: int) -> int | None:
    """A descriptor that is readable once this process has ended, where the system has such a thing."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # it is gone, or this is not Linux
        return None


def open_parent(pid: int) -> int | None:
    """The same for our parent. If that is gone already, this process ends."""
    fd = open_pid(pid)
    # Only now: what was opened above may be another process that got the number of a dead parent.
    if os.getppid() != pid:
        sys.exit(0)
    return fd


class Lifeline:
    """Stdin, taken away from the program (which reads an empty one from now on) and watched for its end.

    `parent_fd`, from `open_parent`, is watched as well: a process that the parent forked may hold the other end of our
    stdin open after the parent's death. `begun` has been read from stdin before.
    """

    def __init__(self, parent_fd: int | None = None, begun: bytes = b"") -> None:
        self._begun = begun
        self._fd = os.dup(0)
        self._parent_fd = parent_fd
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)

    def watch(self, ask: Callable[[str, int | None], None], *, grace_s: float = GRACE_S) -> None:
        """Call `ask`, in another thread, with the reason and the number of each signal that is ordered.

        Once the lifeline has ended, call it without a number; `grace_s` later end the process group.
        """

        def wait() -> None:
            ask(self._wait_for_end(ask), None)
            time.sleep(grace_s)
            end_group()

        threading.Thread(target=wait, name="lifeline", daemon=True).start()

    def _wait_for_end(self, ask: Callable[[str, int | None], None]) -> str:
        """Pass on what is ordered until the end; gives the reason for that."""
        reason, data, rest = PARENT_ENDED, self._begun, b""
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        if self._parent_fd is not None:
            poller.register(self._parent_fd, select.POLLIN)
        while True:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order: dict[str, Any] = json.loads(line)
                if "signal" in order:
                    ask(order["reason"], order["signal"])
                else:
                    reason = order["reason"]
            ready = [fd for fd, _ in poller.poll()]
            data = os.read(self._fd, 4096) if self._fd in ready else b""
            if not data:
                return reason


def put_on_leash(fd: int) -> None:
    """Have the kernel kill this process group when the other end of the pipe `fd` is closed; elsewhere do nothing."""
    if fcntl is None or not hasattr(fcntl, "F_SETSIG") or os.getpgrp() != os.getpid():
        return
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    # The other end may have been closed before the kernel knew whom to tell.
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if poller.poll(0):
        end_group()


def end_group() -> None:
    """Kill this process, and with it, if it leads a process group, everything in that group."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
