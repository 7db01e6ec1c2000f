"""What `/proc` says of a process: whether it can run, and how much memory it has."""

from __future__ import annotations

from trio_dask.host_limits import repeated_bytes

__all__ = ["is_runnable", "memory_used"]

DEAD_OR_STOPPED = frozenset("ZXTt")
# What the kernel could drop or write back at any time is not counted: values that are mapped from disk, code.
COUNTED = frozenset(("RssAnon:", "RssShmem:", "VmSwap:"))


def is_runnable(pid: int) -> bool:
    """Whether this process lives and is not stopped. Where there is no `/proc`, it is taken to."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode() not in DEAD_OR_STOPPED
    except FileNotFoundError:
        return not _has_proc()
    except (OSError, IndexError):  # it ended while we read
        return False


def memory_used(pid: int, roughly_up_to: float = 0) -> int:
    """How much memory this process holds for itself alone, in bytes; 0 if that cannot be told.

    Shared memory that it maps repeatedly counts once. That takes milliseconds to tell, so an amount of up to
    `roughly_up_to` may have it repeatedly.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            rows = [line.split() for line in file]
    except OSError:
        return 0
    used = sum(int(row[1]) for row in rows if len(row) == 3 and row[0] in COUNTED) * 1024
    return used - repeated_bytes(pid) if used > roughly_up_to else used


def _has_proc() -> bool:
    try:
        with open("/proc/self/stat", "rb"):
            return True
    except OSError:
        return False
