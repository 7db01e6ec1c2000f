"""Keeps Python from looking for garbage while many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Generator[None]:
    """For the block, in all threads: no search for unreachable cycles.

    Searches would take a third of the time in which a graph is planned, and delay its first part.
    """
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()
