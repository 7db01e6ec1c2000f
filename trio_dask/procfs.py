"""What `/proc` says of processes: which one a number means, whether it can run, its memory, and what it has started.

The system gives process numbers out again; the start time tells two processes with one number apart.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

from trio_dask.host_limits import repeated_bytes

DEAD_OR_STOPPED = frozenset("ZXTt")
# Not counted: what the kernel can drop or write back at any time, such as code and values mapped from disk.
COUNTED = frozenset(("RssAnon:", "RssShmem:", "VmSwap:"))


def has_proc() -> bool:
    """Whether there is a `/proc`."""
    return os.path.exists("/proc/self/stat")


def open_descriptors() -> list[int]:
    """The descriptors that this process has open, including the one that this function reads them from."""
    return [int(name) for name in os.listdir("/proc/self/fd")]


def start_of(pid: int) -> int | None:
    """When the process with this number started, in ticks since the machine did; None if no such process lives.

    Also None where there is no `/proc`: then nothing is known of any process.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None


def _stat(pid: int) -> list[bytes]:
    """What `/proc` says of a process, from its state on; empty if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:  # also if it ended while we read
        return []


def time_of(ticks: int) -> float:
    """The time at this many ticks since the machine started, in seconds since 1970, correct to about a second."""
    with open("/proc/stat", "rb") as file:
        booted = next((line.split()[1] for line in file if line.startswith(b"btime ")), b"0")
    return int(booted) + ticks / os.sysconf("SC_CLK_TCK")


def is_hidden(pid: int) -> bool:
    """Whether there may be a process with this number that `/proc` does not show."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return not has_proc()
    except (OSError, OverflowError):
        return True
    return not os.path.exists(f"/proc/{pid}")


def pid_space() -> str:
    """A name for where process numbers and start times count: this machine, since it started, and this namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:16]


def is_runnable(pid: int) -> bool:
    """Whether this process lives and is not stopped. Where there is no `/proc`, True."""
    fields = _stat(pid)
    return fields[0].decode() not in DEAD_OR_STOPPED if fields else not has_proc()


def memory_used(pid: int, roughly_up_to: float = 0) -> int:
    """How much memory this process holds for itself alone, in bytes; 0 if that is not known.

    Shared memory that it maps repeatedly counts once. Finding that out takes milliseconds, so an amount of up to
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
