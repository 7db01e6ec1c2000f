"""What a process gets at its start, besides its settings: environment variables, and how many files it may open."""

from __future__ import annotations

import os
from collections.abc import Mapping

OPEN_FILES = 65536

# Numerical libraries get one thread for each task: tasks side by side keep a machine busy.
LIBRARY_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# Freed memory goes back to the system: each large block by itself, and the free end of the heap.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**20)}


def child_environment(
    given: Mapping[str, str], ours: Mapping[str, str] | None = None, *, defaults: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What to set on top of our own environment (`ours`): `defaults` and ours where it says nothing, and `given`."""
    ours = os.environ if ours is None else ours
    usual: dict[str, str] = dict.fromkeys(LIBRARY_THREADS, "1")
    if not any(name.startswith("MALLOC_") for name in ours):
        usual |= ALLOCATOR
    usual |= defaults or {}
    return {**{name: value for name, value in usual.items() if name not in ours}, **given}


def complete_own_environment(given: Mapping[str, str], *, defaults: Mapping[str, str] | None = None) -> None:
    """The same for this very process, before it loads a numerical library. The allocator has read its variables."""
    for name, text in child_environment(given, defaults=defaults).items():
        if name in given or name not in ALLOCATOR:
            os.environ[name] = text


def raise_file_limit(wanted: int = OPEN_FILES) -> int:
    """Allow this process this many open files, or as many as the system grants; returns the limit. A peer takes one."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    granted = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if granted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    return granted
