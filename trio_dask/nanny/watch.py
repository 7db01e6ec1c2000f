"""What `/proc` says of a process: whether it can run, and how much memory it has."""

from __future__ import annotations

from trio_dask.machine import repeated_bytes

__all__ = ["is_runnable", "memory_used"]

DEAD_OR_STOPPED = frozenset("ZXTt")
# What the kernel could drop or write back at any time is not counted: values that are mapped from disk, code.
COUNTED = frozenset(("RssAnon:", "RssShmem:", "VmSwap:"))

NOTEWORTHY_BYTES = 64 << 20
"""To tell which shared memory is counted repeatedly takes time, so less than this is taken as it stands."""


def is_runnable(pid: int) -> bool:
    """Whether this process lives and is not stopped. Where there is no `/proc`, it is taken to."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode() not in DEAD_OR_STOPPED
    except FileNotFoundError:
        return not _has_proc()
    except (OSError, IndexError):  # it ended while we read
        return False


def memory_used(pid: int) -> int:
    """How much memory this process holds for itself alone, in bytes; 0 if that cannot be told."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return 0
    amounts = {row[0]: int(row[1]) * 1024 for row in rows if len(row) == 3 and row[0] in COUNTED}
    repeated = repeated_bytes(pid) if amounts.get("RssShmem:", 0) >= NOTEWORTHY_BYTES else 0
    return sum(amounts.values()) - repeated


def _has_proc() -> bool:
    try:
        with open("/proc/self/stat", "rb"):
            return True
    except OSError:
        return False
