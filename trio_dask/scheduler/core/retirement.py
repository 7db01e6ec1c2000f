"""Workers that leave in good order: nothing that runs is cut off, and no result is lost with them.

A retiring worker gets no more work. The scheduler takes back what it has not started, lets its runs finish, has others
copy the results that it alone holds, and has actors move that can (`actor_moves`). When nothing keeps it any longer,
the scheduler dismisses it. A worker retires because it says so itself (`Drain`: it was told to stop, or has come to its
end), or because a client wants it to (`Retire`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from heapq import heapify, heapreplace
from typing import Final

from trio_dask.ids import PeerId
from trio_dask.protocol.messages import Drain, Leave, Reply, Retire, ReturnRuns
from trio_dask.scheduler.core.actor_moves import hosted_actors, move_actors, why_actors_stay
from trio_dask.scheduler.core.copies import order
from trio_dask.scheduler.core.copy_records import Order
from trio_dask.scheduler.core.pending_requests import PendingRequest, WorkersGone
from trio_dask.scheduler.core.state import Client, State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory, Processing
from trio_dask.scheduler.core.worker_states import HERE, Away, Dismissed, Retirement, Retiring, Returning
from trio_dask.scheduler.core.worker_transitions import change_phase

WITHOUT_WORK: Final = "the cluster has no work for it"
PATIENT: Final = frozenset({"lifetime", "max-tasks", WITHOUT_WORK})
"""A worker retiring for one of these reasons waits until another can take its results, or they are released."""

ATTEMPTS: Final = 3
"""Workers that may fail to copy a result; then it is computed anew once its holder has left."""


def drain(state: State, worker: Worker, message: Drain) -> None:
    """A worker wants to leave; a client may have retired it before."""
    retirement = worker.phase.retirement
    if retirement is None:
        _retire(state, worker, Retirement(message.reason, self_initiated=True))
    else:
        retirement.reason, retirement.self_initiated = message.reason, True
        state.check_retirements_soon()


def retire_by_itself(state: State, worker: Worker, reason: str) -> None:
    """Retire a worker for which no client has asked."""
    _retire(state, worker, Retirement(reason, self_initiated=False))


def _retire(state: State, worker: Worker, retirement: Retirement) -> None:
    if isinstance(worker.phase, Returning):
        worker.phase.retirement = retirement  # `reconcile` takes it from there
    else:
        begin_retiring(state, worker, retirement)


def begin_retiring(state: State, worker: Worker, retirement: Retirement) -> None:
    """Give this worker no more work, and take back what it has not started."""
    change_phase(state, worker, Retiring(retirement))
    runs = [
        run
        for run, task in worker.processing.items()
        if isinstance(task.phase, Processing) and task.phase.retraction is None and task.phase.started_at is None
    ]
    if runs:
        state.send(worker.peer, ReturnRuns(tuple(runs)))


def check_retirements(state: State) -> None:
    """Copy data that only retiring workers hold, and dismiss workers with nothing left to wait for."""
    state.retirements_at = float("inf")
    state.retirements_checked_at = state.now
    phases = [(worker, worker.phase) for worker in state.retiring]
    # Workers that may have to stay come first: they can then take over from those that leave by themselves.
    phases.sort(key=lambda entry: entry[1].retirement is not None and entry[1].retirement.self_initiated)
    for worker, phase in phases:
        if worker.phase is not phase or not isinstance(phase, Retiring):
            continue  # its retirement was called off together with another one
        if not _is_kept(state, worker, phase.retirement):
            change_phase(state, worker, Dismissed(phase.retirement))
            state.send(worker.peer, Leave(phase.retirement.reason, False))


def _is_kept(state: State, worker: Worker, retirement: Retirement) -> bool:
    """Whether anything keeps a retiring worker; what only it holds is sent on its way elsewhere."""
    are_moving, refusal = move_actors(state, worker, retirement)
    if (refusal and _stays_for(state, worker, retirement, refusal)) or are_moving:
        return True
    alone = _held_alone(worker)
    has_takers = not alone or _have_copied(state, worker, retirement, alone)
    if not has_takers and _stays_for(state, worker, retirement, _nowhere(worker, alone)):
        return True
    return bool(worker.processing) or any(state.copies.get(task) for task in alone)


def _stays_for(state: State, worker: Worker, retirement: Retirement, refusal: str) -> bool:
    """Whether it stays, as no other can take what it holds: until one can, or (called off) as if it was never to go."""
    return retirement.reason in PATIENT or _call_off(state, worker, retirement, refusal)


def retire(state: State, client: Client, message: Retire) -> None:
    """A client wants workers to leave without a loss."""
    if message.workers:
        chosen = select(state, message.workers)
        if isinstance(chosen, str):
            _refuse(state, client.peer, message.request, chosen)
            return
    else:
        ranked = sorted(
            state.workers.values(),
            key=lambda worker: (bool(hosted_actors(worker)), len(worker.processing), worker.managed_bytes),
        )
        chosen = [worker for worker in ranked if worker.phase.retirement is None][: max(0, message.number)]
    staying = [worker for worker in state.workers.values() if worker not in chosen and worker.phase.retirement is None]
    for worker in chosen:
        if refusal := why_actors_stay(state, worker, staying):
            _refuse(state, client.peer, message.request, refusal)
            return
        if not staying and worker.holds:
            _refuse(state, client.peer, message.request, _nowhere(worker, list(worker.holds)))
            return
    state.pending.add(PendingRequest(client.peer, message.request, WorkersGone(dict.fromkeys(chosen), [])))
    for worker in chosen:
        if worker.phase.retirement is None:
            _retire(state, worker, Retirement("it was retired", self_initiated=False))


def select(state: State, names: Iterable[str]) -> list[Worker] | str:
    """The workers with these names, addresses or hosts; or, for a client, which of these names none has."""
    chosen: dict[Worker, None] = {}
    for name in names:
        found = [worker for worker in state.workers.values() if worker.info.is_among((name,))]
        if not found:
            return f"there is no worker {name!r}"
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def select_or_all(state: State, names: Collection[str]) -> list[Worker] | str:
    """The same; all workers if no name is given."""
    return select(state, names) if names else list(state.workers.values())


def _held_alone(worker: Worker) -> list[Task]:
    """The results of which only this worker, and perhaps other retiring ones, have a copy."""
    return [
        task
        for task in worker.holds
        if isinstance(task.phase, InMemory)
        and not task.options.actor
        and all(holder.phase.retirement is not None for holder in task.phase.holders)
    ]


def _have_copied(state: State, worker: Worker, retirement: Retirement, alone: list[Task]) -> bool:
    """Ask others to copy what none of them is copying yet; False if there are no others."""
    targets = [other for other in state.workers.values() if other.phase is HERE]
    if not targets:
        retirement.attempts.clear()
        return False
    heap = [(other.managed_bytes, place) for place, other in enumerate(targets)]
    heapify(heap)
    orders: list[Order] = []
    attempts: dict[Task, int] = {}
    for task in alone:
        phase = task.phase
        assert isinstance(phase, InMemory)
        attempts[task] = retirement.attempts.get(task, 0)
        if task not in state.copies and attempts[task] < ATTEMPTS:
            nbytes, place = heap[0]
            heapreplace(heap, (nbytes + phase.nbytes, place))
            orders.append(Order(task, worker, targets[place]))
            attempts[task] += 1
    retirement.attempts = attempts
    order(state, orders)
    return True


def _call_off(state: State, worker: Worker, retirement: Retirement, refusal: str) -> bool:
    """Keep a worker that a client wanted to retire, since no other can take what it holds; `refusal` says so.

    False if no client asked for it, or it leaves by itself all the same: such a worker cannot be kept.
    """
    requests = [] if retirement.self_initiated else state.pending.retirements_of(worker)
    if not requests:
        return False
    kept = {worker: None}
    for pending in requests:
        assert isinstance(pending.goal, WorkersGone)
        kept.update(pending.goal.remaining)
        state.pending.refuse(state, pending, refusal)
    for other in kept:
        phase = other.phase
        if phase.retirement is None or phase.retirement.self_initiated:
            continue
        if isinstance(phase, Retiring):
            change_phase(state, other, HERE)
        elif isinstance(phase, Away | Returning):
            phase.retirement = None
    return True


def _nowhere(worker: Worker, tasks: list[Task]) -> str:
    return (
        f"worker {worker.info.title} holds the only copies of {len(tasks)} results, and no other worker is there to "
        "take them; start another worker first, or release them"
    )


def _refuse(state: State, client: PeerId, request: int, reason: str) -> None:
    state.send(client, Reply(request, {"retired": (), "refused": reason}))
