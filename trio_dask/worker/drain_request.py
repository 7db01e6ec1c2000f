"""The wish that a worker drain: take nothing new, finish what runs, save its results, and leave."""

from __future__ import annotations

import math
import signal

import trio

__all__ = ["DrainRequest"]

INTERRUPTED_S = 1.5
"""Ctrl-C ends a worker within two seconds, its goodbye included."""


class DrainRequest:
    """Made by whoever runs a worker, and given to `run_worker`."""

    def __init__(self) -> None:
        self.reason = ""
        """The first one that was given."""
        self.limit_s = math.inf
        """The worker leaves after so many seconds at the latest, or after its own limit if that is shorter."""
        self.is_possible = False
        """Whether there is a scheduler to take leave of; set by the worker."""
        self._asked = trio.Event()

    def ask(self, reason: str, limit_s: float = math.inf) -> None:
        """Ask the worker to drain, within a limit perhaps. A later request can only shorten it."""
        self.reason = self.reason or reason
        self.limit_s = min(self.limit_s, limit_s)
        self._asked.set()

    def on_signal(self, number: int) -> bool:
        """Ask for what a signal means: who presses Ctrl-C has little time. False if there is nothing to wait for."""
        if self.is_possible:
            self.ask("signal", INTERRUPTED_S if number == signal.SIGINT else math.inf)
        return self.is_possible

    async def wait(self) -> None:
        """Wait until it is asked for, or asked for once more."""
        await self._asked.wait()
        self._asked = trio.Event()
