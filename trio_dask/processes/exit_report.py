"""How a process ended: its status, the lines it wrote last, the stack it left behind."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from trio_dask.errors import ClusterError

FATAL = "Fatal Python error:"
_CURRENT = re.compile(r"Current thread|Stack \(most recent call first\)")
_FRAME = re.compile(r'\s*File "(?P<path>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)')


def describe_status(status: int) -> str:
    """An exit status, as `subprocess` gives it, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


@dataclass(frozen=True)
class LastWords:
    """The last lines that a process wrote to its stderr, and the stacks that a fatal error made it print.

    Long lines are cut: all of this travels, and people read it.
    """

    lines: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()

    LINES: ClassVar = 50
    MOST_LINES: ClassVar = 450
    LONGEST: ClassVar = 500

    @classmethod
    def of(cls, tail: Iterable[str]) -> LastWords:
        """Divide these lines into what was said and the stack."""
        lines = [line if len(line) <= cls.LONGEST else f"{line[: cls.LONGEST - 3]}..." for line in tail]
        start = next((number for number, line in enumerate(lines) if line.startswith(FATAL)), len(lines))
        return cls(tuple(lines[:start][-cls.LINES :]), tuple(lines[start:]))

    @property
    def last_line(self) -> str:
        """The last line before the stack; empty if there is none."""
        return next((line.strip() for line in reversed(self.lines) if line.strip()), "")

    @property
    def place(self) -> str:
        """Where the fatal error happened, as `function (file:line)`; empty if that is not known."""
        lines = iter(self.stack)
        for line in lines:
            if _CURRENT.match(line):
                break
        frame = _FRAME.fullmatch(next(lines, ""))
        if frame is None:
            return ""
        return f"{frame['function']} ({frame['path'].rpartition('/')[2]}:{frame['line']})"


@dataclass(frozen=True, kw_only=True)
class ChildEnd:
    """How a child ended.

    `status` is as `subprocess` has it, negative for a signal. `started`: it had reported something. `late`: it did not
    in time. `failure` is what the program itself says went wrong, `hopeless` that another process would fail in the
    same way, `peak_bytes` the most memory it had (0: not known).
    """

    name: str
    status: int
    started: bool
    late: bool = False
    failure: str = ""
    hopeless: bool = False
    words: LastWords = field(default_factory=LastWords)
    peak_bytes: int = 0

    def as_error(self) -> ClusterError:
        """An error that says how it ended, with its last words."""
        when = "" if self.started else " before it was ready"
        said = "\n".join(filter(None, ("\n".join(self.words.lines), self.failure)))
        return ClusterError(f"{self.name} {self.describe()}{when}" + (f":\n{said}" if said else " and said nothing"))

    def describe(self) -> str:
        """How it ended, as part of a sentence."""
        return "took too long and was killed" if self.late else describe_status(self.status)
