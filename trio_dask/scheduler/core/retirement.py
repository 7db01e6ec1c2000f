"""Workers that leave in good order: nothing that runs is cut off, and no result is lost with them.

A worker on its way out gets no more work. What has not started there is taken back, what runs may finish, and what it
alone holds is copied to others. When nothing keeps it any longer it is sent away. It goes because it says so itself
(`Drain`: it was told to stop, or has come to its end), or because a client has asked for it (`Retire`).
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heapreplace
from typing import Final

from trio_dask.ids import Key, PeerId, places_of
from trio_dask.protocol.messages import Acquire, Leave, NotAcquired, Reply, Retire, ReturnRuns
from trio_dask.scheduler.core.state import InMemory, Processing, State, Task, Worker
from trio_dask.scheduler.core.worker_membership import close_to_work, open_to_work

__all__ = [
    "TRIES",
    "begin_leaving",
    "forget_copies",
    "look_at_leaving",
    "not_acquired",
    "note_departure",
    "retire",
    "select",
]

LOOK_S: Final = 0.05
"""So often it is looked what keeps those who are leaving."""

PATIENT: Final = frozenset({"lifetime", "max-tasks"})
"""Who leaves for such a reason, with results that nobody else can take yet, waits for somebody, or for their end."""

TRIES: Final = 3
"""So many workers in turn may fail to copy a result; then it is computed anew when its holder has left."""


def begin_leaving(state: State, worker: Worker, reason: str) -> None:
    """Give this worker no more work, take back what it has not started, and send it away once nothing keeps it."""
    if worker.leaving:
        return
    worker.leaving = reason
    close_to_work(state, worker)
    runs = [
        run
        for run, task in worker.processing.items()
        if isinstance(task.phase, Processing) and not task.phase.retracting and not task.phase.started
    ]
    if runs:
        state.send(worker.peer, ReturnRuns(tuple(runs)))
    state.leaving[worker] = None
    state.leaving_at = state.now


def look_at_leaving(state: State) -> None:
    """Have copied what only those hold who leave, and send away those whom nothing keeps."""
    # Those first who may have to stay after all: they can then take over from those who go by themselves.
    for worker in sorted(state.leaving, key=lambda worker: worker.drains):
        if worker.peer not in state.workers or worker.returning or not worker.leaving:
            continue
        alone = _held_alone(worker)
        if not alone:
            worker.copying.clear()
        elif not _have_copied(state, worker, alone) and (worker.leaving in PATIENT or _refuse(state, worker, alone)):
            continue
        if not worker.processing and all(target is None for target, _ in worker.copying.values()):
            del state.leaving[worker]
            state.send(worker.peer, Leave(worker.leaving, False))
    state.leaving_at = state.now + LOOK_S if state.leaving else float("inf")


def not_acquired(state: State, target: Worker, message: NotAcquired) -> None:
    """A worker could not copy these results."""
    tasks = [task for key in message.keys if (task := state.tasks.get(key)) is not None]
    for worker in state.leaving:
        for task in tasks:
            tries = worker.copying.get(task)
            if tries is not None and tries[0] is target:
                worker.copying[task] = (None, tries[1])


def forget_copies(state: State, target: Worker) -> None:
    """A worker is back that was to copy results: whether it did is not known, so they are copied anew."""
    for worker in state.leaving:
        for task, (copier, tries) in worker.copying.items():
            if copier is target:
                worker.copying[task] = (None, tries)


def retire(state: State, client: PeerId, message: Retire) -> None:
    """A client wants workers to leave without a loss."""
    if message.workers:
        chosen, unknown = select(state, message.workers)
        if unknown:
            _answer(state, client, message.request, (), f"there is no worker {unknown!r}")
            return
    else:
        ranked = sorted(state.workers.values(), key=lambda worker: (len(worker.processing), worker.managed_bytes))
        chosen = [worker for worker in ranked if not worker.leaving][: max(0, message.number)]
    staying = [worker for worker in state.workers.values() if worker not in chosen and not worker.leaving]
    for worker in chosen:
        if not staying and worker.holds:
            _answer(state, client, message.request, (), _nowhere(worker, list(worker.holds)))
            return
    if not chosen:
        _answer(state, client, message.request, (), "")
        return
    state.retirements.append((client, message.request, dict.fromkeys(chosen), []))
    for worker in chosen:
        begin_leaving(state, worker, "it was retired")


def note_departure(state: State, worker: Worker) -> None:
    """A worker is gone: tell those who wanted it retired."""
    still: list[tuple[PeerId, int, dict[Worker, None], list[str]]] = []
    for client, request, workers, left in state.retirements:
        if worker in workers:
            del workers[worker]
            left.append(worker.info.name)
        if workers:
            still.append((client, request, workers, left))
        else:
            _answer(state, client, request, left, "")
    state.retirements = still


def select(state: State, names: Iterable[str]) -> tuple[list[Worker], str]:
    """The workers with these names, addresses or hosts, and the first of the names that is none of these."""
    chosen: dict[Worker, None] = {}
    for name in names:
        found = [
            worker
            for worker in state.workers.values()
            if name in (worker.info.name, worker.info.host, *places_of(worker.info.address))
        ]
        if not found:
            return [], name
        chosen.update(dict.fromkeys(found))
    return list(chosen), ""


def _held_alone(worker: Worker) -> list[Task]:
    """The results of which only this worker, and perhaps others that leave, have a copy."""
    return [
        task
        for task in worker.holds
        if isinstance(task.phase, InMemory) and all(holder.leaving for holder in task.phase.holders)
    ]


def _have_copied(state: State, worker: Worker, alone: list[Task]) -> bool:
    """Ask others to copy what nobody is copying yet; False if there are no others."""
    targets = [other for other in state.workers.values() if not other.leaving and not other.returning]
    if not targets:
        worker.copying.clear()
        return False
    heap = [(other.managed_bytes, place) for place, other in enumerate(targets)]
    heapify(heap)
    orders: dict[Worker, list[tuple[Key, tuple[str, ...]]]] = {}
    copying: dict[Task, tuple[Worker | None, int]] = {}
    for task in alone:
        phase = task.phase
        assert isinstance(phase, InMemory)
        target, tries = worker.copying.get(task, (None, 0))
        if target is None or target.peer not in state.workers:
            target = None
            if tries < TRIES:
                nbytes, place = heap[0]
                heapreplace(heap, (nbytes + phase.nbytes, place))
                target = targets[place]
                orders.setdefault(target, []).append((task.key, (worker.info.address,)))
                tries += 1
        copying[task] = (target, tries)
    worker.copying = copying
    for target, rows in orders.items():
        state.send(target.peer, Acquire(tuple(rows)))
    return True


def _refuse(state: State, worker: Worker, alone: list[Task]) -> bool:
    """Keep a worker that a client wanted to retire, since there is nobody left to take what it holds.

    False if nobody asked for it, or it leaves by itself all the same: such a worker cannot be kept.
    """
    if worker.drains:
        return False
    asked = [entry for entry in state.retirements if worker in entry[2]]
    if not asked:
        return False
    del state.leaving[worker]
    worker.leaving = ""
    worker.copying.clear()
    open_to_work(state, worker)
    for entry in asked:
        client, request, workers, left = entry
        state.retirements.remove(entry)
        for other in workers:
            if other is not worker and other in state.leaving and not other.drains:
                del state.leaving[other]
                other.leaving = ""
                other.copying.clear()
                open_to_work(state, other)
        _answer(state, client, request, left, _nowhere(worker, alone))
    return True


def _nowhere(worker: Worker, tasks: list[Task]) -> str:
    return (
        f"worker {worker.info.name} holds the only copies of {len(tasks)} results, and no other worker is there to "
        "take them; start another worker first, or release them"
    )


def _answer(state: State, client: PeerId, request: int, retired: Iterable[str], refused: str) -> None:
    payload: dict[str, object] = {"retired": tuple(retired)}
    if refused:
        payload["refused"] = refused
    state.send(client, Reply(request, payload))
