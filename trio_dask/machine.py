"""What this process may use of its machine: processors and memory, as the kernel and its control groups grant them.

`root` is where `/proc` and `/sys` are looked for; tests point it at a folder of theirs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_count", "memory_bytes"]

ROOT = Path("/")


def cpu_count(root: Path = ROOT) -> int:
    """Processors that this process can keep busy: its affinity, cut to the quota of its control groups."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _cpu_quotas(root))]))


def memory_bytes(root: Path = ROOT) -> int:
    """Memory that this process can use: the machine's, cut to the limits of its control groups and its own."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min([physical, *_memory_limits(root), *_own_limits()]))


def _own_limits() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
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
            # Inside a container the path may name groups that are not visible; the mount's own root then speaks for it.
            yield from (base / group for group in (inner, *inner.parents) if (base / group).is_dir())


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        words = _read(group / "cpu.max").split()
        if len(words) == 2:
            quota, period = _number(words[0]), _number(words[1])
        else:
            quota, period = (_number(_read(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota and period:
            yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes", "memory.soft_limit_in_bytes"):
            limit = _number(_read(group / name))
            if limit:
                yield limit


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """A limit as the kernel writes it; `max` and -1 mean that there is none."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None
