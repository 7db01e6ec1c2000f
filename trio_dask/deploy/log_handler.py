"""Log lines that can neither stall a program nor break it.

A terminal that was stopped, or a pipe that nobody reads, blocks the thread that writes to it. So a separate thread
writes the lines. When too many wait, new ones are dropped: the first lines say more than the last.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

MAX_WAITING = 10_000


class LogLines(logging.Handler):
    """Writes log records to a descriptor, by default stderr, as lines that `formatter` makes, from its own thread."""

    def __init__(self, formatter: logging.Formatter, fd: int = 2) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._fd = fd
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._first: Callable[[str], bool] | None = None

    @contextmanager
    def offered_to(self, write: Callable[[str], bool]) -> Generator[None]:
        """For the block, a line is written only if `write(line)`, in any thread, returns False."""
        self._first = write
        try:
            yield
        finally:
            self._first = None

    @property
    def is_for_stderr(self) -> bool:
        """Whether the lines go to stderr."""
        return self._fd == 2

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record to the writing thread."""
        try:
            text = self.format(record)
        except Exception:  # formatting arguments calls any code; logging has its own way to report that
            self.handleError(record)
            return
        if self._first is not None and self._first(text):
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
                lines.append(self.format(_note_of_loss(self._dropped)))
                self._dropped = 0
            if lines:
                self._put("\n".join(lines) + "\n")
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _put(self, text: str) -> None:
        encoding = getattr(sys.stderr, "encoding", None) if self._fd == 2 else None
        left = text.encode(encoding or "utf-8", "backslashreplace")
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            pass  # stderr is closed, its reader is gone, or the disk is full: nothing is left to report to


def _note_of_loss(number: int) -> logging.LogRecord:
    text = f"{number} log lines are missing here: they came faster than they could be written"
    return logging.LogRecord("trio_dask.program", logging.WARNING, __file__, 0, text, None, None)


@contextmanager
def stderr_lines(write: Callable[[str], bool]) -> Generator[None]:
    """For the block, log lines for stderr are offered to `write` first, see `LogLines.offered_to`."""
    handlers = logging.getLogger("trio_dask").handlers
    lines = next((each for each in handlers if isinstance(each, LogLines) and each.is_for_stderr), None)
    if lines is None:
        yield
        return
    with lines.offered_to(write):
        yield
