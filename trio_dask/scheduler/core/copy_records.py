"""What the scheduler notes of copies, and of actors that move: those under way, and how they end with their result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from trio_dask.protocol.messages import SettleActor
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


class ActorMove(NamedTuple):
    """An actor is on its way, by the order of this number; until `target` has it, `source` is its home."""

    order: int
    source: Worker
    target: Worker


def withdraw_move(state: State, task: Task) -> None:
    """An actor does not move after all: it goes on where it is, and what the other worker has of it is dropped."""
    move = state.actor_moves.pop(task)
    if move.source.phase.has_session:
        state.send(move.source.peer, SettleActor(task.key, True))
    if move.target.phase.has_session:
        give_up_actor(state, task, move.target)


def give_up_actor(state: State, task: Task, worker: Worker) -> None:
    """Have a worker that is not the home of an actor drop what it has of it; it may keep the proxy."""
    state.send(worker.peer, SettleActor(task.key, False))
    if task not in worker.holds:
        state.free(worker.peer, task.key)


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
