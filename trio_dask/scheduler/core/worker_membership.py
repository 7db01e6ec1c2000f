"""Workers come and go.

A worker that is gone is buried in one step: its state is gone when the function returns, and nothing that arrives later
from it can be mistaken for news. (One that may come back is first *away*, see `reconnect`.)

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
from trio_dask.protocol.messages import Reply, ReturnRuns
from trio_dask.scheduler.core.placement import admit, settle
from trio_dask.scheduler.core.state import (
    DETACHED,
    Failure,
    InMemory,
    Notice,
    Past,
    Processing,
    Queue,
    Queued,
    State,
    Task,
    Waiting,
    Worker,
    WorkerInfo,
)
from trio_dask.scheduler.core.stuck_tasks import look_soon
from trio_dask.scheduler.core.task_transitions import announce, fail, hand_back, lose, move

__all__ = [
    "add_worker",
    "bury",
    "close_to_work",
    "enter",
    "expect_signs",
    "open_to_work",
    "refusal",
    "release_parked",
    "set_capacity",
]

HEAVY_SHARE: Final = 1 / 32
"""Of its worker's memory limit: from this size on a result may have been too much for it."""

SIGNS_PER_TTL: Final = 10
"""So often within the time that a worker may be silent it is looked at."""


def refusal(state: State, info: WorkerInfo) -> str | None:
    """The sentence that refuses a worker whose name or address is taken; one that leaves gives up its name."""
    holder = state.names.get(info.name)
    if holder is not None and holder.away_until is None and not holder.leaving:
        return f"the name {info.name!r} is taken by the worker at {holder.info.address}; choose another with --name"
    holder = state.addresses.get(info.address)
    if holder is not None and holder.away_until is None:
        return f"a worker with the address {info.address} is registered already"
    return None


def add_worker(state: State, peer: PeerId, info: WorkerInfo) -> str | None:
    """Register a worker; returns the sentence of refusal if there is one.

    Whoever has its name or its address and is away will not come back: this is its successor.
    """
    refused = refusal(state, info)
    if refused is not None:
        return refused
    for former in (state.names.get(info.name), state.addresses.get(info.address)):
        if former is not None and former.info.incarnation in state.away:
            bury(state, former, f"{former.why_away}, and its successor came", expected=False)
    worker = Worker(peer, info)
    enter(state, worker)
    open_to_work(state, worker)
    return None


def enter(state: State, worker: Worker) -> None:
    """A worker has a session from now on. It has no work yet."""
    info = worker.info
    state.workers[worker.peer] = worker
    if not worker.leaving or info.name not in state.names:
        state.names[info.name] = worker
    state.addresses[info.address] = worker
    if info.process:
        state.processes[info.process] = worker
    worker.heard_at = state.now
    expect_signs(state)
    _answer_waits(state)
    for _, _, names, _ in state.restarts:
        names.pop(info.name, None)


def expect_signs(state: State) -> None:
    """Have it looked at, in time, whether workers give signs of life."""
    shortest_s = min(state.settings.worker_ttl_s, state.settings.lone_worker_ttl_s)
    if state.workers and state.signs_at == float("inf"):
        state.signs_at = state.now + shortest_s / SIGNS_PER_TTL


def open_to_work(state: State, worker: Worker) -> None:
    """Give a worker its slots, and a place at every queue whose demands it meets."""
    worker.slots = worker.capacity
    if state.stuck_at < float("inf"):
        look_soon(state)
    state.queue.eligible[worker] = None
    for queue in state.queues.values():
        admit(queue, worker)
    state.touched[worker] = None
    settle(state, worker)


def close_to_work(state: State, worker: Worker) -> None:
    """Give a worker no more work; what was queued for it is placed anew."""
    worker.slots = 0
    state.queue.eligible.pop(worker, None)
    for queue in worker.queues:
        queue.eligible.pop(worker, None)
        if not queue.eligible and queue.line:
            _let_others_work(state, queue)
            look_soon(state)
    worker.queues.clear()
    for group in (state.idle, state.roomy, state.surplus, state.touched):
        group.pop(worker, None)
    _clear_backlog(state, worker, "its worker left")


def _let_others_work(state: State, queue: Queue) -> None:
    """No worker of this queue is left: those of its tasks that may also run elsewhere are placed anew."""
    tasks = list(dict.fromkeys(queue.line))
    if not any(task.terms.allow_other_workers for task in tasks):
        return
    queue.line.clear()
    for task in tasks:
        if task.phase is not queue.phase:
            continue  # its entry is stale
        if task.terms.allow_other_workers:
            move(state, task, Waiting(0), "its workers left")
            state.ready.append(task)
        else:
            queue.line.put(task)


def _clear_backlog(state: State, worker: Worker, why: str) -> None:
    """What was queued for a worker is placed anew."""
    for task in list(worker.backlog):
        if type(task.phase) is Queued:
            move(state, task, Waiting(0), why)
            state.ready.append(task)
    worker.backlog.clear()


