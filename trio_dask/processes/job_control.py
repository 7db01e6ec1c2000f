"""Ctrl-Z: the processes that a program looks after stop with it, and go on with it.

They have sessions of their own, so the terminal reaches this program alone. Left running, they would compute unwatched,
and Ctrl-C could not end them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Suspendable(Protocol):
    """Processes that stop with this program. A signal handler calls both: they must neither wait nor take locks."""

    def suspend(self) -> None:
        """Stop them."""
        ...

    def resume(self) -> None:
        """Have them go on."""
        ...


_all: dict[Suspendable, None] = {}


@contextmanager
def suspended_with_us(processes: Suspendable) -> Generator[None]:
    """For the block: these processes stop and go on with this program."""
    _all[processes] = None
    handle_ctrl_z()
    try:
        yield
    finally:
        del _all[processes]


def handle_ctrl_z() -> None:
    """Handle Ctrl-Z (SIGTSTP) from now on, if this is the main thread and the program does not handle it already."""
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
        # Comes back once we are continued; at once if the kernel sees nothing that could continue us.
        signal.raise_signal(number)
    finally:
        signal.signal(number, _stop)
        for processes in stopped:
            processes.resume()
