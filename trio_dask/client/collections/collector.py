"""Has the garbage collector run less often while a graph is made, which allocates millions of objects and drops few."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

ALLOCATIONS: Final = 100_000
"""The collector runs after this many more allocations than deallocations; by itself after 700 or so. The graph of an
array takes a third less time."""

_lock = threading.Lock()
_users = 0
_before: tuple[int, int, int] = gc.get_threshold()


@contextmanager
def fewer_collections() -> Generator[None]:
    """Around making a graph; several threads may be in it. A program that has changed the threshold itself keeps it."""
    global _users, _before
    with _lock:
        _users += 1
        if _users == 1:
            _before = gc.get_threshold()
            if 0 < _before[0] < ALLOCATIONS:
                gc.set_threshold(ALLOCATIONS, *_before[1:])
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and gc.get_threshold()[0] == ALLOCATIONS:
                gc.set_threshold(*_before)
