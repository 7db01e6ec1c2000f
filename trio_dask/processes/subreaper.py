"""The guard: a small process between a nanny and its worker, so that a worker that has ended leaves nothing behind.

    nanny ── guard ── worker ── what its tasks started

For Linux. The guard forks the worker before anything of the worker has begun, so that it runs no foreign code and has
one thread. A worker that dies takes its process group along, but not what its tasks started in sessions of their own.
The guard is their subreaper: it inherits all such orphans, however deep they were, and ends them. It does the same when
the nanny is gone.

The guard passes on to the worker the signals that end, stop and continue a process. It reports how the worker ended,
and how much memory the worker had at most.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Protocol

from trio_dask.processes.parent_watch import release_streams
from trio_dask.procfs import children_of

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT)
STOP_OR_CONTINUE = {signal.SIGTSTP: signal.SIGSTOP, signal.SIGCONT: signal.SIGCONT}
"""What the worker's process group gets when the guard, which goes on, gets these."""
SWEEP_S = 1.0
PR_SET_CHILD_SUBREAPER = 36


def fork_under_guard(parent_fd: int | None, report_fd: int, *, to_close: tuple[int, ...] = ()) -> None:
    """Go on in a child process of this one, in a session of its own; this process stays behind and guards it.

    Returns in the child alone. `to_close` are descriptors that the guard must not hold.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        return
    status = 1
    try:
        _release(to_close)
        _become_subreaper()
        worker = _Worker(pid)
        _handle_signals(worker)
        Guard(worker, parent_fd, report_fd).run()
        status = 0
    finally:
        # Handlers, buffers and modules of this interpreter are the worker's business.
        os._exit(status)


def _release(descriptors: tuple[int, ...]) -> None:
    """Close our ends of the pipes: the other ends wait until the worker has closed its own."""
    release_streams(0, 1, 2)
    for fd in descriptors:
        os.close(fd)


def _become_subreaper() -> None:
    """Inherit every descendant whose parent dies."""
    import ctypes  # the worker does not have to wait for it

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Guarded(Protocol):
    """A process that a guard looks after. `fd` is readable once it has ended."""

    fd: int

    def kill(self) -> None:
        """Kill it and its process group, which may outlive it."""
        ...

    def reap(self) -> tuple[int, int]:
        """Wait for its end. Gives its status as `subprocess` has it, and the most memory it had, in bytes."""
        ...


class Guard:
    """Watches a worker and the parent of both; `parent_fd` is readable once that has ended."""

    def __init__(
        self, worker: Guarded, parent_fd: int | None, report_fd: int, sweep: Callable[[], object] | None = None
    ) -> None:
        self._worker = worker
        self._parent_fd = parent_fd
        self._report_fd = report_fd
        self._sweep = sweep or _sweep

    def run(self) -> None:
        """Wait until the worker or the parent has ended, end what is left of the worker, and report."""
        try:
            poller = select.poll()
            poller.register(self._worker.fd, select.POLLIN)
            if self._parent_fd is not None:
                poller.register(self._parent_fd, select.POLLIN)
            poller.poll()
        finally:
            self._worker.kill()
            status, peak_bytes = self._worker.reap()
            self._sweep()
        with suppress(OSError):  # the parent may be gone
            os.write(self._report_fd, json.dumps({"status": status, "peak_bytes": peak_bytes}).encode() + b"\n")


class _Worker:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.fd = os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)

    def kill(self) -> None:
        self.signal_group(signal.SIGKILL)
        self.signal(signal.SIGKILL)  # it may not lead a group yet; its number is ours until it is reaped

    def reap(self) -> tuple[int, int]:
        _, status, usage = os.wait4(self._pid, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024

    def reap_orphans(self) -> None:
        """Reap the orphans that we have inherited: no other process does."""
        with suppress(ChildProcessError):
            while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if found.si_pid == self._pid:
                    return
                os.waitpid(found.si_pid, 0)


def _handle_signals(worker: _Worker) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        worker.signal(number)

    def stop_or_continue(number: int, frame: FrameType | None) -> None:
        worker.signal_group(STOP_OR_CONTINUE[signal.Signals(number)])

    def child_ended(number: int, frame: FrameType | None) -> None:
        worker.reap_orphans()

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    for number in STOP_OR_CONTINUE:
        signal.signal(number, stop_or_continue)
    signal.signal(signal.SIGCHLD, child_ended)


def _sweep() -> None:
    """Kill every child of ours, and those that we inherit from them, until there is none."""
    give_up_at = time.monotonic() + SWEEP_S
    while time.monotonic() < give_up_at:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        for pid in children_of(os.getpid()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
