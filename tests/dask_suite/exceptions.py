"""Reads `exceptions.txt`, the tests of dask that need not pass, with their reasons."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("exceptions.txt")
PROCESSES: Final = "processes: "
"""Begins a reason that holds where the workers are processes."""


class Exceptions:
    """For each test its reason; a test without parameters stands for all of its parameters."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self._reasons = reasons

    @classmethod
    def read(cls, *, processes: bool, lines: Iterable[str] | None = None) -> Exceptions:
        """Those for workers in this process, or in others.

        Raises `ValueError` for a test without a reason, or one that is listed twice.
        """
        reasons: dict[str, str] = {}
        reason = ""
        for line in FILE.read_text().splitlines() if lines is None else lines:
            if line.startswith("# "):
                reason = line[2:]
            elif not line:
                reason = ""
            elif not reason or line in reasons:
                raise ValueError(f"{FILE.name}: {line} has no reason, or stands there twice")
            else:
                reasons[line] = reason
        if not processes:
            reasons = {test: reason for test, reason in reasons.items() if not reason.startswith(PROCESSES)}
        return cls(reasons)

    def reason_of(self, test: str) -> str | None:
        """Why this test need not pass. None: it must."""
        return self._reasons.get(test) or self._reasons.get(test.partition("[")[0])
