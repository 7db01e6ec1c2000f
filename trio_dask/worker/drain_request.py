"""The request that a worker drain: take nothing new, finish running tasks, have its results copied, and leave."""

from __future__ import annotations

import math
import signal

import trio

INTERRUPTED_S = 1.5
"""Ctrl-C ends a worker within two seconds, its goodbye included."""


class DrainRequest:
    """Made by the caller of `run_worker`, and given to it."""

    def __init__(self) -> None:
        self.reason = ""
        """The first reason that was given."""
        self.limit_s = math.inf
        """The worker leaves within this time, or its own limit if that is shorter."""
        self.is_possible = False
        """Whether the worker has a scheduler; set by the worker."""
        self._asked = trio.Event()

    def ask(self, reason: str, limit_s: float = math.inf) -> None:
        """Ask the worker to drain, perhaps within a limit. A later request can only shorten it."""
        self.reason = self.reason or reason
        self.limit_s = min(self.limit_s, limit_s)
        self._asked.set()

    def on_signal(self, number: int) -> bool:
        """Ask for what a signal means: after Ctrl-C there is little time. False if there is nothing to wait for."""
        if self.is_possible:
            self.ask("signal", INTERRUPTED_S if number == signal.SIGINT else math.inf)
        return self.is_possible

    async def wait(self) -> None:
        """Wait for the first or the next request."""
        await self._asked.wait()
        self._asked = trio.Event()
