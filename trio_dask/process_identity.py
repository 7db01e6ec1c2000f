"""Which process a number means: numbers come around again, so the start of the process tells one from another."""

from __future__ import annotations

import hashlib
import os


def start_of(pid: int) -> int | None:
    """When the process with this number started, in ticks since the machine did; None if no such process lives.

    Also None where there is no `/proc`: then nothing is known of any process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def time_of(ticks: int) -> float:
    """The time at this many ticks since the machine started, in seconds since 1970, correct to about a second."""
    with open("/proc/stat", "rb") as file:
        booted = next((line.split()[1] for line in file if line.startswith(b"btime ")), b"0")
    return int(booted) + ticks / os.sysconf("SC_CLK_TCK")


def is_hidden(pid: int) -> bool:
    """Whether a process may exist that `/proc` does not show us."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return not os.path.exists("/proc/self/stat")
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
