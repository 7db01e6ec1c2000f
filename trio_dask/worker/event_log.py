"""Events that tasks have logged and that were not sent yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from trio_dask.protocol.messages import LogEvent

KEPT: Final = 10_000
"""Of a worker without a scheduler; older ones are dropped."""


class EventLog:
    """Any thread adds; the thread of the event loop takes, soon after, and before it reports what came after."""

    def __init__(self, send: Callable[[], None]) -> None:
        self.waiting: deque[LogEvent] = deque(maxlen=KEPT)
        self._send = send
        self._token: trio.lowlevel.TrioToken | None = None

    def attach(self) -> None:
        """Belong to the loop that runs here."""
        self._token = trio.lowlevel.current_trio_token()

    def add(self, message: LogEvent) -> None:
        """Have an event sent soon."""
        self.waiting.append(message)
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._send, idempotent=True)

    def take(self) -> list[LogEvent]:
        """What is to be sent now."""
        return [self.waiting.popleft() for _ in range(len(self.waiting))]
