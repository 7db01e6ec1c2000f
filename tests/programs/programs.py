"""Start our programs as a user does, read what they say, and look for what they left behind."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (?:DEBUG|INFO|WARNING|ERROR) (?:\[([^]]*)\] )?")
"""What stands before a line in a log that is no terminal."""


def environment(*, measured: bool = True, **more: str) -> dict[str, str]:
    """Ours, with the package importable from anywhere.

    Without `measured` no coverage is taken: what takes it starts before our first line, answers signals in its own way,
    and stands in the place of `os._exit`.
    """
    without = "DASK_" if measured else ("DASK_", "COVERAGE_PROCESS_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return {**clean, "PYTHONPATH": str(REPOSITORY), **more}


class Program:
    """A running program whose output is read all the time. `errors` are its lines without what stands before them."""

    def __init__(
        self, *arguments: str, cwd: Path | str | None = None, within: Sequence[str] = (), **options: Any
    ) -> None:
        options.setdefault("env", environment())
        options.setdefault("stdin", subprocess.DEVNULL)
        self.arguments = arguments
        command = [*within, sys.executable, *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, **options
        )
        self.output: list[str] = []
        self.errors: list[str] = []
        self.log: list[str] = []
        """The lines on stderr as they are."""
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, (self.output,)), (self.process.stderr, (self.log, self.errors)))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], lines: tuple[list[str], ...]) -> None:
        with stream:
            for line in stream:
                with self._changed:
                    for each in lines:
                        text = line.rstrip("\n")
                        each.append(STAMP.sub("", text) if each is self.errors else text)
                    self._changed.notify_all()

    def wait_for(self, pattern: str, lines: list[str] | None = None, *, timeout_s: float = PATIENCE_S) -> str:
        """The first group of the first line (of stderr) that matches."""
        lines = self.errors if lines is None else lines
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for line in lines:
                    found = re.search(pattern, line)
                    if found:
                        return found[1] if found.groups() else found[0]
                left = deadline - time.monotonic()
                assert left > 0, f"no line has {pattern!r}:\n{self.text}"
                assert self.process.poll() is None or any(reader.is_alive() for reader in self._readers), self.text
                self._changed.wait(min(left, 0.2))

    @property
    def text(self) -> str:
        """All it has said."""
        return "\n".join([*self.output, "-- stderr", *self.log])

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status, once it has ended by itself, and once nobody is left who could write to its output."""
        status = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join()
        return status

    def stop(self, number: int) -> int:
        """Send a signal, and wait for the end."""
        self.process.send_signal(number)
        return self.end()


@contextmanager
def program(*arguments: str, **options: Any) -> Iterator[Program]:
    """A program that is gone when the block is left."""
    running = Program(*arguments, **options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.end()


def scheduler(*arguments: str, **options: Any) -> AbstractContextManager[Program]:
    """A scheduler on a free port of loopback."""
    return program("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", *arguments, **options)


def worker(*arguments: str, **options: Any) -> AbstractContextManager[Program]:
    """A worker."""
    return program("-m", "trio_dask", "worker", "--nthreads", "1", "--no-nanny", *arguments, **options)


def children(pid: int) -> list[psutil.Process]:
    """All living descendants of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S, what: str = "") -> float:
    """Wait for something to become true; gives how long it took, in seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - start


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it has ended between these two
        return False


def survivors(processes: Iterable[psutil.Process], timeout_s: float = 2.0) -> list[psutil.Process]:
    """Those of these processes that are still there after a moment."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = list(filter(_runs, processes))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def seen_in_proc(secret: str) -> list[str]:
    """Which processes show a secret, written in hexadecimal, in their command line or environment."""
    found = list[str]()
    for process in psutil.process_iter():
        for name in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:
                continue
            if secret.encode() in text or bytes.fromhex(secret) in text:
                found.append(f"{name} of {process.pid}")
    return found
