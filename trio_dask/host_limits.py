"""Processors and memory that this process may use, as kernel, control groups and batch system allow.

`/proc` and `/sys` are below `root`, and `environment` has the variables of a batch system; tests give their own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from trio_dask import batch_system
from trio_dask.batch_system import Amount, number_in

ROOT = Path("/")


def cpus(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> Amount:
    """Processors that this process can keep busy: its affinity, within the quotas of control groups and batch system.

    Of equal limits it names the first: the machine's own number before one that merely repeats it.
    """
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    amounts = [Amount(allowed, "affinity" if allowed < machine else "machine")]
    amounts += [Amount(math.ceil(quota), "cgroup") for quota in _cpu_quotas(root)]
    amounts += batch_system.cpus(environment)
    least = min(amounts, key=lambda amount: amount.number)
    return least._replace(number=max(1, least.number))


def memory(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> Amount:
    """Memory that this process can use: the machine's, within the limits of control groups, process, batch system."""
    amounts = [Amount(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "machine")]
    amounts += [Amount(limit, "cgroup") for limit in _memory_limits(root)]
    amounts += [Amount(limit, "rlimit") for limit in _own_limits()]
    amounts += batch_system.memory(environment, min(amounts).number)
    least = min(amounts, key=lambda amount: amount.number)
    return least._replace(number=max(1, least.number))


def repeated_bytes(pid: int | None = None, root: Path = ROOT) -> int:
    """How much of a process's resident memory (default: this one's) is counted more than once.

    The kernel counts a page of shared memory for each map of it. 0 if it does not tell.
    """
    process = root / "proc" / ("self" if pid is None else str(pid))
    counted = _amount_in(process / "status", "RssShmem:")
    if not counted:
        return 0
    there = _amount_in(process / "smaps_rollup", "Pss_Shmem:")  # walks all pages: milliseconds for each GiB
    return 0 if there is None else max(0, counted - there)


def _amount_in(path: Path, label: str) -> int | None:
    for line in _read(path).splitlines():
        if line.startswith(label):
            return int(line.split()[1]) * 1024
    return None


def oom_kills(root: Path = ROOT) -> int | None:
    """How many processes of our control group the kernel has killed to free memory; None if it does not tell."""
    for group in _groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(group / name).splitlines():
                key, _, number = line.partition(" ")
                if key == "oom_kill":
                    return number_in(number)
    return None


def _own_limits() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_RSS):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups around this process, innermost first, of version 2 and of version 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0":
            bases = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in names.split(","):
            bases = [root / "sys/fs/cgroup" / names, root / "sys/fs/cgroup" / controller]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for base in bases:
            # In a container the path may name groups that are not visible; then the mount's own root has the limits.
            yield from (base / group for group in (inner, *inner.parents) if (base / group).is_dir())


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        words = _read(group / "cpu.max").split()
        if len(words) == 2:
            quota, period = number_in(words[0]), number_in(words[1])
        else:
            quota, period = (number_in(_read(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota and period:
            yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes", "memory.soft_limit_in_bytes"):
            limit = number_in(_read(group / name))
            if limit:
                yield limit


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
