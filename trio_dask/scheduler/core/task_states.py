"""The phases of a task, and its history of failures.

A task is always in exactly one phase, and a phase carries only what is true in it: a task that waits has a count of
missing inputs, a task that is being processed has a run and a worker, a task in memory has holders. The names of the
states are dask's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias

from trio_dask.ids import Key, RunId

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import Queue, Worker


@dataclass(slots=True, eq=False, repr=False)
class RetryHistory:
    """The troubles that few tasks have had."""

    attempts: int = 1
    failures: int = 0
    deaths: list[str] = field(default_factory=list[str])
    suspect: bool = False
    """It may have been running on a worker that died; its next start is announced, so that blame is exact."""


class Failure(NamedTuple):
    """Why a task erred; shared by all tasks that erred with it."""

    blamed: Key
    kind: str
    error: bytes | None
    text: str
    details: Mapping[str, object]


class Released:
    """Known, not computed, not asked for."""

    __slots__ = ()
    state: ClassVar[str] = "released"
    is_queued: ClassVar[bool] = False


@dataclass(slots=True, eq=False, repr=False)
class Waiting:
    """Asked for; `missing` inputs are not in memory yet."""

    missing: int
    state: ClassVar[str] = "waiting"
    is_queued: ClassVar[bool] = False


@dataclass(slots=True, eq=False, repr=False)
class Queued:
    """Ready, in a queue of the scheduler. One object serves all tasks of a queue."""

    queue: Queue
    is_queued: ClassVar[bool] = True

    @property
    def state(self) -> str:
        return "queued" if self.queue.eligible else "no-worker"


class Retraction(NamedTuple):
    """The scheduler has asked for a run back: for a worker that is idle, or to place it anew."""

    thief: Worker | None


@dataclass(slots=True, eq=False, repr=False)
class Processing:
    """Assigned to a worker as `run`; `missing` inputs are still being computed there."""

    run: RunId
    worker: Worker
    missing: int
    expected_s: float
    started_at: float | None = None
    """When the worker reported its start, which it does if the run takes long; None while it has not."""
    retraction: Retraction | None = None
    """That the scheduler has asked for it back."""
    state: ClassVar[str] = "processing"
    is_queued: ClassVar[bool] = False


@dataclass(slots=True, eq=False, repr=False)
class InMemory:
    """Computed; these workers hold the result."""

    holders: tuple[Worker, ...]
    nbytes: int
    type_name: str
    small_value: bytes | None = None
    """The pickled result, if it goes with the runs that need it."""
    replicas: int = 1
    """How many a client has asked for; the memory manager keeps as many."""
    state: ClassVar[str] = "memory"
    is_queued: ClassVar[bool] = False


@dataclass(slots=True, eq=False, repr=False)
class Erred:
    """Failed, itself or an ancestor."""

    failure: Failure
    state: ClassVar[str] = "erred"
    is_queued: ClassVar[bool] = False


class Forgotten:
    """No longer in the table; only stale references see it."""

    __slots__ = ()
    state: ClassVar[str] = "forgotten"
    is_queued: ClassVar[bool] = False


Phase: TypeAlias = Released | Waiting | Queued | Processing | InMemory | Erred | Forgotten

RELEASED: Final = Released()
FORGOTTEN: Final = Forgotten()