def bury(
    state: State,
    worker: Worker,
    reason: str,
    *,
    expected: bool,
    ran: Collection[RunId] | None = None,
    of_memory: bool = False,
) -> None:
    """A worker has left (`expected`) or is lost for ever.

    Its runs are placed anew, its results computed anew where needed. Unless its end was expected, the tasks that were
    running there are blamed: `ran`, where that is known. `of_memory`: it had too much.
    """
    info = worker.info
    if not expected:
        state.requests.append(Notice(f"Worker {info.title} is lost: {reason}", serious=True))
    close_to_work(state, worker)
    state.workers.pop(worker.peer, None)
    state.away.pop(info.incarnation, None)
    state.leaving.pop(worker, None)
    for table, key in ((state.names, info.name), (state.addresses, info.address), (state.processes, info.process)):
        if table.get(key) is worker:
            del table[key]
    state.outboxes.pop(worker.peer, None)
    state.frees.pop(worker.peer, None)
    for content in state.contents.values():
        content.shipped.pop(worker, None)

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
        lose(state, task, worker, f"worker {info.name} left")
        if not expected and type(task.phase) is InMemory:
            # Others have it too: whoever is asking this worker for it might wait for ever (see `_recall_readers`).
            for peer in task.wanted:
                if peer != DETACHED:
                    announce(state, task, peer)
    for task in stranded:
        phase = task.phase
        if type(phase) is Processing and phase.worker is worker:
            hand_back(state, task, f"worker {info.name} left")
    for task in running:
        _blame(state, task, worker, reason, "was running on")
    for task, nbytes in heavy.items():
        if type(task.phase) is not InMemory and (task.wanted or task.waiters):
            _blame(state, task, worker, f"{reason}, with {nbytes / 2**20:.0f} MiB of this result", "was held by")
    release_parked(state, worker)
    worker.unreached.clear()
    worker.copying.clear()
    worker.away_until = None
    state.touched.pop(worker, None)
    state.departed.append(worker)


def _recall_readers(state: State, worker: Worker) -> None:
    """Take back what has not started elsewhere and may be waiting for values from a worker that is lost.

    A process that is stopped, or cut off without a word, keeps its connections: a worker that asks it for a value would
    wait as long as it does, even where another one has that value.
    """
    runs: dict[Worker, list[RunId]] = {}
    for task in worker.holds:
        for dependent in task.dependents or ():
            phase = dependent.phase
            if type(phase) is not Processing or phase.worker is worker or phase.started or phase.retracting:
                continue
            if phase.worker.peer in state.workers and task not in phase.worker.holds:
                phase.retracting = True
                runs.setdefault(phase.worker, []).append(phase.run)
    for reader, numbers in runs.items():
        state.send(reader.peer, ReturnRuns(tuple(numbers)))


def release_parked(state: State, worker: Worker) -> None:
    """Those that waited for this worker to return are placed after all."""
    parked, worker.parked = worker.parked, {}
    for task in parked:
        phase = task.phase
        if type(phase) is Waiting and not phase.missing:
            state.ready.append(task)


def set_capacity(state: State, worker: Worker, slots: int) -> None:
    """A worker can run this many tasks at once from now on."""
    worker.capacity = slots
    if not worker.returning and not worker.leaving:
        worker.slots = slots
        state.touched[worker] = None
        settle(state, worker)
        if not slots:
            # Nobody could take it from there: who has no slots and runs nothing has no surplus either.
            _clear_backlog(state, worker, "its worker takes no tasks")


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
    if len(known) + len(possible) <= worker.capacity:
        return known + possible
    for task in possible:
        if task.past is None:
            task.past = Past()
        task.past.suspect = True
    return known


def _heavy(worker: Worker) -> dict[Task, int]:
    """The large results that a worker holds, with their sizes; if none is large, the largest."""
    sizes = {task: task.phase.nbytes for task in worker.holds if type(task.phase) is InMemory}
    from_bytes = float(max(sizes.values(), default=0))
    if worker.info.memory_limit:
        from_bytes = min(from_bytes, HEAVY_SHARE * worker.info.memory_limit)
    return {task: nbytes for task, nbytes in sizes.items() if nbytes >= from_bytes}


def _blame(state: State, task: Task, worker: Worker, reason: str, role: str) -> None:
    past = task.past
    if past is None:
        past = task.past = Past()
    past.suspect = True
    info = worker.info
    name = f"{info.own_name} " if info.own_name else ""
    past.deaths.append(f"worker {name}at {info.address} (pid {info.pid}): {reason}")
    state.note(task.key, f"{role} {worker.info.name}, which died")
    if len(past.deaths) > state.settings.allowed_failures:
        details = {"deaths": tuple(past.deaths)}
        text = f"{len(past.deaths)} workers died while running {task.key!r} or holding its result"
        fail(state, task, Failure(task.key, "killed", None, text, details))
    else:
        past.attempts += 1


def _answer_waits(state: State) -> None:
    count = len(state.workers)
    still: list[tuple[PeerId, int, int]] = []
    for client, request, number in state.waits:
        if count >= number:
            state.send(client, Reply(request, count))
        else:
            still.append((client, request, number))
    state.waits = still
