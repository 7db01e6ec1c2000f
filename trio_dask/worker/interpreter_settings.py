"""How the interpreter of a worker process is set up."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager

SWITCH_INTERVAL_S = 0.001
GC_THRESHOLDS = (10_000, 20, 50)


@contextmanager
def tuned_interpreter() -> Generator[None]:
    """Set up a process that is a worker and nothing else; restore its settings afterwards.

    A task that computes in Python delays every turn of the event loop by a switch interval. One millisecond instead of
    five has no measurable cost for tasks.

    A worker holds many small objects for long. With the usual thresholds the collector examines them so often that it
    takes 15 % of the time of short tasks. What was imported before the start is never garbage, and not examined.
    """
    interval_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.set_threshold(*thresholds)
        gc.unfreeze()
