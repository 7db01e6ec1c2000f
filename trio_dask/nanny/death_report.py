"""Why a worker's process died, in one line."""

from __future__ import annotations

from collections.abc import Callable

from trio_dask.host_limits import oom_kills
from trio_dask.processes.exit_report import ChildEnd

KILLED_STATUS = -9


def cause_of_death(end: ChildEnd, *, killed_for: str = "", out_of_memory: bool = False) -> str:
    """One line. `killed_for` is why the nanny ended it; `out_of_memory`: the kernel did, for lack of memory."""
    if killed_for:
        return killed_for
    if out_of_memory and end.status == KILLED_STATUS:
        used = f" (it used {end.peak_bytes / 2**20:.0f} MiB)" if end.peak_bytes else ""
        return f"killed by the kernel: out of memory{used}"
    text = end.describe().removeprefix("was ")
    if end.words.place:
        text = f"{text} in {end.words.place}"
    last = end.failure or (end.words.last_line if end.status > 0 and not end.started else "")
    if not end.started:
        text = f"{text} before it was ready"
    return f"{text}: {last}" if last else text


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
