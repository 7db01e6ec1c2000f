"""Samples of call stacks: counted as a table of callers and calls, in cycles, within bounds whatever is called."""

from __future__ import annotations

import linecache
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Final, NamedTuple, TypeAlias

MOST_CALLS: Final = 50_000
"""Further calls count for their callers."""

MOST_FRAMES: Final = 200
"""Of deeper stacks the outermost ones."""

KEPT_COUNTS: Final = 100_000
KEPT_CYCLES: Final = 3600

Call: TypeAlias = tuple[int, str, str, int]
"""The number of the caller (0: there is none), and the name, the file and the first line of the function."""

Rows: TypeAlias = tuple[list[tuple[int, str, str, int, str]], dict[int, int]]
"""Calls, each with its text, and samples by the number of the innermost call. The first call has the number 1."""


class _Cycle(NamedTuple):
    """Samples of some time, by name of what was sampled and number of the innermost call."""

    began: float
    ended: float
    counts: Mapping[tuple[str, int], int]


class Samples:
    """What was sampled, in cycles. Any thread may call any method."""

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._calls: dict[Call, int] = {}
        self._cycles: deque[_Cycle] = deque()
        self._kept = 0
        self._began = now
        self._counts: dict[tuple[str, int], int] = {}

    def add(self, name: str, codes: Sequence[CodeType]) -> None:
        """Count a stack, of what has this name, from the innermost frame to the outermost."""
        calls, number = self._calls, 0
        with self._lock:
            for code in codes[: -MOST_FRAMES - 1 : -1]:
                call = number, code.co_name, code.co_filename, code.co_firstlineno
                called = calls.get(call)
                if called is None:
                    if len(calls) >= MOST_CALLS:
                        break
                    called = calls[call] = len(calls) + 1
                number = called
            if not codes and len(calls) < MOST_CALLS:  # a function without frames of its own, as `pow`
                number = calls.setdefault((0, name, "", 0), len(calls) + 1)
            self._counts[name, number] = self._counts.get((name, number), 0) + 1

    def end_cycle(self, now: float) -> None:
        """Further samples belong to the next cycle. Old cycles are dropped."""
        with self._lock:
            if self._counts:
                self._cycles.append(_Cycle(self._began, now, self._counts))
                self._kept += len(self._counts)
                self._counts = {}
                while len(self._cycles) > KEPT_CYCLES or self._kept > KEPT_COUNTS:
                    self._kept -= len(self._cycles.popleft().counts)
            self._began = now

    def between(self, start: float, stop: float, name: str | None) -> Rows:
        """The samples of the cycles between two times, perhaps only those of one name."""
        with self._lock:
            counts: dict[int, int] = {}
            for cycle in self._cycles:
                if cycle.ended >= start and cycle.began <= stop:
                    for (of, number), count in cycle.counts.items():
                        if name in (None, of):
                            counts[number] = counts.get(number, 0) + count
            calls = list(self._calls)
        needed: set[int] = set()
        for innermost in counts:
            number = innermost
            while number and number not in needed:
                needed.add(number)
                number = calls[number - 1][0]
        renamed = {0: 0} | {number: at for at, number in enumerate(sorted(needed), 1)}
        rows = [(renamed[calls[number - 1][0]], *calls[number - 1][1:]) for number in sorted(needed)]
        return (
            [(*row, linecache.getline(row[2], row[3]).strip()) for row in rows],
            {renamed[number]: count for number, count in counts.items()},
        )
