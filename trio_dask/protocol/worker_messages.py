"""What a worker tells its scheduler. See `messages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trio_dask.ids import Key, RunId

__all__ = [
    "Capacity",
    "Drain",
    "Heartbeat",
    "InputMissing",
    "Inventory",
    "Lost",
    "NotAcquired",
    "Replicas",
    "RunFailed",
    "RunFinished",
    "RunsReturned",
    "Scattered",
    "Started",
]


class Inventory(NamedTuple):
    """What a worker that has come back after a lost link has, now that all it had to say before has been said.

    `held` has a row for each value here: key, the run that made it (-1: it was fetched or scattered), size in bytes,
    type. `runs` are the runs that are waiting, ready or running here. What
    the scheduler does not want any more it answers with `Free` and `CancelRuns`.
    """

    held: tuple[tuple[Key, int, int, str], ...]
    runs: tuple[RunId, ...]


class Drain(NamedTuple):
    """This worker is leaving: it takes no more runs, has handed back what has not started, and finishes the rest.

    The scheduler has others copy what only this worker holds, and sends `Leave` once nothing keeps it.
    """

    reason: str


class NotAcquired(NamedTuple):
    """These keys of an `Acquire` could not be had from anywhere."""

    keys: tuple[Key, ...]


class RunFinished(NamedTuple):
    """A run gave a result, which this worker now holds. A small one rides along in `value` (pickled)."""

    run: RunId
    nbytes: int
    type_name: str
    duration_s: float
    value: bytes | None


class RunFailed(NamedTuple):
    """A run raised, or its result cannot be pickled, or it hit its time limit (`kind`: exception, timeout)."""

    run: RunId
    kind: str
    error: bytes | None
    text: str
    duration_s: float


class Started(NamedTuple):
    """These runs are running now. Sent before the start where `announce` asks for it, else for long ones."""

    runs: tuple[RunId, ...]


class RunsReturned(NamedTuple):
    """These runs have not started and never will here; the scheduler places them anew."""

    runs: tuple[RunId, ...]


class InputMissing(NamedTuple):
    """`run` is handed back because `key` could not be had from `address` (empty: it was not here)."""

    run: RunId
    key: Key
    address: str


class Replicas(NamedTuple):
    """This worker now also holds these keys, fetched from peers."""

    keys: tuple[Key, ...]


class Scattered(NamedTuple):
    """A client (by incarnation) has put this value here (`scatter`)."""

    key: Key
    nbytes: int
    type_name: str
    client: str


class Lost(NamedTuple):
    """This worker no longer holds these keys, though nobody told it to drop them."""

    keys: tuple[Key, ...]


class Capacity(NamedTuple):
    """This many tasks can run here at once from now on (a thread that ignores its cancellation keeps its slot)."""

    slots: int


class Heartbeat(NamedTuple):
    """Periodic figures (`cpu_percent`, `memory_bytes`, `managed_bytes`, ...) for people and dashboards."""

    metrics: Mapping[str, Any]
