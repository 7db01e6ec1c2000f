"""How much memory this process has, and how to return unused memory to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from time import perf_counter

from trio_dask.host_limits import repeated_bytes
from trio_dask.protocol.raw_memory import has_private_maps

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK_BYTES = 2**20
_SPARE_BYTES = 4 * 2**20
RECOUNT_SHARE = 20


class ProcessMemory:
    """The resident memory of this process, with the pages of mapped files in use, which the kernel could drop.

    Large arguments of several tasks are maps of the same pages, which count once. A reading takes 2 µs on Linux, and
    8 µs with psutil elsewhere. Counting the pages that are mapped repeatedly takes about 5 ms per GiB, so it gets at
    most a twentieth of the time.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._page_bytes = 0
        self._repeated, self._recount_at = 0, 0.0
        try:
            self._descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        except OSError:  # not Linux
            pass

    def used_bytes(self) -> int:
        """The present amount."""
        if self._descriptor >= 0:
            resident = int(os.pread(self._descriptor, 64, 0).split()[1]) * self._page_bytes
            return max(0, resident - self._repeated_bytes()) if has_private_maps() else resident
        import psutil

        return int(psutil.Process().memory_info().rss)

    def _repeated_bytes(self) -> int:
        now = perf_counter()
        if now >= self._recount_at:
            self._repeated = repeated_bytes()
            self._recount_at = now + RECOUNT_SHARE * (perf_counter() - now)
        return self._repeated

    def close(self) -> None:
        """No readings afterwards. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def collect_garbage() -> None:
    """Collect reference cycles. Nothing else runs meanwhile, and with many objects this takes long."""
    gc.collect()


def trim() -> None:
    """Have C's allocator return its free pages. Other threads run meanwhile."""
    function = _libc("malloc_trim")
    if function is not None:
        function(0)


def keep_large_blocks_apart() -> None:
    """Have C's allocator return each large block to the system when it is freed.

    By default glibc raises the size from which it does so with every large block freed, up to 32 MiB: tasks' arrays
    then end up between objects that live longer, and their memory stays. Environment variables that configure the
    allocator take precedence.
    """
    function = _libc("mallopt")
    if function is None or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    function(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
    function(_M_TRIM_THRESHOLD, _SPARE_BYTES)


def _libc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)  # musl has neither
    return function
