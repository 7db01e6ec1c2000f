"""What the tests of whole programs have workers do. Workers import this file: it loads nothing that takes long."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any


def note(log: str, name: object) -> None:
    """Write down that this task begins here, at once and whole."""
    line = f"{name} {os.getpid()}\n".encode()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def executions(log: str | Path) -> Counter[str]:
    """How often each task began."""
    return Counter(line.split()[0] for line in lines_of(log))


def lines_of(log: str | Path) -> list[str]:
    """What was noted."""
    try:
        return Path(log).read_text().splitlines()
    except FileNotFoundError:
        return []


def work(log: str, name: object, seconds: float, value: object = None, *inputs: Any) -> object:
    """Take some time, and give back the value, or the sum of the inputs."""
    note(log, name)
    time.sleep(seconds)
    return sum(inputs) if inputs else value


def with_child(log: str, name: object, seconds: float, value: object) -> object:
    """Have a process of its own take the time; whether that one lives to its end makes no difference."""
    note(log, name)
    subprocess.run(["sleep", str(seconds)], check=False)
    return value


def where(log: str, name: object, seconds: float) -> int:
    """The process that did it."""
    note(log, name)
    time.sleep(seconds)
    return os.getpid()


def bytes_of(log: str, name: object, number: int) -> bytes:
    """A value that is too large to ride along with the message that it is there."""
    note(log, name)
    return bytes(number)


def hold_interpreter(log: str, name: object, seconds: int) -> str:
    """Let no thread of this process run Python, not even for a moment."""
    note(log, name)
    ctypes.PyDLL(None).sleep(seconds)
    return "done"


def leave_children(log: str, seconds: float) -> None:
    """Start processes that wish to outlive everything, one of them in a session of its own, and stay a while."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["python3", "-c", stubborn], start_new_session=True)
    subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"], start_new_session=True)
    note(log, "children")
    time.sleep(seconds)
