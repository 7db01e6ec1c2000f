"""The end of a process, where it cannot be left to the process itself."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import suppress
from types import TracebackType

from trio_dask.owned_files import remove_kept_files

__all__ = ["LastResort", "end_descendants", "remove_scratch"]

LATE_S = 1.0
SWEEP_S = 1.0


def end_descendants() -> None:
    """Kill everything that this process has started and that is still there, and what that has started."""
    found: dict[int, None] = {}
    left = [os.getpid()]
    while left:
        for child in _children(left.pop()):
            if child not in found:
                found[child] = None
                left.append(child)
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it is gone, or this is not Linux
        return _children_elsewhere(pid)
    children: list[int] = []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                children += map(int, file.read().split())
        except FileNotFoundError:  # that thread is gone, or this kernel does not tell
            continue
        except OSError:
            continue
    return children


def _children_elsewhere(pid: int) -> list[int]:
    import psutil  # slow to load

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


async def remove_scratch(local_directory: str | None) -> None:
    """Remove what killed workers have spilled there, in a second at most: for when no worker follows that would.

    Not to be cancelled: it is for those who have been.
    """
    import trio  # the program's start must not wait for what options alone do not need

    from trio_dask.worker.spill_directory import SpillDirectory, remove_leftovers

    with trio.move_on_after(SWEEP_S, shield=True):
        base = SpillDirectory(local_directory).base
        await trio.to_thread.run_sync(remove_leftovers, base, abandon_on_cancel=True)


class LastResort:
    """Ends the process when it should have ended by itself and has not: its event loop is blocked, say, by a task.

    A context manager; afterwards the process may take as long as it likes.
    """

    def __init__(self) -> None:
        self._status = 0
        self._text = ""
        self._deadline = math.inf
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LastResort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.expect(math.inf, 0, "")

    def expect(self, seconds: float, status: int, text: str) -> None:
        """The process is to have ended so many seconds from now. If it is late by more than a second, it is ended.

        Then `status` is its exit status, and `text` its last line on stderr.
        """
        with self._changed:
            self._status, self._text = status, text
            self._deadline = time.monotonic() + seconds + LATE_S
            self._changed.notify()
        if self._thread is None and seconds < math.inf:
            self._thread = threading.Thread(target=self._watch, name="last resort", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        with self._changed:
            while (left := self._deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            with suppress(OSError):
                os.set_blocking(2, False)  # a reader that has stopped must not save us now
                os.write(2, f"{self._text}\n".encode())
            end_descendants()
            remove_kept_files()
            os._exit(self._status)
