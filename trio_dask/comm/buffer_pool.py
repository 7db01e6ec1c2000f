"""Memory for large incoming values, used again for the next ones.

The system clears each page that it hands out, and a virtual machine may have to get it from its host first: filling
fresh memory takes longer by a third, or ten times as long. So a map whose last view has died is kept for a short time,
for a value of about the same size.

A map may come back anywhere: in any thread, during garbage collection, with any lock held. So the code that takes it
back never waits for a lock, and starts its thread without the module `threading`, which has locks of its own.

A kept map still holds the data of some value. Nobody sees it: callers of `allocate` show the memory to others only
after they have filled all of it. A caller that gives up halfway drops it; a thread that still writes into it holds it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from trio_dask.host_limits import memory

KEEP_S: Final = 5.0
MAX_BYTES: Final = 2**30
MACHINE_SHARE: Final = 1 / 16
WASTE_SHARE: Final = 1 / 8
"""A map may be larger than the request by this share of it at most: no budget accounts for the difference."""

HUGE_PAGE_BYTES: Final = 2 * 2**20
"""Maps of whole huge pages begin at one; others may have small pages at both ends."""

MIN_NAP_S: Final = 0.5


class _Byte(ctypes.Union):
    """Views of unions, unlike those of numbers, have the format of plain bytes."""

    _fields_ = (("value", ctypes.c_ubyte),)


class _Kept(NamedTuple):
    mapping: mmap.mmap
    since: float


def _start(work: Callable[[], None]) -> None:
    start_new_thread(work, ())


class BufferPool:
    """Hands out memory, and keeps what comes back for `keep_s`, for others; at most `max_bytes` of it.

    Any thread may call anything. While something is kept, a thread unmaps it in time. Neither the end of the process
    nor a fork waits for that thread.
    """

    def __init__(
        self,
        max_bytes: int,
        keep_s: float = KEEP_S,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        start: Callable[[Callable[[], None]], None] = _start,
    ) -> None:
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._sleep = sleep
        self._start = start
        self._returned: deque[mmap.mmap] = deque()
        self.forget()

    def forget(self) -> None:
        """Start afresh after a fork: other threads are gone, and locks that they held would never be released."""
        self._lock = threading.Lock()  # guards what is kept; the thread that releases it then checks what was returned
        self._watched = threading.Lock()  # held for the thread
        self._kept: list[_Kept] = []  # the oldest first
        self._returned.clear()

    @property
    def kept_bytes(self) -> int:
        """How much is kept and free."""
        return sum(len(kept.mapping) for kept in self._kept.copy())

    def keep_at_most(self, max_bytes: int) -> None:
        """From now on keep no more than this; an earlier, smaller limit stays."""
        self._max_bytes = min(self._max_bytes, max_bytes)
        self._unmap_oldest(lambda: self._excess(0))

    def give_back(self) -> None:
        """Return everything that is kept to the system."""
        self._unmap_oldest(lambda: len(self._kept))

    def allocate(self, size: int) -> memoryview:
        """Writeable memory of `size` bytes, at least one. The caller fills all of it before anybody else sees it."""
        mapping = self._take(size)
        if mapping is None:
            try:
                mapping = _fresh(size)
            except OSError:  # the system may lack just the memory that is kept
                self.give_back()
                mapping = _fresh(size)
        array = (_Byte * len(mapping)).from_buffer(mapping)
        weakref.finalize(array, self._come_back, mapping).atexit = False
        return memoryview(array)[:size]

    def _take(self, size: int) -> mmap.mmap | None:
        """The smallest kept map that fits; of several, the last that came back: the cache may still hold it."""
        if not self._kept or not self._lock.acquire(blocking=False):
            return None
        try:
            sizes = [len(kept.mapping) for kept in self._kept]
            best = min((found for found in sizes if size <= found <= _rounded(size) * (1 + WASTE_SHARE)), default=None)
            if best is None:
                return None
            return self._kept.pop(len(sizes) - 1 - sizes[::-1].index(best)).mapping
        finally:
            self._lock.release()
            self._keep_returned()

    # ------------------------------------------------------------------------------------------ coming back

    def _come_back(self, mapping: mmap.mmap) -> None:
        self._returned.append(mapping)
        self._keep_returned()

    def _keep_returned(self) -> None:
        """Keep what came back, unless the lock is held: its holder, perhaps this very thread, does so next."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                gone = self._add_returned()
            finally:
                self._lock.release()
            del gone  # unmapping takes a while, so it is done without the lock
        self._start_watch()

    def _add_returned(self) -> list[_Kept]:
        gone: list[_Kept] = []
        while self._returned:
            new = _Kept(self._returned.popleft(), self._clock())
            if len(new.mapping) > self._max_bytes:
                gone.append(new)
                continue
            gone += self._cut(self._excess(len(new.mapping)))
            self._kept.append(new)
        return gone

    def _excess(self, more: int) -> int:
        """How many of the oldest maps have to go to make room for `more` bytes."""
        count, left = 0, self.kept_bytes + more
        while left > self._max_bytes and count < len(self._kept):
            left -= len(self._kept[count].mapping)
            count += 1
        return count

    # ------------------------------------------------------------------------------------------ letting go

    def _cut(self, count: int) -> list[_Kept]:
        gone = self._kept[:count]
        del self._kept[:count]
        return gone

    def _unmap_oldest(self, choose: Callable[[], int]) -> None:
        """Unmap the oldest maps, as many as `choose` says under the lock."""
        self._keep_returned()
        with self._lock:
            gone = self._cut(choose())
        del gone
        self._keep_returned()

    def _start_watch(self) -> None:
        if not self._kept or not self._watched.acquire(blocking=False):
            return
        try:
            self._start(self._watch)
        except RuntimeError:  # there are too many threads, or the interpreter ends
            self._watched.release()
            self._keep_nothing()

    def _keep_nothing(self) -> None:
        """Without waiting: the thread that holds the lock does this next."""
        if self._lock.acquire(blocking=False):
            try:
                gone = self._cut(len(self._kept))
            finally:
                self._lock.release()
            del gone

    def _watch(self) -> None:
        """In the thread: unmap what was not used in time. Ends when nothing is kept."""
        while self._kept:
            due = min((kept.since for kept in self._kept.copy()), default=0.0) + self._keep_s
            if due > self._clock():
                self._sleep(max(due - self._clock(), MIN_NAP_S))
            self._unmap_oldest(self._count_old)
        self._watched.release()
        self._start_watch()  # memory that came back just now has found this thread still there

    def _count_old(self) -> int:
        old = self._clock() - self._keep_s
        return sum(kept.since <= old for kept in self._kept)


def _rounded(size: int) -> int:
    return -(-size // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES


def _fresh(size: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, _rounded(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


pool = BufferPool(min(MAX_BYTES, int(MACHINE_SHARE * memory().number)))
"""What this process has."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.forget)
