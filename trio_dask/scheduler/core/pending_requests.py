"""Requests of clients that are answered later: when enough workers are there, are back or have left, or have copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from trio_dask.ids import Key, PeerId
from trio_dask.protocol.messages import Reply

if TYPE_CHECKING:
    from trio_dask.scheduler.core.state import State, Worker


_NEVER: Final = float("inf")


class WorkerCount(NamedTuple):
    """Wait until this many workers have a session, and have set up their plugins."""

    number: int

    def answer(self, state: State, *, late: bool) -> Any:
        """The number of workers, or None if there are too few."""
        count = sum(not worker.setting_up for worker in state.workers.values())
        return count if late or count >= self.number else None


class WorkersReady(NamedTuple):
    """Wait until these workers have set up the plugins with which they began, or are lost; then `ask`."""

    setting_up: list[Worker]
    ask: Callable[[], Any]

    def answer(self, state: State, *, late: bool) -> Any:
        """The answer to the question; None while a worker is setting up."""
        busy = any(worker.setting_up and state.workers.get(worker.peer) is worker for worker in self.setting_up)
        return None if busy and not late else self.ask()


class NanniesThere(NamedTuple):
    """Wait until the nannies of these workers have sessions, or these workers are lost; then `ask`."""

    lonely: list[Worker]
    ask: Callable[[], Any]

    def answer(self, state: State, *, late: bool) -> Any:
        """The answer to the question; None while a nanny is missing."""
        return self.ask() if late or not any(lacks_nanny(state, worker) for worker in self.lonely) else None


class WorkersBack(NamedTuple):
    """Wait until workers with these names have begun new sessions.

    The value says whether a nanny starts it again, under its name. Another one may be started again by a batch system,
    under any name.
    """

    missing: dict[str, bool]

    def joined(self, name: str) -> None:
        """A worker of this name has begun a session."""
        if name not in self.missing:
            name = next((other for other, has_nanny in self.missing.items() if not has_nanny), name)
        self.missing.pop(name, None)

    def answer(self, state: State, *, late: bool) -> Any:
        """Names that did not come back; None while there is time."""
        return {"missing": tuple(self.missing)} if late or not self.missing else None


class WorkersGone(NamedTuple):
    """Wait until these workers have left."""

    remaining: dict[Worker, None]
    left: list[str]

    def answer(self, state: State, *, late: bool) -> Any:
        """Names of those that have left; None while some have not."""
        return {"retired": tuple(self.left)} if late or not self.remaining else None


@dataclass(slots=True, eq=False)
class CopiesMade:
    """Wait until results are where they are wanted, or cannot be; `open` are still on their way."""

    open: int
    missing: dict[Key, None] = field(default_factory=dict[Key, None])

    def answer(self, state: State, *, late: bool) -> Any:
        """Keys of results that lack a copy; None while some may still come."""
        return {"missing": tuple(self.missing)} if late or not self.open else None


Goal: TypeAlias = WorkerCount | WorkersReady | NanniesThere | WorkersBack | WorkersGone | CopiesMade


def lacks_nanny(state: State, worker: Worker) -> bool:
    """Whether a worker that has a session has a nanny that has none, and may have one soon."""
    process = worker.info.process
    is_here = state.workers.get(worker.peer) is worker and worker.phase.retirement is None
    return is_here and bool(process) and process not in state.nanny_of


class PendingRequest(NamedTuple):
    """One request, what it waits for, and when it is answered whatever has happened."""

    client: PeerId
    request: int
    goal: Goal
    deadline: float = _NEVER


class PendingRequests:
    """All requests that wait for workers."""

    __slots__ = ("_pending", "due_at")

    def __init__(self) -> None:
        self._pending: list[PendingRequest] = []
        self.due_at = _NEVER
        """When to call `answer_due`; in the past once something has changed."""

    def add(self, pending: PendingRequest) -> None:
        """Have a request answered once its goal is reached, which it may be already."""
        self._pending.append(pending)
        self.due_at = -_NEVER

    def worker_joined(self, worker: Worker) -> None:
        """A worker has a session."""
        for pending in self._pending:
            if isinstance(pending.goal, WorkersBack):
                pending.goal.joined(worker.info.name)
            self.due_at = -_NEVER

    def worker_left(self, worker: Worker) -> None:
        """A worker has left or is lost."""
        for pending in self._pending:
            if isinstance(pending.goal, WorkersGone) and worker in pending.goal.remaining:
                del pending.goal.remaining[worker]
                pending.goal.left.append(worker.info.name)
            self.due_at = -_NEVER

    def worker_ready(self) -> None:
        """A worker has set up its plugins."""
        self.due_at = -_NEVER

    def nanny_joined(self) -> None:
        """A nanny has told which process it has."""
        self.due_at = -_NEVER

    def client_left(self, client: PeerId) -> None:
        """Drop the requests of a client that has left."""
        self._pending = [pending for pending in self._pending if pending.client != client]

    def retirements_of(self, worker: Worker) -> list[PendingRequest]:
        """The requests that wait until this worker has left."""
        return [
            pending
            for pending in self._pending
            if isinstance(pending.goal, WorkersGone) and worker in pending.goal.remaining
        ]

    def refuse(self, state: State, pending: PendingRequest, reason: str) -> None:
        """Answer a request whose goal cannot be reached."""
        self._pending.remove(pending)
        state.send(pending.client, Reply(pending.request, {**pending.goal.answer(state, late=True), "refused": reason}))

    def answer_due(self, state: State) -> None:
        """Answer each request whose goal is reached or whose time is up."""
        still: list[PendingRequest] = []
        for pending in self._pending:
            payload = pending.goal.answer(state, late=pending.deadline <= state.now)
            if payload is None:
                still.append(pending)
            else:
                state.send(pending.client, Reply(pending.request, payload))
        self._pending = still
        self.due_at = min((pending.deadline for pending in still), default=_NEVER)
