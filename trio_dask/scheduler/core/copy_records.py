"""What the scheduler notes of copies: those under way, how they end with their result, those that may be surplus."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from trio_dask.scheduler.core.pending_requests import CopiesMade

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import State, Task, Worker

NEVER: Final = float("inf")


class Copy(NamedTuple):
    """A worker was told, by the `Acquire` of this number, to copy a result, from this worker if it can."""

    order: int
    source: Worker


class Order(NamedTuple):
    """A worker is to copy the result of a task, from this worker if it can."""

    task: Task
    source: Worker
    target: Worker


@dataclass(slots=True, eq=False, repr=False)
class Spread:
    """A client wants one result on these workers. It is over when `targets` is empty."""

    task: Task
    targets: dict[Worker, None]
    """Those that have no copy yet."""
    goal: CopiesMade
    fan_out: int
    """Each worker that has the result gives it to so many at once."""
    spares: list[Worker] = field(default_factory=list["Worker"])
    """These may take the place of a target that is lost, or cannot copy it."""
    moved_from: Worker | None = None
    """This worker is to drop the result once the copies are there."""
    patience: int = 3
    """So many copies may still fail."""


@dataclass(slots=True, eq=False)
class MemoryManager:
    """The active memory manager is on. After each interval it looks at these results, which have several replicas."""

    interval_s: float
    replicated: dict[Task, None] = field(default_factory=dict["Task", None])
    due_at: float = NEVER

    def note(self, task: Task, now: float) -> None:
        """A result has another replica."""
        self.replicated[task] = None
        if self.due_at == NEVER:
            self.due_at = now + self.interval_s


def withdraw_copies(state: State, task: Task) -> None:
    """The result of a task is gone, and what is being copied must not be taken for its next one."""
    for target in state.copies.pop(task):
        state.free(target.peer, task.key)
    for spread in state.spreads.pop(task, ()):
        if spread.moved_from is None and (task.wanted or task.waiters):
            spread.goal.missing[task.key] = None
        end_spread(state, spread)


def end_spread(state: State, spread: Spread) -> None:
    """A result is where a client wants it, or cannot be."""
    spread.goal.open -= 1
    if not spread.goal.open:
        state.pending.due_at = -float("inf")
