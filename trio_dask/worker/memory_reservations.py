"""Memory that threads of this worker are about to take: a result that is coming, an input that is to be unpickled.

A task can make a large value in a moment in which nobody else gets the interpreter, and the next one after it: the
watch over the memory would come too late. So a thread that expects to take much passes this gate first, and waits there
until there is room. What it was let in for counts as taken, besides what the process has, until it is done.

Where no room can be made, threads are let in all the same, one at a time: each when no thread that was let in before
is still at work. A task that unpickles an input passes the gate a second time, and is not at work while it waits there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

__all__ = ["Gate"]


class _Waiter(NamedTuple):
    nbytes: int
    has: int  # for what this thread was let in before
    go: SimpleQueue[None]


class _Own(threading.local):
    """For how much the present thread was let in."""

    nbytes = 0


class Gate:
    """`fits` says whether so many bytes can be taken now. `call` has `look` called soon, in the thread that makes room.

    Any thread but that one may `enter`; it must `leave` again, with the same size.
    """

    def __init__(self, fits: Callable[[int], bool], call: Callable[[], None]) -> None:
        self._fits = fits
        self._call = call
        self._lock = threading.Lock()
        self._promised = 0
        self._own = _Own()
        self._waiting: deque[_Waiter] = deque()
        self._closed = False

    def enter(self, nbytes: int) -> None:
        """Wait until so many bytes can be taken. First come, first served."""
        waiter = _Waiter(nbytes, self._own.nbytes, SimpleQueue())
        self._own.nbytes += nbytes
        with self._lock:
            if self._closed or (not self._waiting and self._fits(self._promised + nbytes)):
                self._promised += nbytes
                return
            self._waiting.append(waiter)
        self._call()
        waiter.go.get()

    def leave(self, nbytes: int) -> None:
        """What was taken shows by now, or was given back."""
        self._own.nbytes -= nbytes
        with self._lock:
            self._promised -= nbytes
            has_waiters = bool(self._waiting)
        if has_waiters:
            self._call()

    def look(self, *, helpless: bool, urgent: bool) -> int:
        """Let in the threads that fit; returns how much the next one waits for, with what others were let in for, or 0.

        `helpless`: no room can be made. `urgent`: threads that were let in may be waiting for others that were not.
        """
        with self._lock:
            while self._waiting:
                wanted = self._promised + self._waiting[0].nbytes
                is_quiet = self._promised == sum(waiter.has for waiter in self._waiting)
                if not self._fits(wanted) and not (helpless and (urgent or is_quiet)):
                    return wanted
                self._let_in()
        return 0

    def close(self) -> None:
        """Let all threads in, now and later: nothing makes room any more."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._let_in()

    def _let_in(self) -> None:
        waiter = self._waiting.popleft()
        self._promised += waiter.nbytes
        waiter.go.put(None)
