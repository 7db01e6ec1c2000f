"""What `/proc` says of a process: whether it can run, how much memory it has, and what it has started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from trio_dask.host_limits import repeated_bytes

DEAD_OR_STOPPED = frozenset("ZXTt")
# What the kernel could drop or write back at any time is not counted: values that are mapped from disk, code.
COUNTED = frozenset(("RssAnon:", "RssShmem:", "VmSwap:"))


def is_runnable(pid: int) -> bool:
    """Whether this process lives and is not stopped. Where there is no `/proc`, True."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode() not in DEAD_OR_STOPPED
    except FileNotFoundError:
        return not _has_proc()
    except (OSError, IndexError):  # it ended while we read
        return False


def memory_used(pid: int, roughly_up_to: float = 0) -> int:
    """How much memory this process holds for itself alone, in bytes; 0 if that is not known.

    Shared memory that it maps repeatedly counts once. To find that out takes milliseconds, so an amount of up to
    `roughly_up_to` may count it repeatedly.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return 0
    used = sum(int(row[1]) for row in rows if len(row) == 3 and row[0] in COUNTED) * 1024
    return used - repeated_bytes(pid) if used > roughly_up_to else used


def children_of(pid: int) -> list[int]:
    """The children of this process."""
    if not os.path.exists("/proc/thread-self/children"):  # not Linux, or a kernel that does not tell
        return _children_by_psutil(pid)
    children: list[int] = []
    with suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                children += map(int, file.read().split())
    return children


def _children_by_psutil(pid: int) -> list[int]:
    import psutil  # slow to load

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def end_descendants(pid: int) -> None:
    """Kill everything that this process has started and that is still there, and what that has started."""
    found: dict[int, None] = {}
    left = [pid]
    while left:
        for child in children_of(left.pop()):
            if child not in found:
                found[child] = None
                left.append(child)
    for descendant in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(descendant, signal.SIGKILL)


def _has_proc() -> bool:
    try:
        with open("/proc/self/stat", "rb"):
            return True
    except OSError:
        return False
