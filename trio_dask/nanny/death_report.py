"""How the end of a worker's process is reported: the cause in one line, figures, and last words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trio_dask.host_limits import oom_kills
from trio_dask.processes.exit_report import ChildEnd

KILLED_STATUS = -9


def cause_of_death(end: ChildEnd, *, killed_for: str = "", out_of_memory: bool = False) -> str:
    """One line. `killed_for` is why the nanny ended it; `out_of_memory`: the kernel did, for lack of memory."""
    if killed_for:
        return killed_for
    if out_of_memory and end.status == KILLED_STATUS:
        return f"killed by the kernel: out of memory{_at_most(end)}"
    text = end.describe().removeprefix("was ")
    if end.words.place:
        text = f"{text} in {end.words.place}"
    last = end.failure or (end.words.last_line if end.status > 0 and not end.started else "")
    if not end.started:
        text = f"{text} before it was ready"
    return f"{text}: {last}" if last else text


def _at_most(end: ChildEnd) -> str:
    return f" (it used {end.peak_bytes / 2**20:.0f} MiB)" if end.peak_bytes else ""


def details_of_death(
    end: ChildEnd, pid: int, lived_s: float, limit_bytes: int | None, *, of_memory: bool
) -> Mapping[str, Any]:
    """Figures and last words, for people; for the scheduler, whether memory was the cause."""
    return {
        "pid": pid,
        "status": end.status,
        "lived_s": round(lived_s, 3),
        "peak_bytes": end.peak_bytes,
        "limit_bytes": limit_bytes or 0,
        "of_memory": of_memory,
        "last_lines": end.words.lines,
        "stack": end.words.stack,
    }


class OomKills:
    """Counts the processes of our control group that the kernel has killed for lack of memory.

    Each can be claimed once. All nannies of a program share one count: no kill may explain the deaths of two workers.
    """

    def __init__(self, read: Callable[[], int | None] = oom_kills) -> None:
        self._read = read
        self._claimed = read()

    def claim(self) -> bool:
        """Claim one. False if none is left to claim."""
        number = self._read()
        if number is None or self._claimed is None or number <= self._claimed:
            return False
        self._claimed += 1
        return True
