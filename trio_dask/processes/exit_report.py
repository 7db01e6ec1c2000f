"""What the end of a process says in words: its status, the lines it wrote last, the stack it left behind."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["LastWords", "describe_end"]

FATAL = "Fatal Python error:"
_CURRENT = re.compile(r"Current thread|Stack \(most recent call first\)")
_FRAME = re.compile(r'\s*File "(?P<path>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)')


def describe_end(status: int) -> str:
    """What an exit status, as `subprocess` gives it, says in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


@dataclass(frozen=True)
class LastWords:
    """The last lines that a process wrote to its stderr, and the stack of its threads if a fatal error had it print it.

    Long lines are cut: all of this travels, and is shown to people.
    """

    lines: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()

    LINES: ClassVar = 50
    MOST_LINES: ClassVar = 450
    LONGEST: ClassVar = 500

    @classmethod
    def of(cls, tail: Iterable[str]) -> LastWords:
        """Tell the stack from what was said before it."""
        lines = [line if len(line) <= cls.LONGEST else f"{line[: cls.LONGEST - 3]}..." for line in tail]
        start = next((number for number, line in enumerate(lines) if line.startswith(FATAL)), len(lines))
        return cls(tuple(lines[:start][-cls.LINES :]), tuple(lines[start:]))

    @property
    def last_line(self) -> str:
        """The last thing it said, without a stack; empty if it said nothing."""
        return next((line.strip() for line in reversed(self.lines) if line.strip()), "")

    @property
    def place(self) -> str:
        """Where the thread was that had the fatal error, as `function (file:line)`; empty if that is not known."""
        lines = iter(self.stack)
        for line in lines:
            if _CURRENT.match(line):
                break
        frame = _FRAME.fullmatch(next(lines, ""))
        if frame is None:
            return ""
        return f"{frame['function']} ({frame['path'].rpartition('/')[2]}:{frame['line']})"
