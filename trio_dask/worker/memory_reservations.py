"""Memory that threads of this worker are about to take: for a coming result, or for an input to unpickle.

A task can make a large value while no other thread gets the interpreter, and so can the next task: the memory monitor
would come too late. So a thread that expects to take much reserves it first, and waits until there is room. A
reservation counts as taken, besides the memory of the process, until it is released.

Where no room can be made, threads are admitted all the same, one at a time: each when no admitted thread is still at
work. A task that unpickles an input reserves a second time, and is not at work while it waits for that.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple


class _Waiter(NamedTuple):
    nbytes: int
    has: int  # reserved by this thread before
    go: SimpleQueue[None]


class _Own(threading.local):
    """What the present thread has reserved."""

    nbytes = 0


class Reservations:
    """`fits` says whether this many bytes can be taken now. `call` requests `admit` from the thread that makes room.

    Any other thread may `reserve`, and must `release` the same size later.
    """

    def __init__(self, fits: Callable[[int], bool], call: Callable[[], None]) -> None:
        self._fits = fits
        self._call = call
        self._lock = threading.Lock()
        self._reserved = 0
        self._own = _Own()
        self._waiting: deque[_Waiter] = deque()
        self._closed = False

    def reserve(self, nbytes: int) -> None:
        """Wait until this many bytes can be taken. First come, first served."""
        waiter = _Waiter(nbytes, self._own.nbytes, SimpleQueue())
        self._own.nbytes += nbytes
        with self._lock:
            if self._closed or (not self._waiting and self._fits(self._reserved + nbytes)):
                self._reserved += nbytes
                return
            self._waiting.append(waiter)
        self._call()
        waiter.go.get()

    def release(self, nbytes: int) -> None:
        """The memory shows in the process by now, or was given back."""
        self._own.nbytes -= nbytes
        with self._lock:
            self._reserved -= nbytes
            has_waiters = bool(self._waiting)
        if has_waiters:
            self._call()

    def admit(self, *, helpless: bool, urgent: bool) -> int:
        """Admit the threads that fit. Gives the bytes that the next one waits for, with those reserved before, or 0.

        `helpless`: no room can be made. `urgent`: admitted threads may be waiting for others that are not admitted.
        """
        with self._lock:
            while self._waiting:
                wanted = self._reserved + self._waiting[0].nbytes
                is_quiet = self._reserved == sum(waiter.has for waiter in self._waiting)
                if not self._fits(wanted) and not (helpless and (urgent or is_quiet)):
                    return wanted
                self._admit_next()
        return 0

    def close(self) -> None:
        """Admit all threads, now and later: nothing makes room any more."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._admit_next()

    def _admit_next(self) -> None:
        waiter = self._waiting.popleft()
        self._reserved += waiter.nbytes
        waiter.go.put(None)
