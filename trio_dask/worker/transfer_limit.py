"""A bound on the number and the bytes of simultaneous transfers."""

from __future__ import annotations

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
        self._turn = trio.Lock()  # serves in the order of requests
        self._released = trio.Event()

    @asynccontextmanager
    async def share(self, nbytes: int) -> AsyncGenerator[None]:
        """Wait for a share of this size, and hold it for the block."""
        async with self._turn:
            while not self._fits(nbytes):
                self._released = trio.Event()
                await self._released.wait()
            self._held_count += 1
            self._held_bytes += nbytes
        try:
            yield
        finally:
            self._held_count -= 1
            self._held_bytes -= nbytes
            self._released.set()

    def _fits(self, nbytes: int) -> bool:
        within = self._held_count < self._count and self._held_bytes + nbytes <= self._nbytes
        return within or not self._held_count
