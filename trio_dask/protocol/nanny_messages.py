"""The messages with which processes are looked after: of nannies, and of whoever asks for control. See `messages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trio_dask.ids import RunId

__all__ = ["Control", "WorkerAlive", "WorkerExited"]


class WorkerAlive(NamedTuple):
    """The worker process that this nanny calls `process` is alive, and not stopped."""

    process: str


class WorkerExited(NamedTuple):
    """The worker process that this nanny calls `process` has ended.

    `planned`: the nanny ended it, or it ended itself in good order, and nothing is to be blamed. `cause` is one line.
    `runs` are the runs that were running then, if `exact`; else the scheduler has to go by what it knows. `details` are
    figures and last words for people.
    """

    process: str
    planned: bool
    cause: str
    exact: bool
    runs: tuple[RunId, ...]
    details: Mapping[str, Any]


class Control(NamedTuple):
    """A program or a script asks scheduler, worker or nanny; answered by a `Reply` with the same `request`.

    `command` is one of: identity, status, terminate, restart.
    """

    request: int
    command: str
    arguments: Mapping[str, Any]
