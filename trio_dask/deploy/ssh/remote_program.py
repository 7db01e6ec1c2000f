"""The launcher's side of one program on a host: start it, check what it is, order what it does, learn of its end.

start ─► greeting ─► checked ─► prepare ─► order ─► reports ... ─► its end
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import trio

from trio_dask._version import __version__
from trio_dask.deploy.ssh.orders import BEAT_S, MODULE, Greeting, Lines, Order, Preparation, encode, read_report
from trio_dask.deploy.ssh.session import EXIT_UNKNOWN, HostError, HostLost, RemoteProcess, Session, one_host_error
from trio_dask.errors import UsageError
from trio_dask.processes.exit_report import describe_status
from trio_dask.processes.stderr_records import read_record
from trio_dask.security.credentials import Credentials, to_secrets
from trio_dask.settings_json import from_json, to_json

END_S = 2.0
"""How long a program may take to end once its stdin has ended: it kills itself after less."""
DRAIN_S = 0.5
START_S = 60.0
PROBE_S = 5.0
LAST_LINES = 20
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")

log = logging.getLogger("trio_dask.ssh")
foreign = logging.getLogger("trio_dask.ssh.output")
"""What a program on a host, or the host's shell, writes to its stderr and is no record of ours."""


class PythonMissing(HostError):
    """There is no such Python on the host."""


class ProgramEnd(NamedTuple):
    """How a program on a host ended: its status, and why, in its own words."""

    status: int
    words: str


def command_line(python: str, setup: str | None) -> str:
    """What the host's shell is told. It holds nothing that a user wrote but the path of Python and `setup`."""
    command = f"exec {shlex.quote(python)} -m {MODULE}"
    return command if setup is None else f"{setup}; {command}"


