"""A bound on the number and the bytes of simultaneous transfers."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


class TransferLimit:
    """At most `count` transfers with at most `nbytes` together; a larger one is admitted alone.

    First come, first served, so that small ones do not overtake a large one for ever.
    """

    def __init__(self, count: int, nbytes: int) -> None:
        self._count = count
        self._nbytes = nbytes
        self._held_count = 0
        self._held_bytes = 0
        self._queue: deque[tuple[int, trio.Event]] = deque()

    @asynccontextmanager
    async def share(self, nbytes: int) -> AsyncGenerator[None]:
        """Wait for a share of this size, and hold it for the block."""
        if self._queue or not self._fits(nbytes):
            await self._wait(nbytes)
        else:
            self._hold(nbytes)
            await trio.lowlevel.cancel_shielded_checkpoint()
        try:
            yield
        finally:
            self._held_count -= 1
            self._held_bytes -= nbytes
            self._admit()

    async def _wait(self, nbytes: int) -> None:
        place = nbytes, trio.Event()
        self._queue.append(place)
        try:
            await place[1].wait()
        except trio.Cancelled:
            if place[1].is_set():  # admitted and cancelled at once
                self._held_count -= 1
                self._held_bytes -= nbytes
            else:
                self._queue.remove(place)
            self._admit()
            raise

    def _fits(self, nbytes: int) -> bool:
        within = self._held_count < self._count and self._held_bytes + nbytes <= self._nbytes
        return within or not self._held_count

    def _hold(self, nbytes: int) -> None:
        self._held_count += 1
        self._held_bytes += nbytes

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            nbytes, admitted = self._queue.popleft()
            self._hold(nbytes)
            admitted.set()
