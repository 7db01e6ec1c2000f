"""The stdin of the program on a host: while it is open, and the launcher speaks, the program may live.

At its end, or after a silence, the program is asked to leave, and ends with everything it has started a moment later.
A thread watches, because a blocked loop must not keep the program alive.
"""

from __future__ import annotations

import json
import math
import os
import select
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from trio_dask.deploy.ssh.orders import Lines

GRACE_S = 0.4


class Lifeline:
    """Reads what the launcher says on the descriptor `fd`, line by line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines = Lines()
        self._read: list[bytes] = []
        self.orders: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        """What the launcher ordered while the lifeline was watched; None at its end."""

    def next_order(self) -> dict[str, Any] | None:
        """Wait for the next order, before anything is watched; None at the end of the lifeline."""
        while True:
            while not self._read:
                data = os.read(self._fd, 65536)
                if not data:
                    return None
                self._read += self._lines.feed(data)
            order: dict[str, Any] = json.loads(self._read.pop(0))
            if "beat" not in order:
                return order

    def watch(
        self, ask: Callable[[str, int | None], None], end: Callable[[], object], *, silence_s: float
    ) -> threading.Thread:
        """In another thread, call `ask` with a reason for each signal that is ordered, and, without one, at the end.

        `GRACE_S` after that call `end`. The end is that of the lifeline, or of `silence_s` in which nothing came.
        """

        def watch() -> None:
            reason = self._pass_on(ask, silence_s)
            self.orders.put(None)
            ask(reason, None)
            time.sleep(GRACE_S)
            end()

        thread = threading.Thread(target=watch, name="lifeline", daemon=True)
        thread.start()
        return thread

    def _pass_on(self, ask: Callable[[str, int | None], None], silence_s: float) -> str:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        while True:
            for line in self._read:
                order: dict[str, Any] = json.loads(line)
                if "signal" in order:
                    ask(order["reason"], order["signal"])
                elif "beat" not in order:
                    self.orders.put(order)
            if not poller.poll(None if math.isinf(silence_s) else silence_s * 1000):
                return f"the launcher was silent for {silence_s:g} s"
            data = os.read(self._fd, 65536)
            if not data:
                return "the launcher, or the connection with it, has ended"
            self._read = self._lines.feed(data)
