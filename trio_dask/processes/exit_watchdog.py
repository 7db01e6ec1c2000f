"""Ends a process that should have ended by itself and has not, for example because a task blocks its loop."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from trio_dask.owned_files import remove_kept_files
from trio_dask.procfs import children_of

FLUSH_S = 0.5


class ExitWatchdog:
    """A context manager; after the block, the process may take as long as it likes."""

    def __init__(self) -> None:
        self._status = 0
        self._text = ""
        self._deadline = math.inf
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ExitWatchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.expect_end(math.inf, 0)

    def expect_end(self, seconds: float, status: int, text: str = "") -> None:
        """Unless the process ends within this many seconds, end it and what it has started, with this exit status.

        `text` is then its last line on stderr. A later call replaces an earlier one.
        """
        with self._changed:
            self._status, self._text = status, text
            self._deadline = time.monotonic() + seconds
            self._changed.notify()
        if self._thread is None and seconds < math.inf:
            self._thread = threading.Thread(target=self._watch, name="exit watchdog", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        with self._changed:
            while (left := self._deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
        try:
            if self._text:
                with suppress(OSError):
                    os.set_blocking(2, False)  # a reader that has stopped must not delay the end
                    os.write(2, f"{self._text}\n".encode())
            end_descendants(os.getpid())
            remove_kept_files()
            flush_stdout()
        finally:
            os._exit(self._status)


def flush_stdout() -> bool:
    """Write out what tasks have printed. False if that takes too long, because nobody reads it."""

    def flush() -> None:
        with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
            sys.stdout.flush()

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(FLUSH_S)
    return not thread.is_alive()


def end_descendants(pid: int) -> None:
    """Kill all descendants of this process."""
    found: dict[int, None] = {}
    left = [pid]
    while left:
        for child in children_of(left.pop()):
            if child not in found:
                found[child] = None
                left.append(child)
    for descendant in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(descendant, signal.SIGKILL)
