"""Workers register and are removed.

A worker is removed in one step: all that was known of it is gone when the function returns, and nothing that arrives
later from it can be mistaken for news. (A worker that may come back is *away* first, see `reconnect`.)

Blame: when a worker dies, only tasks that were running there are blamed. Its nanny knows exactly which these were.
Otherwise known to run are those it announced (`Started`), and, if it held no more ready runs than slots, all of these.
Else its ready runs become suspects, whose next start is announced before it happens, so that a second death is known
exactly. A worker that was ended for its memory while nothing ran there died of what it held: its large results are
blamed, or they would be computed again, and end one worker after the other, for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from trio_dask.ids import PeerId, RunId
from trio_dask.parsing import counted
from trio_dask.protocol.messages import ReturnRuns
from trio_dask.scheduler.core.events import WorkerAdded, WorkerRemoved
from trio_dask.scheduler.core.state import FIRE_AND_FORGET, LogLine, State, Task, Worker, WorkerInfo
from trio_dask.scheduler.core.task_states import Failure, InMemory, Processing, Retraction, RetryHistory
from trio_dask.scheduler.core.task_transitions import fail, notify_client, remove_replica, requeue
from trio_dask.scheduler.core.worker_states import GONE, HERE, Away
from trio_dask.scheduler.core.worker_transitions import absence_of, change_phase, unblock_tasks

HEAVY_SHARE: Final = 1 / 32
"""Of its worker's memory limit: a result of at least this size may have been too much for it."""


def refusal(state: State, info: WorkerInfo) -> str | None:
    """The sentence that refuses a worker whose name or address is taken; a retiring worker gives up its name."""
    holder = state.names.get(info.name)
    if holder is not None and type(holder.phase) is not Away and holder.phase.retirement is None:
        return f"the name {info.name!r} is taken by the worker at {holder.info.address}; choose another with --name"
    holder = state.addresses.get(info.address)
    if holder is not None and type(holder.phase) is not Away:
        return f"a worker with the address {info.address} is registered already"
    return None


def add_worker(state: State, peer: PeerId, info: WorkerInfo) -> str | None:
    """Register a worker; returns the sentence of refusal if there is one.

    A worker that is away and has this name or address will not come back: this is its successor.
    """
    refused = refusal(state, info)
    if refused is not None:
        return refused
    for holder in (state.names.get(info.name), state.addresses.get(info.address)):
        if holder is not None and type(holder.phase) is Away:
            remove_worker(state, holder, f"{holder.phase.why}, and its successor came", expected=False)
    change_phase(state, Worker(peer, info), HERE)
    if state.events is not None:
        state.events.note(WorkerAdded(state.now, info.address))
    at = f"{info.own_name} at {info.address}" if info.own_name else info.address
    state.requests.append(LogLine(f"Registered worker {at} ({counted(info.nthreads, 'thread')})"))
    return None


def remove_worker(
    state: State,
    worker: Worker,
    reason: str,
    *,
    expected: bool,
    ran: Collection[RunId] | None = None,
    of_memory: bool = False,
) -> None:
    """A worker has left (`expected`) or is lost for good.

    Its runs are placed anew, its results computed anew where needed. Unless its end was expected, the tasks that were
    running there are blamed: `ran`, where that is known. `of_memory`: it had too much.
    """
    info = worker.info
    why = f"worker {info.title} left" if expected else f"worker {info.title} is lost: {reason}"
    if not expected:
        state.requests.append(LogLine(f"Worker {info.title} is lost: {reason}", serious=True))
    absence = absence_of(worker)
    change_phase(state, worker, GONE)
    stranded = list(worker.processing.values())
    if expected:
        running = []
    elif ran is not None:
        running = [task for run in ran if (task := worker.processing.get(run)) is not None]
    else:
        running = _running(worker)
    heavy = _heavy(worker) if of_memory and not expected and not running else {}
    if not expected:
        _recall_readers(state, worker)
    for task in list(worker.holds):
        remove_replica(state, task, worker, why)
        if not expected and type(task.phase) is InMemory:
            # Others have it too. A client that asks this worker for it might wait for ever (see `_recall_readers`).
            for peer in task.wanted:
                if peer > FIRE_AND_FORGET:
                    notify_client(state, task, peer)
    for task in stranded:
        phase = task.phase
        if type(phase) is Processing and phase.worker is worker:
            requeue(state, task, why)
    for task in running:
        _blame(state, task, worker, reason, "was running on")
    for task, nbytes in heavy.items():
        if type(task.phase) is not InMemory and (task.wanted or task.waiters):
            _blame(state, task, worker, f"{reason}, with {nbytes / 2**20:.0f} MiB of this result", "was held by")
    unblock_tasks(state, absence)
    state.index.remove(worker)
    state.removed.append(worker)
    if state.events is not None:
        state.events.note(WorkerRemoved(state.now, info.address, reason))


def _recall_readers(state: State, worker: Worker) -> None:
    """Take back what has not started elsewhere and may be waiting for values from a worker that is lost.

    A process that is stopped, or cut off without a word, keeps its connections: a worker that asks it for a value would
    wait as long as it does, even where another one has that value.
    """
    runs: dict[Worker, list[RunId]] = {}
    for task in worker.holds:
        for dependent in task.dependents or ():
            phase = dependent.phase
            if (
                type(phase) is not Processing
                or phase.worker is worker
                or phase.started_at is not None
                or phase.retraction is not None
            ):
                continue
            if phase.worker.phase.has_session and task not in phase.worker.holds:
                phase.retraction = Retraction(None)
                runs.setdefault(phase.worker, []).append(phase.run)
    for reader, numbers in runs.items():
        state.send(reader.peer, ReturnRuns(tuple(numbers)))


def _running(worker: Worker) -> list[Task]:
    """The tasks that are known to have been running; those that may have been become suspects."""
    known: list[Task] = []
    possible: list[Task] = []
    for task in worker.processing.values():
        phase = task.phase
        assert isinstance(phase, Processing)
        if phase.started_at is not None:
            known.append(task)
        elif not phase.missing and not (task.history is not None and task.history.suspect):
            possible.append(task)
    if len(known) + len(possible) <= worker.capacity:
        return known + possible
    for task in possible:
        task.history = task.history or RetryHistory()
        task.history.suspect = True
    return known


def _heavy(worker: Worker) -> dict[Task, int]:
    """The large results that a worker holds, with their sizes; if none is large, the largest."""
    sizes = {task: task.phase.nbytes for task in worker.holds if type(task.phase) is InMemory}
    from_bytes = float(max(sizes.values(), default=0))
    if worker.info.memory_limit:
        from_bytes = min(from_bytes, HEAVY_SHARE * worker.info.memory_limit)
    return {task: nbytes for task, nbytes in sizes.items() if nbytes >= from_bytes}


def _blame(state: State, task: Task, worker: Worker, reason: str, role: str) -> None:
    history = task.history = task.history or RetryHistory()
    history.suspect = True
    info = worker.info
    name = f"{info.own_name} " if info.own_name else ""
    history.deaths.append(f"worker {name}at {info.address} (pid {info.pid}): {reason}")
    state.note(task.key, f"{role} {worker.info.name}, which died")
    if len(history.deaths) > state.settings.allowed_failures:
        details = {"deaths": tuple(history.deaths)}
        text = f"{len(history.deaths)} workers died while running {task.key!r} or holding its result"
        fail(state, task, Failure(task.key, "killed", None, text, details))
    else:
        history.attempts += 1
