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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_dask.processes.child_process import Child

_children: dict[Child, None] = {}


@contextmanager
def suspended_with_us(child: Child) -> Generator[None]:
    """For the block: this child stops and goes on with this program."""
    _children[child] = None
    handle_ctrl_z()
    try:
        yield
    finally:
        del _children[child]


def handle_ctrl_z() -> None:
    """Handle Ctrl-Z (SIGTSTP) from now on, if this is the main thread and the program does not handle it already."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGTSTP"):
        return
    if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    stopped = list(_children)
    for child in stopped:
        child.suspend()
    signal.signal(number, signal.SIG_DFL)
    try:
        # Returns once we are continued; at once if the kernel sees nothing that could continue us.
        signal.raise_signal(number)
    finally:
        signal.signal(number, _stop)
        for child in stopped:
            child.resume()
