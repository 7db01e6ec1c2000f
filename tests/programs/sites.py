"""A place where a test runs whole programs, and where whatever they leave behind is found.

Every process that is started there, however deep and in whatever session, carries a mark in its environment; every file
they write without being told where is in the site's folders.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.programs.network import Machine
from tests.programs.programs import Program, environment, survivors

MARK = "TESTED_BY"
SCHEDULER_AT = r"^Scheduler at: +(tcp://\S+)$"
REGISTERED = r"^Registered to: (tcp://\S+)$"
GONE_WITHIN_S = 1.0


class Site:
    """Starts programs, and tells what is left of them."""

    def __init__(self, folder: Path, *, tracebacks: bool = False) -> None:
        self._signs = ("Warning:", "rror ignored", "never awaited", *(() if tracebacks else ("Traceback",)))
        self.cwd = folder / "cwd"
        self.scratch = folder / "scratch"
        for path in (self.cwd, self.scratch):
            path.mkdir()
        self.programs: list[Program] = []
        self._mark = secrets.token_hex(8)

    def start(
        self, *arguments: str, machine: Machine | None = None, code: str | None = None, **variables: str
    ) -> Program:
        """Start a program of ours, or some Python code, on this machine of a network.

        `variables` are set in its environment.
        """
        program = Program(
            *(("-m", "trio_dask") if code is None else ("-c", code)),
            *arguments,
            cwd=self.cwd,
            env={**environment(), MARK: self._mark, "TMPDIR": str(self.scratch), **variables},
            within=machine.command() if machine is not None else (),
            start_new_session=True,
        )
        self.programs.append(program)
        return program

    def scheduler(self, *arguments: str, port: int = 0, host: str = "127.0.0.1", **options: Any) -> Scheduler:
        """A scheduler that can be reached."""
        program = self.start("scheduler", "--host", host, "--port", str(port), *arguments, **options)
        return Scheduler(program, program.wait_for(SCHEDULER_AT))

    def worker(self, address: str, *arguments: str, **options: Any) -> Program:
        """A launcher of workers with one thread each, registered. A `--no-nanny` makes it the worker itself."""
        program = self.start("worker", address, "--nthreads", "1", *arguments, **options)
        program.wait_for(REGISTERED)
        return program

    def processes(self) -> list[psutil.Process]:
        """All processes that were started here, directly or not, and live."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError, psutil.NoSuchProcess):
                    if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                        found.append(psutil.Process(int(name)))
        return found

    def files(self) -> list[str]:
        """All files and folders that the programs have left."""
        return sorted(str(path) for folder in (self.cwd, self.scratch) for path in folder.rglob("*"))

    def finish(self) -> None:
        """Ask every program that still runs to stop, the last one first, and prove that nothing is left of any."""
        for program in reversed(self.programs):
            if program.process.poll() is None:
                assert program.stop(signal.SIGTERM) == 0, program.text
        self.prove_empty()

    def prove_empty(self, within_s: float = GONE_WITHIN_S) -> None:
        """No process and no file is left, and no program has shown a traceback or a warning of Python."""
        deadline = time.monotonic() + within_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [describe(process) for process in left] == []
        assert self.files() == []
        for program in self.programs:
            program.end()
            for sign in self._signs:
                assert sign not in program.text, program.text

    def close(self) -> None:
        """Kill whatever is left."""
        for _ in range(3):  # what is being killed may be starting something
            left = self.processes()
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            survivors(left)
        for program in self.programs:
            program.process.kill()
            program.end()


class Scheduler:
    """A scheduler program, and where it is."""

    def __init__(self, program: Program, address: str) -> None:
        self.program = program
        self.address = address
        self.port = int(address.rpartition(":")[2])


def describe(process: psutil.Process) -> str:
    """A process, for people."""
    try:
        return f"{process.pid} (child of {process.ppid()}, {process.status()}): {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{process.pid}, gone by now"


@contextmanager
def open_site(folder: Path, *, tracebacks: bool = False) -> Iterator[Site]:
    """A site. A test that passes has its programs stopped at the end, and is held to have left nothing.

    Programs may show `tracebacks` only where these are of a user's code.
    """
    site = Site(folder, tracebacks=tracebacks)
    try:
        yield site
        site.finish()
    except BaseException:
        for program in site.programs:
            print(f"{program.arguments} (status {program.process.poll()}):\n{program.text}\n")
        raise
    finally:
        site.close()
