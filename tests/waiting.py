"""Waiting for what happens in real threads or processes, where neither an event nor a clock of the test tells of it."""

import time
from collections.abc import Callable

PATIENCE_S = 20.0


def until(condition: Callable[[], object], what: str = "") -> None:
    """Return once the condition holds; fail, saying what was awaited, if it does not for `PATIENCE_S`."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {PATIENCE_S:g} s: {what or 'what the test waits for'}"
        time.sleep(0.005)
