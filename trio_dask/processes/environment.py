"""What a worker's process is started with, besides its settings: environment, and what the kernel says of its group."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from trio_dask.host_limits import oom_kills

__all__ = ["OomKills", "child_environment"]

# One thread of numerical libraries per task: tasks side by side keep a machine busy.
LIBRARY_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# What was freed goes back to the system: large blocks each by itself, and what is free at the end of the heap.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**20)}


def child_environment(given: Mapping[str, str], ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """What to set on top of our own environment (`ours`): defaults for what it lacks, and what the user gave."""
    ours = os.environ if ours is None else ours
    defaults = dict.fromkeys(LIBRARY_THREADS, "1")
    if not any(name.startswith("MALLOC_") for name in ours):
        defaults |= ALLOCATOR
    return {**{name: value for name, value in defaults.items() if name not in ours}, **given}


class OomKills:
    """The processes of our control group that the kernel has killed for want of memory, each to be claimed once.

    All nannies of a program share one such count, lest one kill explain the deaths of two workers.
    """

    def __init__(self, read: Callable[[], int | None] = oom_kills) -> None:
        self._read = read
        self._claimed = read()

    def claim(self) -> bool:
        """Whether there was one that nobody has claimed yet; it is claimed now."""
        number = self._read()
        if number is None or self._claimed is None or number <= self._claimed:
            return False
        self._claimed += 1
        return True
