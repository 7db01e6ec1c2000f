"""The phases of a task, and what a task may have behind it.

A task is always in exactly one phase, and a phase carries only what is true in it: a task that waits has a count of
missing inputs, a task that is being processed has a run and a worker, a task in memory has holders. The names of the
states are dask's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias

from trio_dask.ids import Key, RunId

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import Queue, Worker


class RetryHistory:
    """What few tasks have: troubles behind them."""

    __slots__ = ("attempts", "deaths", "failures", "suspect")

    def __init__(self) -> None:
        self.attempts = 1
        self.failures = 0
        self.deaths: list[str] = []
        self.suspect = False
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


class Waiting:
    """Asked for; `missing` inputs are not in memory yet."""

    __slots__ = ("missing",)
    state: ClassVar[str] = "waiting"
    is_queued: ClassVar[bool] = False

    def __init__(self, missing: int) -> None:
        self.missing = missing


class Queued:
    """Ready, in a queue of the scheduler. One object serves all tasks of a queue."""

    __slots__ = ("queue",)
    is_queued: ClassVar[bool] = True

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    @property
    def state(self) -> str:
        return "queued" if self.queue.eligible else "no-worker"


class Processing:
    """Assigned to a worker as `run`; `missing` inputs are still being computed there."""

    __slots__ = ("expected_s", "missing", "retracting", "run", "started", "started_at", "worker")
    state: ClassVar[str] = "processing"
    is_queued: ClassVar[bool] = False

    def __init__(self, run: RunId, worker: Worker, missing: int, expected_s: float) -> None:
        self.run = run
        self.worker = worker
        self.missing = missing
        self.expected_s = expected_s
        self.started = False
        self.started_at = math.inf
        """When we heard of its start, which we do if it takes long."""
        self.retracting = False


class InMemory:
    """Computed; these workers hold the result."""

    __slots__ = ("holders", "nbytes", "type_name")
    state: ClassVar[str] = "memory"
    is_queued: ClassVar[bool] = False

    def __init__(self, holders: tuple[Worker, ...], nbytes: int, type_name: str) -> None:
        self.holders = holders
        self.nbytes = nbytes
        self.type_name = type_name


class Erred:
    """Failed, itself or an ancestor."""

    __slots__ = ("failure",)
    state: ClassVar[str] = "erred"
    is_queued: ClassVar[bool] = False

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Forgotten:
    """No longer in the table; only stale references see it."""

    __slots__ = ()
    state: ClassVar[str] = "forgotten"
    is_queued: ClassVar[bool] = False


Phase: TypeAlias = Released | Waiting | Queued | Processing | InMemory | Erred | Forgotten

RELEASED: Final = Released()
FORGOTTEN: Final = Forgotten()
