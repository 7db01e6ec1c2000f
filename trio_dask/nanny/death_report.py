"""From the end of a worker's process to the words and figures in which it is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trio_dask.ids import RunId
from trio_dask.processes.child_process import ChildEnd
from trio_dask.protocol.messages import WorkerExited

__all__ = ["cause_of_death", "details_of_death", "write_obituary"]

KILLED_STATUS = -9


def cause_of_death(end: ChildEnd, *, killed_for: str = "", out_of_memory: bool = False) -> str:
    """One line. `killed_for` is why the nanny ended it, `out_of_memory` whether the kernel did, for want of memory."""
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
    """Figures and last words, for people; for the scheduler, whether it was ended for its memory."""
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


def write_obituary(
    process: str, cause: str, details: Mapping[str, Any], runs: tuple[RunId, ...] | None, *, planned: bool
) -> WorkerExited:
    """What the scheduler is told. `runs` are those that were running, None if that is not known."""
    return WorkerExited(process, planned, cause, runs is not None, runs or (), details)
