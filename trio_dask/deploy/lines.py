"""Log lines on stderr that can neither stall a program nor break it.

A terminal that was stopped, or a pipe that nobody reads, blocks whoever writes to it. So a thread of its own writes,
and what it cannot get rid of is dropped. The first lines are kept: they say more than the last.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from queue import Empty, SimpleQueue

__all__ = ["StderrLines"]

MAX_WAITING = 10_000
PLAIN = "%(message)s"
DETAILED = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class StderrLines(logging.Handler):
    """Writes log records to stderr, one line each, from a thread of its own."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(DETAILED if debug else PLAIN))
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record to the writing thread."""
        try:
            text = self.format(record)
        except Exception:  # a record whose arguments cannot be printed is the fault of whoever logged it
            self.handleError(record)
            return
        if self._queue.qsize() >= MAX_WAITING:
            self._dropped += 1
            return
        self._queue.put(text)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log lines", daemon=True)
            self._thread.start()

    def drain(self, timeout_s: float) -> None:
        """Wait until every line so far is out, at most `timeout_s` seconds."""
        if self._thread is not None:
            out = threading.Event()
            self._queue.put(out)
            out.wait(timeout_s)

    def _work(self) -> None:
        while True:
            items = [self._queue.get()]
            try:
                while True:
                    items.append(self._queue.get_nowait())
            except Empty:
                pass
            lines = [item for item in items if isinstance(item, str)]
            if self._dropped:
                lines.append(f"({self._dropped} lines are missing here: nobody read them)")
                self._dropped = 0
            if lines:
                _put("\n".join(lines) + "\n")
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()


def _put(text: str) -> None:
    left = text.encode(getattr(sys.stderr, "encoding", None) or "utf-8", "backslashreplace")
    try:
        while left:
            left = left[os.write(2, left) :]
    except OSError:
        pass  # stderr is closed, or its reader is gone: there is nobody to tell
