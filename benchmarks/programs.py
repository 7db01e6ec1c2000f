"""Start a program, know when it is ready, and leave nothing of it behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """Ours, with the repository importable and output unbuffered: a ready line must be seen when it is printed."""
    path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Program:
    """``python ARGUMENTS``: its output is read all the time, its stdin stays open while it shall live."""

    def __init__(self, name: str, arguments: list[str], *, ready: str, folder: Path) -> None:
        self.name = name
        self._pattern = re.compile(ready)
        self._ready = threading.Event()
        self._tail: deque[str] = deque(maxlen=15)
        self.ready_after_s: float | None = None
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=folder,
            env=environment(),
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._tail.append(line.rstrip().replace(sys.executable, "python"))
            if self.ready_after_s is None and self._pattern.search(line):
                self.ready_after_s = time.perf_counter() - self._started
                self._ready.set()
        self._ready.set()

    def wait_ready(self, timeout_s: float = 60.0) -> float:
        """Seconds from its start to its ready line."""
        in_time = self._ready.wait(timeout_s)
        if self.ready_after_s is None:
            how = "ended" if in_time else f"was not ready after {timeout_s:g} s"
            raise RuntimeError(f"{self.name} {how}: {' | '.join(self._tail) or 'it printed nothing'}")
        return self.ready_after_s

    def stop(self, grace_s: float = 5.0) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join(timeout=1.0)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used.

    Linux counts it in nanoseconds per thread; the usual figure has a grain of 10 ms, which is as much as an idle
    program uses in five seconds.
    """
    try:
        return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    except (OSError, ValueError, IndexError):
        pass
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held so far, with what it had mapped; 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def resident_bytes() -> int:
    """Memory that this process holds now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    import psutil

    return int(psutil.Process().memory_info().rss)
