"""Poll for a moment before sleeping: for an event loop whose messages follow each other closely.

Waking a sleeping processor takes some 50 µs, on virtual machines in particular, and a lone task passes the scheduler
twice. So if the last waits of the loop were short, it polls for as long as such waits last, before it has the kernel
wake it. If they were not, it sleeps at once: an idle scheduler, or one with long tasks, spends nothing.

After each poll the loop yields the processor. If another process then keeps it for long, the processor is scarce, and
the loop stops polling for a while: the kernel runs a process that yields last, and prefers one that it wakes.

This is the adaptive polling that the kernel's `halt_poll_ns` and `net.core.busy_read` do for processors and sockets.
"""

from __future__ import annotations

import os
import select
from collections.abc import Generator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Final

import trio

ENOUGH: Final = 2
"""After this many short waits in a row, the next one is expected to be short as well."""

SCARCE_S: Final = 0.5e-3
"""If `sched_yield` takes longer than this, another process is competing for the CPU."""

REST_S: Final = 0.1
"""How long the loop then does not poll."""


class BusyPoll(trio.abc.Instrument):
    """Polls for the loop in which it is entered, for up to `limit_s` before each wait. 0 turns it off."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._poller: select.epoll | None = None
        self._watched = 0
        self._short = 0
        self._began = 0.0
        self._rests_until = 0.0

    @contextmanager
    def running(self) -> Generator[None]:
        """Within the block, poll when something is watched."""
        if not self._limit_s or not hasattr(select, "epoll"):
            yield
            return
        with select.epoll() as self._poller:
            trio.lowlevel.add_instrument(self)
            try:
                yield
            finally:
                trio.lowlevel.remove_instrument(self)
                self._poller = None

    @contextmanager
    def watching(self, fd: int | None) -> Generator[None]:
        """Within the block, poll this descriptor as well. Without one, the loop notices input when it sleeps."""
        poller = self._poller
        if poller is None or fd is None:
            yield
            return
        poller.register(fd, select.EPOLLIN)
        self._watched += 1
        try:
            yield
        finally:
            self._watched -= 1
            with suppress(OSError, ValueError):  # a closed one is gone from the poller; or that is closed
                poller.unregister(fd)

    def before_io_wait(self, timeout: float) -> None:
        """Trio is about to wait; it asks the kernel next, and finds what this has found."""
        if timeout <= 0:
            return
        self._began = began = perf_counter()
        poller = self._poller
        if self._short < ENOUGH or not self._watched or began < self._rests_until or poller is None:
            return
        until = began + min(timeout, self._limit_s)
        now = began
        while now < until and not poller.poll(0, 1):
            before = perf_counter()
            os.sched_yield()
            now = perf_counter()
            if now - before > SCARCE_S:
                self._rests_until = now + REST_S
                return

    def after_io_wait(self, timeout: float) -> None:
        """It has waited."""
        if timeout > 0:
            self._short = self._short + 1 if perf_counter() - self._began < self._limit_s else 0
