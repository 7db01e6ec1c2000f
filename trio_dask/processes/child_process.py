"""The parent's side of a started process: start it, know when it is ready, hear of its end, leave nothing.

The child is `deploy/child_main.py`, run by its path, or forked from a process that runs it (see `fork_server`). Its
first line of stdin says which program to be and how; stdin then stays open as its lifeline. It reports on an inherited
descriptor, a line of JSON at a time: its process id, then what its program has to tell. It leads a session of its own,
so that Ctrl-C in a terminal reaches the parent alone, and so that it can be killed with all it started. A `guarded` one
has a small process of ours between it and us (see `subreaper`), for programs that run code of users, which may start
anything.
"""

from __future__ import annotations

import json
import logging
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
from trio_dask.processes.exit_report import LastWords, describe_end
from trio_dask.processes.spawn import Process, Start, Starter, start_by_exec, wait_for_end
from trio_dask.processes.stderr_records import DumpFilter, spoken

__all__ = ["Child", "ChildEnd", "ChildSpec", "Heard", "run_child"]

log = logging.getLogger("trio_dask.nanny")
dumps = logging.getLogger("trio_dask.nanny.dumps")

DRAIN_S = 0.2
SWEEP_S = 1.0
ABORT_S = 1.0
MAX_LINE_BYTES = 64 * 1024
GUARDS = hasattr(os, "pidfd_open")
"""Elsewhere than on Linux a guard could not do more than a process group does."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What to start: the function `program` (`module:function`: `child_services`), with settings that JSON allows.

    It has to report something within `start_timeout_s`. Once its lifeline is cut it has `grace_s` to end. `inherit` are
    descriptors that the child receives under the same numbers; `environment` comes on top of ours. `stderr` is called
    with what the child writes to its stderr, save the dump of a crash, which goes to our log; `quiet` keeps back all
    lines of its log that are no warnings. `origin` stands before these lines, or, with `records`, they are for
    `read_record`. `start` makes the process.
    """

    name: str
    program: str
    settings: Mapping[str, Any]
    inherit: Sequence[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    guarded: bool = False
    quiet: bool = True
    debug: bool = False
    origin: str = ""
    records: bool = False
    start_timeout_s: float = 60.0
    grace_s: float = 1.0
    stderr: Callable[[bytes], object] = lambda data: None
    start: Starter = start_by_exec


@dataclass(frozen=True, kw_only=True)
class ChildEnd:
    """How a child ended.

    `status` is as `subprocess` has it, negative for a signal. `started`: it had reported something. `late`: it had not
    when its time for that was over. `failure` is what the program itself says went wrong, `hopeless` that the next one
    would fail in the same way, `peak_bytes` the most memory it had (0: not known).
    """

    name: str
    status: int
    started: bool
    late: bool = False
    failure: str = ""
    hopeless: bool = False
    words: LastWords = field(default_factory=LastWords)
    peak_bytes: int = 0

    def as_error(self) -> ClusterError:
        """An error that says how it ended and what it said last."""
        when = "" if self.started else " before it was ready"
        said = "\n".join(filter(None, ("\n".join(self.words.lines), self.failure)))
        return ClusterError(f"{self.name} {self.describe()}{when}" + (f":\n{said}" if said else " and said nothing"))

    def describe(self) -> str:
        """How it ended, for a sentence."""
        return "did not start in time and was killed" if self.late else describe_end(self.status)


Heard = Callable[["Child", Mapping[str, Any]], object]


async def run_child(
    spec: ChildSpec, heard: Heard = lambda child, report: None, born: Callable[[Child], object] = lambda child: None
) -> ChildEnd:
    """Start a child, call `heard` with each of its reports, and wait for its end; cancelled, end it within its grace.

    `born` is called as soon as there is a process.

    Raises:
      ClusterError: it could not even be started.
    """
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
            leash_fd, leash_end = pipe(to_child=True)
            process = await spec.start(
                Start(
                    name=spec.name,
                    stdin=stdin,
                    stderr=stderr,
                    report_fd=report_fd,
                    leash_fd=leash_fd,
                    inherit=tuple(spec.inherit),
                    environment=spec.environment,
                    guarded=spec.guarded and GUARDS,
                )
            )
        except OSError as exc:
            raise ClusterError(f"{spec.name} could not be started: {exc.strerror or exc}") from exc
        ours.pop_all()
    child = Child(spec, process, stdin_end, stderr_end, report_end, leash_end, heard)
    born(child)
    return await child.run(
        {
            "program": spec.program,
            "settings": spec.settings,
            "name": spec.name,
            "guarded": spec.guarded and GUARDS,
            "quiet": spec.quiet,
            "debug": spec.debug,
            "origin": spec.origin,
            "records": spec.records,
            "path": _search_path(),
            "parent_pid": os.getpid(),
            "report_fd": report_fd,
            "leash_fd": leash_fd,
        }
    )


def _search_path() -> list[str]:
    """Where the child finds the modules that we find. An empty entry means the folder we are in now, if that exists."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed, and nothing can be found there
        here = ""
    return [entry or here for entry in sys.path if entry or here]


class Child:
    """A process that was started. `pid` is the one that runs the program, 0 until it has told; it may have a guard."""

    def __init__(
        self,
        spec: ChildSpec,
        process: Process,
        stdin_end: int,
        stderr_end: int,
        report_end: int,
        leash_end: int,
        heard: Heard,
    ) -> None:
        self.pid = 0
        self._spec = spec
        self._guarded = spec.guarded and GUARDS
        self._process = process
        self._stdin = trio.lowlevel.FdStream(stdin_end)
        self._stderr = trio.lowlevel.FdStream(stderr_end)
        self._reports = trio.lowlevel.FdStream(report_end)
        self._leash_end: int | None = leash_end
        self._heard = heard
        self._life = trio.CancelScope()
        self._started = trio.Event()
        self._late = False
        self._told = False
        self._why = ""
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
        """Have the program take this for a signal, with a reason that it can tell."""
        self._order({"signal": number, "reason": reason})

    def suspend(self) -> None:
        """Stop it for a while, with what it has started in its process group. Safe in a signal handler."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on. Safe in a signal handler."""
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: int) -> None:
        if self._guarded:  # it knows its worker, and passes this on
            self.send_signal(signal.SIGTSTP if number == signal.SIGSTOP else number)
        elif self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def leave(self, reason: str = "") -> None:
        """Cut its lifeline: it leaves within its grace, or is killed."""
        self._why = self._why or reason
        self._life.cancel()

    def _order(self, order: Mapping[str, Any]) -> None:
        """Write to its stdin, after what it is to be."""
        if self._told and self._process.returncode is None:
            try:
                os.write(self._stdin.fileno(), json.dumps(order).encode() + b"\n")
            except OSError:
                pass  # it is ending; or it has not read what it was told before, and will not heed this either

    def kill(self) -> None:
        """End it now, and what it started."""
        self._close_leash()
        if not self._guarded:
            self._process.kill()

    async def run(self, orders: Mapping[str, Any]) -> ChildEnd:
        """Tell it what to be, and stay until it has ended."""
        last_words = trio.CancelScope(shield=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, last_words)
                try:
                    with self._life:
                        async with trio.open_nursery() as life:
                            life.start_soon(self._limit_start)
                            await self._tell(orders)
                            await self._wait_for_end()
                            life.cancel_scope.cancel()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._end()
                    last_words.deadline = trio.current_time() + DRAIN_S
        finally:
            self._close_leash()
            with trio.CancelScope(shield=True):
                await self._reports.aclose()
                await self._stderr.aclose()
        status = self._process.returncode if self._status is None else self._status
        assert status is not None
        return ChildEnd(
            name=self._spec.name,
            status=status,
            started=self._started.is_set(),
            late=self._late,
            failure=self._failure,
            hopeless=self._hopeless,
            words=LastWords.of(self._tail),
            peak_bytes=self._peak_bytes,
        )

    async def _tell(self, orders: Mapping[str, Any]) -> None:
        try:
            await self._stdin.send_all(json.dumps(orders).encode() + b"\n")
            self._told = True
        except trio.BrokenResourceError:
            pass  # it is dead already

    async def _limit_start(self) -> None:
        with trio.move_on_after(self._spec.start_timeout_s):
            await self._started.wait()
            return
        self._late = True
        self.send_signal(signal.SIGABRT)  # on which it says where it is
        await trio.sleep(ABORT_S)
        self.kill()

    # ------------------------------------------------------------------------------------------ what it says

    async def _listen(self, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_words)
                nursery.start_soon(self._take_reports)

    async def _take_words(self) -> None:
        rest = b""
        others = DumpFilter(self._spec.stderr, self._log_dump)
        try:
            async for data in self._stderr:
                others.feed(bytes(data))
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._remember(line)
        finally:
            if rest:
                self._remember(rest)
                others.feed(b"\n")
            others.end()

    def _remember(self, line: bytes) -> None:
        self._tail += (line[: 4 * LastWords.LONGEST] for line in spoken(line).splitlines() or [""])

    def _log_dump(self, lines: Sequence[str]) -> None:
        """For the log: people read of the death in one line, from whatever looks after this child."""
        dumps.info("%s", lines[0], extra={"origin": self._spec.origin, "dump": "\n".join(lines[1:])})

    async def _take_reports(self) -> None:
        rest = b""
        async for data in self._reports:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    self._take_report(json.loads(line))
                except ValueError:
                    log.warning("%s sent a report that cannot be understood: %.60r", self._spec.name, line)

    def _take_report(self, report: dict[str, Any]) -> None:
        if "pid" in report:
            self.pid = report.pop("pid")
        self._status = report.pop("status", self._status)
        self._peak_bytes = report.pop("peak_bytes", self._peak_bytes)
        self._failure = report.pop("failure", self._failure)
        self._hopeless = report.pop("hopeless", self._hopeless)
        if report:
            self._started.set()
            self._heard(self, report)

    # ------------------------------------------------------------------------------------------ its end

    async def _wait_for_end(self) -> None:
        """Wait until the process has ended, without reaping it: its number stays taken until its group is swept."""
        if not await wait_for_end(self._process.pid):
            await self._process.wait()

    async def _end(self) -> None:
        self._order({"reason": self._why or "the parent process stops"})
        await self._stdin.aclose()
        with trio.move_on_after(self._spec.grace_s):
            await self._wait_for_end()
        self._close_leash()
        if self._guarded:  # it has more to sweep than we can see
            with trio.move_on_after(SWEEP_S):
                await self._wait_for_end()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left; macOS refuses to signal a group of which only a zombie is left
        await self._process.wait()

    def _close_leash(self) -> None:
        if self._leash_end is not None:
            os.close(self._leash_end)
            self._leash_end = None
