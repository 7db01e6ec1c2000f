"""Look a moment longer before going to sleep: for an event loop whose messages come one upon the other.

To wake a processor that sleeps takes some 50 µs, on virtual machines in particular, and a lone task passes the
scheduler twice. So where the last waits of the loop were short, it looks again and again whether something has come,
for as long as such waits last, before it has the kernel wake it. Where they were not, it sleeps at once: nothing is
spent on a scheduler that is idle, or whose tasks take their time.

After each look the processor is offered to whoever else has something to do. Where somebody takes it for long, it is
scarce, and the loop leaves that be for a while: one who yields comes last, one who sleeps is preferred when woken.

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

__all__ = ["BusyPoll"]

ENOUGH: Final = 2
"""So many short waits, one after the other, promise another."""

SCARCE_S: Final = 0.5e-3
"""Who gets the processor back so late has competitors: those who answer us take less."""

REST_S: Final = 0.1
"""For so long the loop then sleeps whenever it waits."""


class BusyPoll(trio.abc.Instrument):
    """Polls for the loop in which it is entered, up to `limit_s` before each of its waits. 0 turns it off."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._poller: select.epoll | None = None
        self._watched = 0
        self._short = 0
        self._began = 0.0
        self._rests_until = 0.0

    @contextmanager
    def running(self) -> Generator[None]:
        """Poll, for the length of the block, when something is watched."""
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
        """For the length of the block, look at this descriptor as well. What has none is found when the loop sleeps."""
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
            with suppress(OSError, ValueError):  # it was closed, and with it is gone from here; or we are
                poller.unregister(fd)

    def before_io_wait(self, timeout: float) -> None:
        """Trio is about to wait; it asks the kernel next, and finds what was found here."""
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
