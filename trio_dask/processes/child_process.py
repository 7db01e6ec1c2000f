"""The parent's side of a started process: start it, learn that it is ready, learn of its end, leave nothing behind.

The child is `child_main.py`, run by its path, or forked from a process that runs it (see `fork_server`). The first line
of its stdin says which program to run and how; after that, stdin carries orders, and its end tells the child to leave.
The child reports on an inherited descriptor, a line of JSON at a time: its process id, then what its program has to
tell. It leads a session of its own, so that Ctrl-C in a terminal reaches the parent alone, and so that it can be killed
with all it started. A `guarded` one has a small process of ours between it and us (see `subreaper`), for programs that
run code of users, which may start anything.

`docs/design/processes.md` lists what ends a process, and when.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from trio_dask.errors import ClusterError
from trio_dask.processes.child_context import ChildLog, Entry, Program
from trio_dask.processes.exit_report import ChildEnd, LastWords
from trio_dask.processes.exit_watchdog import end_descendants
from trio_dask.processes.job_control import suspended_with_us
from trio_dask.processes.spawn import Process, Start, Starter, start_by_exec, wait_for_end
from trio_dask.processes.stderr_records import DumpFilter, readable
from trio_dask.security.credentials import Credentials, to_secrets

log = logging.getLogger("trio_dask.nanny")
dumps = logging.getLogger("trio_dask.nanny.dumps")

DRAIN_S = 0.2
SWEEP_S = 1.0
ABORT_S = 1.0
REAP_S = 5.0
"""The kernel ends a killed process at once, unless the process waits for a device that does not answer."""
MAX_LINE_BYTES = 64 * 1024
GUARDS = hasattr(os, "pidfd_open")
"""On other systems than Linux a guard could do no more than a process group."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to start: `program`, a function that its module has under its name, with settings that JSON allows.

    `credentials` are for the child alone: they travel through the pipe that is its stdin.

    The child has to report something within `start_timeout_s`, and to end within `grace_s` once its stdin has ended. It
    inherits the descriptors `inherit` under the same numbers, and our environment with `environment` on top. `stderr`
    gets what the child writes to its stderr, except the dump of a crash, which goes to our log. `start` makes the
    process.
    """

    name: str
    program: Entry
    settings: Mapping[str, Any]
    credentials: Credentials | None = field(default=None, repr=False)
    inherit: Sequence[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    guarded: bool = False
    log: ChildLog = field(default_factory=ChildLog)
    start_timeout_s: float = 60.0
    grace_s: float = 1.0
    stderr: Callable[[bytes], object] = lambda data: None
    start: Starter = start_by_exec


def pass_on(data: bytes) -> None:
    """Write what a child wrote to its stderr to ours, wherever that goes (a notebook's is not a descriptor)."""
    try:
        sys.stderr.write(data.decode(errors="replace"))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # our own stderr is closed; the last words are kept all the same


OnReport = Callable[["Child", Mapping[str, Any]], object]


async def run_child(
    spec: ChildSpec,
    on_report: OnReport = lambda child, report: None,
    on_start: Callable[[Child], object] = lambda child: None,
) -> ChildEnd:
    """Start a child, call `on_report` with each report, and wait for its end; cancelled, end it within its grace.

    It calls `on_start` as soon as there is a process.

    Raises:
      ClusterError: it could not even be started.
    """
    guarded = spec.guarded and GUARDS
    program = Program.of(spec.program)
    with ExitStack() as theirs, ExitStack() as ours:

        def pipe(*, to_child: bool) -> tuple[int, int]:
            """The child's end, which is closed on leaving the block, and ours, which stays if there is a child."""
            end, other = os.pipe() if to_child else reversed(os.pipe())
            theirs.callback(os.close, end)
            ours.callback(os.close, other)
            return end, other

        try:
            stdin, stdin_end = pipe(to_child=True)
            stderr, stderr_end = pipe(to_child=False)
            report_fd, report_end = pipe(to_child=False)
            kill_fd, kill_end = pipe(to_child=True)
            process = await spec.start(
                Start(
                    name=spec.name,
                    stdin=stdin,
                    stderr=stderr,
                    report_fd=report_fd,
                    kill_fd=kill_fd,
                    inherit=tuple(spec.inherit),
                    environment=spec.environment,
                    guarded=guarded,
                )
            )
        except OSError as exc:
            raise ClusterError(f"{spec.name} could not be started: {exc.strerror or exc}") from exc
        ours.pop_all()
    child = Child(spec, process, stdin_end, stderr_end, report_end, kill_end, on_report)
    on_start(child)
    orders = {
        "program": program,
        "settings": spec.settings,
        "secrets": to_secrets(spec.credentials),
        "name": spec.name,
        "guarded": guarded,
        "log": spec.log,
        "path": _search_path(),
        "parent_pid": os.getpid(),
        "report_fd": report_fd,
        "kill_fd": kill_fd,
    }
    with suspended_with_us(child):
        return await child.run(orders)


def _search_path() -> list[str]:
    """Where the child finds the modules that we find. An empty entry means the folder we are in now, if that exists."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed, and nothing can be found there
        here = ""
    return [entry or here for entry in sys.path if entry or here]


class _Lines:
    """A stream that comes in pieces, and its lines; a line ends at `max_bytes` at the latest."""

    def __init__(self, fd: int, max_bytes: float = math.inf) -> None:
        self.stream = trio.lowlevel.FdStream(fd)
        self._max_bytes = max_bytes
        self.rest = b""
        """The beginning of a line that is not whole yet."""

    async def receive(self) -> tuple[bytes, list[bytes]]:
        """The next piece, empty at the end, and the lines that it completes."""
        data = bytes(await self.stream.receive_some())
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > self._max_bytes:
            lines, self.rest = [*lines, self.rest], b""
        return data, lines


class Child:
    """A process that was started, perhaps with a guard. `pid` runs the program; 0 until it has reported that."""

    def __init__(
        self,
        spec: ChildSpec,
        process: Process,
        stdin_end: int,
        stderr_end: int,
        report_end: int,
        kill_end: int,
        on_report: OnReport,
    ) -> None:
        self.pid = 0
        self._spec = spec
        self._guarded = spec.guarded and GUARDS
        self._process = process
        self._stdin = trio.lowlevel.FdStream(stdin_end)
        self._stderr = _Lines(stderr_end, MAX_LINE_BYTES)
        self._reports = _Lines(report_end)
        self._kill_end: int | None = kill_end
        self._on_report = on_report
        self._filter = DumpFilter(spec.stderr, self._log_dump)
        self._scope = trio.CancelScope()
        self._started = trio.Event()
        self._guard_has_reported = trio.Event()
        self._late = False
        self._has_orders = False
        self._reason = ""
        self._failure = ""
        self._hopeless = False
        self._status: int | None = None
        self._peak_bytes = 0
        self._tail: deque[str] = deque(maxlen=LastWords.MOST_LINES)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process that runs the program."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    def stop(self, number: int, reason: str) -> None:
        """Have the program act as on this signal, and log this reason."""
        self._order({"signal": number, "reason": reason})

    def suspend(self) -> None:
        """Stop it for a while, with what it has started in its process group. Safe in a signal handler."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it. Safe in a signal handler."""
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: int) -> None:
        if self._guarded:  # the guard knows its worker, and passes this on
            self.send_signal(signal.SIGTSTP if number == signal.SIGSTOP else number)
        elif self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def leave(self, reason: str = "") -> None:
        """End its stdin: it leaves within its grace, or is killed."""
        self._reason = self._reason or reason
        self._scope.cancel()

    def _order(self, order: Mapping[str, Any]) -> None:
        """Write to its stdin, once it has been told which program to run."""
        if self._has_orders and self._process.returncode is None:
            try:
                os.write(self._stdin.fileno(), json.dumps(order).encode() + b"\n")
            except OSError:
                pass  # it is ending; or it has not read what it was told before, and will not read this either

    def kill(self) -> None:
        """End it now, and what it started."""
        self._close_kill_pipe()
        if not self._guarded:
            self._process.send_signal(signal.SIGKILL)

    async def run(self, orders: Mapping[str, Any]) -> ChildEnd:
        """Tell it which program to run, and wait until it has ended."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._listen(nursery)
                    nursery.start_soon(self._limit_start)
                    await self._send_orders(orders)
                    await self._wait_for_end()
                    nursery.cancel_scope.cancel()
        finally:
            try:
                with trio.move_on_after(self._spec.grace_s + SWEEP_S + REAP_S, shield=True):
                    async with trio.open_nursery() as nursery:
                        self._listen(nursery)
                        await self._end()
                        nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
            finally:
                self._close()
        return ChildEnd(
            name=self._spec.name,
            status=self._exit_status(),
            started=self._started.is_set(),
            late=self._late,
            failure=self._failure,
            hopeless=self._hopeless,
            words=LastWords.of(self._tail),
            peak_bytes=self._peak_bytes,
        )

    async def _send_orders(self, orders: Mapping[str, Any]) -> None:
        try:
            await self._stdin.send_all(json.dumps(orders).encode() + b"\n")
            self._has_orders = True
        except trio.BrokenResourceError:
            pass  # it is dead already

    async def _limit_start(self) -> None:
        with trio.move_on_after(self._spec.start_timeout_s):
            await self._started.wait()
            return
        self._late = True
        self.send_signal(signal.SIGABRT)  # it dumps its stacks on that
        await trio.sleep(ABORT_S)
        self.kill()

    # ------------------------------------------------------------------------------------------ what it reports

    def _listen(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._read_stderr)
        nursery.start_soon(self._read_reports)

    async def _read_stderr(self) -> None:
        data = b" "
        while data:
            data, lines = await self._stderr.receive()
            self._filter.feed(data)
            for line in lines:
                self._remember(line)

    def _remember(self, line: bytes) -> None:
        self._tail += (line[: 4 * LastWords.LONGEST] for line in readable(line).splitlines() or [""])

    def _log_dump(self, lines: Sequence[str]) -> None:
        """Log the dump; whatever looks after this child logs the death itself, in one line."""
        dumps.info("%s", lines[0], extra={"origin": self._spec.log.origin, "dump": "\n".join(lines[1:])})

    async def _read_reports(self) -> None:
        data = b" "
        while data:
            data, lines = await self._reports.receive()
            for line in lines:
                try:
                    self._take_report(json.loads(line))
                except ValueError:
                    log.warning("%s sent a report that cannot be understood: %.60r", self._spec.name, line)

    def _take_report(self, report: dict[str, Any]) -> None:
        if "pid" in report:
            self.pid = report.pop("pid")
        if "status" in report:
            self._status = report.pop("status")
            self._guard_has_reported.set()
        self._peak_bytes = report.pop("peak_bytes", self._peak_bytes)
        self._failure = report.pop("failure", self._failure)
        self._hopeless = report.pop("hopeless", self._hopeless)
        if report:
            self._started.set()
            self._on_report(self, report)

    # ------------------------------------------------------------------------------------------ its end

    async def _wait_for_end(self) -> None:
        """Wait until the process has ended, without reaping it: its number stays taken until its group is swept."""
        if not await wait_for_end(self._process.pid):
            await self._process.wait()

    async def _end(self) -> None:
        self._order({"reason": self._reason or "the parent process stops"})
        self._stdin.close()
        with trio.move_on_after(self._spec.grace_s) as grace:
            await self._wait_for_end()
        if self._guarded and not grace.cancelled_caught:
            await self._replace_guard()
        self._close_kill_pipe()
        if self._guarded:  # it has more to sweep than we can see
            with trio.move_on_after(SWEEP_S):
                await self._wait_for_end()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left; macOS refuses to signal a group of which only a zombie is left
        await self._process.wait()

    async def _replace_guard(self) -> None:
        """The guard has ended. If it was killed before its worker, end what can be found of the worker."""
        with trio.move_on_after(DRAIN_S):
            await self._guard_has_reported.wait()
            return
        if self.pid:
            end_descendants(self.pid)

    def _close_kill_pipe(self) -> None:
        if self._kill_end is not None:
            os.close(self._kill_end)
            self._kill_end = None

    def _close(self) -> None:
        self._stdin.close()
        self._close_kill_pipe()
        if self._stderr.rest:
            self._remember(self._stderr.rest)
            self._filter.feed(b"\n")
        self._filter.end()
        self._stderr.stream.close()
        self._reports.stream.close()
        if self._process.returncode is None:
            log.warning("%s (pid %d) was killed, but the kernel does not end it", self._spec.name, self._process.pid)

    def _exit_status(self) -> int:
        status = self._process.returncode if self._status is None else self._status
        return -signal.SIGKILL if status is None else status
