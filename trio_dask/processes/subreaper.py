"""The small process between a nanny and its worker, which leaves nothing behind of a worker that has ended.

    nanny ── guard ── worker ── what its tasks started

For Linux. The worker is forked from it before anything of the worker has begun, so that it runs no code of anybody
else, and has one thread. A worker that dies takes its process group along, but not what its tasks started in sessions
of their own. Being their subreaper, the guard inherits all such orphans, however deep they were, and ends them. It does
so as well when the nanny is gone, and nobody else is there to do it.

Signals to end, to stop and to go on are passed on to the worker. How the worker ended, and how much memory it had at
most, is reported.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

from trio_dask.processes.parent_watch import GRACE_S

__all__ = ["stand_guard"]

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT)
STOP_OR_GO_ON = {signal.SIGTSTP: signal.SIGSTOP, signal.SIGCONT: signal.SIGCONT}
"""What the worker's process group gets when the guard, which goes on, gets these."""
PATIENCE_S = GRACE_S + 0.2
SWEEP_S = 1.0
PR_SET_CHILD_SUBREAPER = 36


def stand_guard(parent_fd: int | None, report_fd: int, *, to_close: tuple[int, ...] = ()) -> None:
    """Go on in a child process of this one, in a session of its own; this one stays behind and watches it.

    Returns in the child alone. `to_close` are descriptors that the guard must not hold.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        return
    status = 1
    try:
        _release(to_close)
        status = _Guard(pid, parent_fd, report_fd).run()
    finally:
        # Handlers, buffers and modules of this interpreter are the worker's business.
        os._exit(status)


def _release(descriptors: tuple[int, ...]) -> None:
    """Hold no end of a pipe whose other end waits for the worker to close it."""
    empty = os.open(os.devnull, os.O_RDWR)
    os.dup2(empty, 1)
    os.dup2(empty, 2)
    for fd in (empty, *descriptors):
        os.close(fd)


class _Guard:
    def __init__(self, pid: int, parent_fd: int | None, report_fd: int) -> None:
        self._pid = pid
        self._parent_fd = parent_fd
        self._report_fd = report_fd

    def run(self) -> int:
        """Watch until the worker has ended, end what is left of it, and report. Gives our own exit status."""
        _become_subreaper()
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)
        for number in STOP_OR_GO_ON:
            signal.signal(number, self._stop_or_go_on)
        signal.signal(signal.SIGCHLD, self._bury_strangers)
        try:
            self._wait()
        finally:
            self._kill()  # its group outlives it, and its number is ours until it is reaped
            _, status, usage = os.wait4(self._pid, 0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _sweep()
        report = {"status": os.waitstatus_to_exitcode(status), "peak_bytes": usage.ru_maxrss * 1024}
        with suppress(OSError):  # nobody may be left to hear it
            os.write(self._report_fd, json.dumps(report).encode() + b"\n")
        return 0

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def _stop_or_go_on(self, number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, STOP_OR_GO_ON[signal.Signals(number)])

    def _wait(self) -> None:
        """Return when the worker has ended, or was to have ended."""
        own_fd = os.pidfd_open(self._pid)
        poller = select.poll()
        poller.register(0, 0)  # its end is told whatever one asks for; what comes before that is for the worker
        poller.register(own_fd, select.POLLIN)
        if self._parent_fd is not None:
            poller.register(self._parent_fd, select.POLLIN)
        if [fd for fd, _ in poller.poll()] == [0]:
            # The worker has seen it too, and leaves, if it can.
            poller.unregister(0)
            poller.poll(PATIENCE_S * 1000)

    def _kill(self) -> None:
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has not come to have a group; or only a zombie is in it
            os.kill(self._pid, signal.SIGKILL)

    def _bury_strangers(self, number: int, frame: FrameType | None) -> None:
        """Orphans that we have inherited and that have ended are nobody else's to reap."""
        with suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if found.si_pid == self._pid:
                    return
                os.waitpid(found.si_pid, 0)


def _become_subreaper() -> None:
    """Inherit every descendant whose parent dies."""
    import ctypes  # the worker does not have to wait for it

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _sweep() -> None:
    """Kill every child of ours, and those that we inherit from them, until there is none."""
    give_up_at = time.monotonic() + SWEEP_S
    while time.monotonic() < give_up_at:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        for pid in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _children() -> Iterator[int]:
    own = str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[1].decode() == own:
                    yield int(name)
