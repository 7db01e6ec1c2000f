"""Workers come and go.

A session ends in one step: its state is gone when the function returns, and nothing that arrives later from it can be
mistaken for news. Whoever returns is somebody new, by incarnation.

Blame: when a worker dies, only tasks that were running there are blamed. Known to run are those it announced
(`Started`), and, if it held no more ready runs than slots, all of these. Otherwise its ready runs become suspects,
whose next start is announced before it happens, so that a second death is known exactly.
"""

from __future__ import annotations

from trio_dask.identity import PeerId
from trio_dask.protocol.messages import Reply
from trio_dask.scheduler.core.lifecycle import fail, hand_back, lose, move
from trio_dask.scheduler.core.placement import admit, settle
from trio_dask.scheduler.core.tables import (
    Failure,
    Past,
    Processing,
    Queued,
    State,
    Task,
    Waiting,
    Worker,
    WorkerInfo,
)

__all__ = ["add_worker", "refusal", "remove_worker", "set_capacity"]


def refusal(state: State, info: WorkerInfo) -> str | None:
    """The sentence with which a worker is refused if its name or address is taken."""
    holder = state.names.get(info.name)
    if holder is not None:
        return f"the name {info.name!r} is taken by the worker at {holder.info.address}; choose another with --name"
    if info.address in state.addresses:
        return f"a worker with the address {info.address} is registered already"
    return None


def add_worker(state: State, peer: PeerId, info: WorkerInfo) -> str | None:
    """Register a worker; returns the sentence of refusal if there is one."""
    refused = refusal(state, info)
    if refused is not None:
        return refused
    worker = Worker(peer, info)
    state.workers[peer] = worker
    state.names[info.name] = worker
    state.addresses[info.address] = worker
    state.queue.eligible[worker] = None
    for queue in state.queues.values():
        admit(queue, worker)
    state.touched[worker] = None
    settle(state, worker)
    _answer_waits(state)
    for _, _, names, _ in state.restarts:
        names.pop(info.name, None)
    return None


def remove_worker(state: State, worker: Worker, reason: str, *, expected: bool) -> None:
    """A worker has left (`expected`) or is lost: its runs are placed anew, its results computed anew where needed."""
    del state.workers[worker.peer]
    del state.names[worker.info.name]
    del state.addresses[worker.info.address]
    state.outboxes.pop(worker.peer, None)
    state.frees.pop(worker.peer, None)
    state.queue.eligible.pop(worker, None)
    for queue in worker.queues:
        queue.eligible.pop(worker, None)
    for content in state.contents.values():
        content.shipped.pop(worker, None)

    stranded = list(worker.processing.values())
    running = [] if expected else _running(worker)
    for task in list(worker.holds):
        lose(state, task, worker, f"worker {worker.info.name} left")
    for task in stranded:
        phase = task.phase
        if type(phase) is Processing and phase.worker is worker:
            hand_back(state, task, f"worker {worker.info.name} left")
    for task in running:
        _blame(state, task, worker, reason)
    for task in list(worker.backlog):
        if type(task.phase) is Queued:
            _requeue(state, task)
    worker.backlog.clear()
    for group in (state.idle, state.roomy, state.surplus, state.touched):
        group.pop(worker, None)


def set_capacity(state: State, worker: Worker, slots: int) -> None:
    """A worker can run this many tasks at once from now on."""
    worker.slots = slots
    state.touched[worker] = None
    settle(state, worker)


def _running(worker: Worker) -> list[Task]:
    """The tasks that are known to have been running; those that may have been become suspects."""
    known: list[Task] = []
    possible: list[Task] = []
    for task in worker.processing.values():
        phase = task.phase
        assert isinstance(phase, Processing)
        if phase.started:
            known.append(task)
        elif not phase.missing and not (task.past is not None and task.past.suspect):
            possible.append(task)
    if len(known) + len(possible) <= worker.slots:
        return known + possible
    for task in possible:
        if task.past is None:
            task.past = Past()
        task.past.suspect = True
    return known


def _blame(state: State, task: Task, worker: Worker, reason: str) -> None:
    past = task.past
    if past is None:
        past = task.past = Past()
    past.suspect = True
    past.deaths.append(f"worker {worker.info.name} at {worker.info.address} (pid {worker.info.pid}): {reason}")
    state.note(task.key, f"was running on {worker.info.name}, which died")
    if len(past.deaths) >= state.settings.allowed_failures:
        details = {"deaths": tuple(past.deaths)}
        text = f"{task.key!r} was running on {len(past.deaths)} workers that died"
        fail(state, task, Failure(task.key, "killed", None, text, details))
    else:
        past.attempts += 1


def _requeue(state: State, task: Task) -> None:
    """A queued task loses its place in a backlog, and goes where its inputs are now."""
    move(state, task, Waiting(0), "its worker left")
    state.ready.append(task)


def _answer_waits(state: State) -> None:
    count = len(state.workers)
    still: list[tuple[PeerId, int, int]] = []
    for client, request, number in state.waits:
        if count >= number:
            state.send(client, Reply(request, count))
        else:
            still.append((client, request, number))
    state.waits = still
