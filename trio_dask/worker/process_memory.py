"""How much memory this process has, and how to give back to the system what it has and does not need."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from time import perf_counter

from trio_dask.host_limits import repeated_bytes
from trio_dask.protocol.raw_memory import has_private_maps

__all__ = ["ProcessMemory", "collect_garbage", "keep_large_blocks_apart", "trim"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BLOCK_BYTES = 2**20
_SPARE_BYTES = 4 * 2**20
LOOK_SHARE = 20


class ProcessMemory:
    """The resident memory of this process, with what it looks at in mapped files, also if the kernel could drop that.

    Large arguments of several tasks are maps of the same pages, which count once. A reading takes 2 µs on Linux, and
    psutil's 8 µs elsewhere. To tell what is mapped repeatedly takes some 5 ms for each GiB, so that is done as seldom
    as keeps it below a twentieth of the time.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        self._page_bytes = 0
        self._repeated, self._look_again_at = 0, 0.0
        try:
            self._descriptor = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
            self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        except OSError:  # not Linux
            pass

    def used_bytes(self) -> int:
        """How much there is now."""
        if self._descriptor >= 0:
            resident = int(os.pread(self._descriptor, 64, 0).split()[1]) * self._page_bytes
            return max(0, resident - self._repeated_bytes()) if has_private_maps() else resident
        import psutil

        return int(psutil.Process().memory_info().rss)

    def _repeated_bytes(self) -> int:
        now = perf_counter()
        if now >= self._look_again_at:
            self._repeated = repeated_bytes()
            self._look_again_at = now + LOOK_SHARE * (perf_counter() - now)
        return self._repeated

    def close(self) -> None:
        """Idempotent; there are no readings afterwards."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def collect_garbage() -> None:
    """Find what refers to itself alone. Nothing else runs meanwhile: with many objects this takes long."""
    gc.collect()


def trim() -> None:
    """Have the allocator of C give its free pages back. The interpreter goes on meanwhile."""
    function = _libc("malloc_trim")
    if function is not None:
        function(0)


def keep_large_blocks_apart() -> None:
    """Have the allocator of C return each large block to the system when it is freed.

    By default glibc raises the size from which it does so with every large block that it sees freed, up to 32 MiB: the
    arrays of tasks then end up between longer lived things, and their memory stays. Environment variables
    that set the allocator up take precedence.
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
