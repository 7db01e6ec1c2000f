"""The last log lines of this program, for clients that ask."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

KEPT: Final = 10_000

_lines: deque[tuple[str, str]] = deque(maxlen=KEPT)


class RecentLines(logging.Handler):
    """Keeps the level and the text of each line. Those of children are left out: they keep them themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        if getattr(record, "origin", ""):
            return
        try:
            _lines.append((record.levelname, self.format(record)))
        except Exception:  # formatting arguments calls any code; logging has its own way to report that
            self.handleError(record)


def recent_lines(number: int | None = None) -> list[tuple[str, str]]:
    """The last lines, newest first: level and text of each."""
    lines = list(_lines)
    lines.reverse()
    return lines[:number]
