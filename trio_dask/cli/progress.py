"""The progress of a job: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable

import trio

BAR_WIDTH = 30
REFRESH_S = 0.1
LINE_EVERY_S = 10.0


def bar(done: int, total: int, what: str, elapsed_s: float) -> str:
    """The line for a terminal."""
    filled = BAR_WIDTH * done // max(1, total)
    return f"  [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{total} {what}  {elapsed_s:.1f} s"


async def show_progress(progress: Callable[[], tuple[int, int]], what: str) -> None:
    """Show on stderr what `progress()` returns (done, total), until all is done or this is cancelled."""
    started = trio.current_time()
    terminal = sys.stderr.isatty()
    try:
        while True:
            done, total = progress()
            line = bar(done, total, what, trio.current_time() - started)
            if terminal:
                sys.stderr.write(f"\r{line}\x1b[K")
                sys.stderr.flush()
            elif trio.current_time() - started >= LINE_EVERY_S:
                sys.stderr.write(f"{line}\n")
            if done >= total:
                return
            await trio.sleep(REFRESH_S if terminal else LINE_EVERY_S)
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