class RemoteProgram:
    """One program on a host. It calls `on_report` with each report, and `on_step` as soon as a step is done.

    What it logs appears in our own log, from `level` on, and all of it in `lines`. It gets the `credentials` with its
    order.
    """

    def __init__(
        self,
        place: str,
        session: Session,
        python: str,
        setup: str | None,
        preparation: Preparation,
        *,
        on_report: Callable[[Mapping[str, Any]], object] = lambda report: None,
        on_step: Callable[[str, str], object] = lambda step, text: None,
        level: int = logging.WARNING,
        lines: deque[str] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._place = place
        self._session = session
        self._python = python
        self._setup = setup
        self._preparation = preparation
        self._on_report = on_report
        self._on_step = on_step
        self._level = level
        self._greeting: Greeting | None = None
        self._greeted = trio.Event()
        self._tail: deque[str] = deque(maxlen=LAST_LINES)
        self._lines = deque[str](maxlen=0) if lines is None else lines
        self._failure: dict[str, Any] = {}
        self._credentials = credentials
        self._process: RemoteProcess | None = None
        self._signals: list[bytes] = []
        self._output = self._errors = Lines()
        self.is_silent = False
        """Whether it was told to end, and no end of it was seen: the host hangs, or the link does."""

    def signal(self, number: int, reason: str) -> None:
        """Have it act on this signal, as soon as it runs."""
        self._signals.append(encode({"signal": number, "reason": reason}))
        self._send_signals()

    def _send_signals(self) -> None:
        if self._process is not None:
            self._process.write(b"".join(self._signals))
            self._signals.clear()

    async def run(self, order: Callable[[Greeting], Awaitable[Order]] | None) -> ProgramEnd:
        """Run it to its end; cancelled, end it, for `END_S` at most. Without an order it is only prepared.

        Raises:
          HostError: it could not be started, or is not the program that we know.
          HostLost: the connection was lost.
        """
        with one_host_error():
            return await self._run(order)

    async def _run(self, order: Callable[[Greeting], Awaitable[Order]] | None) -> ProgramEnd:
        async with self._session.start(command_line(self._python, self._setup)) as process:
            try:
                async with trio.open_nursery() as nursery:
                    self._listen(nursery, process)
                    greeting = await self._greet(process)
                    process.write(encode(to_json(self._preparation)))
                    self._process = process
                    self._send_signals()
                    if order is not None:
                        nursery.start_soon(self._beat, process)
                        content = {"order": to_json(await order(greeting)), "secrets": to_secrets(self._credentials)}
                        process.write(encode(content))
                    status = await process.wait()
                    nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
            finally:
                self._process = None
                with trio.move_on_after(END_S, shield=True) as limit:
                    await self._end(process)
                self.is_silent = limit.cancelled_caught
        if status == EXIT_UNKNOWN:
            raise HostLost(self._place, "connection", "the connection was lost")
        return ProgramEnd(self._failure.get("status", status), self._words(status))

    async def _end(self, process: RemoteProcess) -> None:
        process.close_stdin()
        async with trio.open_nursery() as nursery:
            self._listen(nursery, process)  # else a program that writes much could not end
            await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S

    def _listen(self, nursery: trio.Nursery, process: RemoteProcess) -> None:
        nursery.start_soon(self._read_reports, process)
        nursery.start_soon(self._read_errors, process)

    async def _beat(self, process: RemoteProcess) -> None:
        """Until it has ended, tell it again and again that we are here."""
        pause_s = min(BEAT_S, self._preparation.silence_s / 3)
        while True:
            with trio.move_on_after(pause_s):
                await process.wait()
                return
            process.write(encode({"beat": True}))

    # ------------------------------------------------------------------------------------------ what it says

    async def _read_reports(self, process: RemoteProcess) -> None:
        lines = self._output = Lines()
        while data := await process.receive():
            for line in lines.feed(data):
                report = read_report(line)
                if report is None:
                    self._remember(line)  # a shell's greeting, or its complaint
                else:
                    self._take(report)
        self._greeted.set()

    def _take(self, report: dict[str, Any]) -> None:
        if "greeting" in report:
            try:
                self._greeting = from_json(Greeting, report["greeting"])
            except UsageError as exc:  # another version greets in another way
                self._tail.append(str(exc))
            self._greeted.set()
        elif "failure" in report:
            self._failure = report
        else:
            self._on_report(report)

    async def _read_errors(self, process: RemoteProcess) -> None:
        lines = self._errors = Lines()
        while data := await process.receive_error():
            for line in lines.feed(data):
                self._remember(line)
        for line in lines.end():
            self._remember(line)

    def _remember(self, line: bytes) -> None:
        record = read_record(line)
        if record is None:
            text = _harmless(line.decode(errors="backslashreplace").rstrip("\r"))
            record = foreign.makeRecord(foreign.name, logging.INFO, __file__, 0, "%s", (text,), None)
        origin = getattr(record, "origin", "")
        record.origin = f"{self._place} {origin}".strip()
        if text := record.getMessage().strip():
            self._tail.append(text)
            self._lines.append(text)
        if record.levelno >= self._level:
            logging.getLogger(record.name).handle(record)

    def _words(self, status: int) -> str:
        if "failure" in self._failure:
            return _harmless(str(self._failure["failure"]))
        said = f": {self._tail[-1]}" if self._tail and status else ""
        return f"it {describe_status(status)}{said}"

    # ------------------------------------------------------------------------------------------ what it is

    async def _greet(self, process: RemoteProcess) -> Greeting:
        """Wait for its greeting, and check it."""
        with trio.move_on_after(START_S) as limit:
            await self._greeted.wait()
        if limit.cancelled_caught:
            raise HostError(self._place, "python", f"{self._python} said nothing for {START_S:g} s{self._question()}")
        if self._greeting is None:
            raise await self._explain_start(process)
        greeting = self._greeting
        self._on_step("python", f"Python {greeting.python}")
        remedy = "give --remote-python or python= for this host"
        if greeting.package != __version__:
            words = f"trio_dask {greeting.package} there, {__version__} here"
            raise HostError(self._place, "version", words, f"install the same version there, or {remedy}")
        if _minor(greeting.python) != _minor(mine := sys.version.split()[0]):
            raise HostError(self._place, "version", f"Python {greeting.python} there, {mine} here", remedy)
        self._on_step("version", f"trio_dask {greeting.package}")
        return greeting

    def _question(self) -> str:
        """What the host's shell said instead: it may be waiting for an answer."""
        asked = self._errors.rest or self._output.rest
        text = asked.decode(errors="replace").strip() or (self._tail[-1] if self._tail else "")
        return f", and the host's shell said {text[-80:]!a}" if text else ""

    async def _explain_start(self, process: RemoteProcess) -> HostError:
        """Why there was no greeting: the connection, Python itself, its age, or what it can import."""
        with trio.move_on_after(END_S):
            status = await process.wait()
            await trio.lowlevel.checkpoint()  # the readers get what came before the end
            if status == EXIT_UNKNOWN:
                return HostLost(self._place, "connection", "the connection was lost")
        words = self._tail[-1] if self._tail else "it said nothing"
        remedy = "give --remote-python or python= for this host"
        found = await self._probe()
        if not found:
            return PythonMissing(self._place, "python", words, remedy)
        if "trio_dask" in words and "No module" in words:
            words = f"{self._python} is {found} and has no trio_dask"
        elif _is_old(found):
            words = f"{self._python} is {found}, which is too old for trio_dask"
        return HostError(self._place, "python", words, remedy)

    async def _probe(self) -> str:
        """What the host's Python calls itself; empty if there is none."""
        setup = "" if self._setup is None else f"{self._setup}; "
        found = b""
        with trio.move_on_after(PROBE_S):
            async with self._session.start(f"{setup}exec {shlex.quote(self._python)} -V") as process:
                while data := await process.receive():
                    found += data
                if not found:  # Python 2 says it there
                    while data := await process.receive_error():
                        found += data
        lines = found.decode(errors="replace").splitlines()
        return next((line.strip() for line in lines if line.startswith("Python ")), "")


def _harmless(text: str) -> str:
    """What a host says, without characters on which a terminal would act."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _minor(python: str) -> list[str]:
    return python.split(".")[:2]


def _is_old(found: str) -> bool:
    parts = found.removeprefix("Python ").split(".")
    return [int(part) for part in parts[:2] if part.isdigit()] < [3, 11]


async def ask_for_leftovers(
    place: str, session: Session, python: str, setup: str | None, run: str, limit_s: float
) -> tuple[int, int]:
    """End what is left of a run on a host. Gives how many processes there were, and are still.

    Raises:
      HostError: the host could not be asked.
    """
    answer: dict[str, Any] = {}
    program = RemoteProgram(place, session, python, setup, Preparation("sweep", run), on_report=answer.update)
    words = f"no answer within {limit_s:g} s"
    with trio.move_on_after(limit_s, shield=True):
        words = (await program.run(None)).words
    found, left = answer.get("found"), answer.get("left")
    if isinstance(found, int) and isinstance(left, int):
        return found, left
    raise HostError(place, "end", words)
