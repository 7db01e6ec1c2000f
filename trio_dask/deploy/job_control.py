"""Ctrl-Z: the processes that a program looks after stop with it, and go on with it.

They have sessions of their own, so the terminal reaches this program alone. Left running, they would compute unwatched,
and nobody could end them by the keys that end everything else.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

__all__ = ["heed_ctrl_z", "suspended_with_us"]


class Suspendable(Protocol):
    """Processes that stop with this program. A signal handler makes both calls: they must not wait, nor take locks."""

    def suspend(self) -> None:
        """Stop them."""
        ...

    def resume(self) -> None:
        """Have them go on."""
        ...


_all: dict[Suspendable, None] = {}


@contextmanager
def suspended_with_us(processes: Suspendable) -> Generator[None]:
    """For the block: these stop and go on with this program, once it heeds Ctrl-Z."""
    _all[processes] = None
    heed_ctrl_z()
    try:
        yield
    finally:
        del _all[processes]


def heed_ctrl_z() -> None:
    """Answer Ctrl-Z (SIGTSTP) from now on, where this is the main thread, and nobody else does."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGTSTP"):
        return
    if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    stopped = list(_all)
    for processes in stopped:
        processes.suspend()
    signal.signal(number, signal.SIG_DFL)
    try:
        # Comes back when somebody lets us go on; at once, where the kernel sees nobody who could.
        signal.raise_signal(number)
    finally:
        signal.signal(number, _stop)
        for processes in stopped:
            processes.resume()
