"""Every change of a worker's phase: what it means for the tables, the queues and the work of the worker.

    new ──► here ──► away ──► returning ──► here
              └────► retiring ──► dismissed ──► gone

The whole of it is in `worker_states.WORKER_TRANSITIONS`. Which functions take which step: `worker_membership` registers
and removes workers, `reconnect` has them go away and return, `retirement` has them leave in good order.
"""

from __future__ import annotations

from trio_dask.scheduler.core.copies import target_left
from trio_dask.scheduler.core.copy_records import withdraw_move
from trio_dask.scheduler.core.placement import register_eligible
from trio_dask.scheduler.core.state import Queue, State, Worker
from trio_dask.scheduler.core.stuck_tasks import check_soon
from trio_dask.scheduler.core.task_states import Queued, Waiting
from trio_dask.scheduler.core.task_transitions import move
from trio_dask.scheduler.core.worker_states import (
    GONE,
    HERE,
    WORKER_TRANSITIONS,
    Absence,
    Away,
    Retiring,
    Returning,
    WorkerPhase,
)


def change_phase(state: State, worker: Worker, phase: WorkerPhase) -> None:
    """Take one step of the table. A step that is not in it is a bug of the scheduler."""
    before = worker.phase
    if (before.name, phase.name) not in WORKER_TRANSITIONS:
        raise AssertionError(f"no transition {before.name} -> {phase.name} of worker {worker.info.name}")
    if before is HERE:
        _disable_worker(state, worker)
    worker.phase = phase
    for table, kind in ((state.away, Away), (state.retiring, Retiring)):
        if type(phase) is kind:
            table[worker] = None
        else:
            table.pop(worker, None)
    if before.has_session and not phase.has_session:
        del state.workers[worker.peer]
        state.outboxes.pop(worker.peer, None)
        state.frees.pop(worker.peer, None)
        for blob in state.blobs.values():
            blob.shipped.pop(worker, None)
        target_left(state, worker)
    elif phase.has_session and not before.has_session:
        _enter_tables(state, worker)
    if state.actor_moves:
        for task, under_way in list(state.actor_moves.items()):
            if worker in (under_way.source, under_way.target):
                withdraw_move(state, task)
    if phase is GONE:
        leave_tables(state, worker)
        state.pending.worker_left(worker)
    elif phase is HERE:
        _enable_worker(state, worker)
    state.check_retirements_soon()


def _enter_tables(state: State, worker: Worker) -> None:
    info = worker.info
    state.workers[worker.peer] = worker
    if worker.phase.retirement is None or info.name not in state.names:
        state.names[info.name] = worker
    state.addresses[info.address] = worker
    if info.process:
        state.processes[info.process] = worker
    worker.heard_at = state.now
    state.schedule_heartbeat_check()
    state.pending.worker_joined(worker)


def leave_tables(state: State, worker: Worker) -> None:
    """Free the name, the address and the process of a worker."""
    info = worker.info
    for table, key in ((state.names, info.name), (state.addresses, info.address), (state.processes, info.process)):
        if table.get(key) is worker:
            del table[key]


def _enable_worker(state: State, worker: Worker) -> None:
    """Give a worker its slots, and a place at every queue whose demands it meets."""
    worker.slots = 0 if worker.setting_up else worker.capacity
    if state.stuck_at < float("inf"):
        check_soon(state)
    state.queue.eligible[worker] = None
    for queue in state.queues.values():
        register_eligible(queue, worker)
    state.index.mark_dirty(worker)
    state.index.update(worker)


def _disable_worker(state: State, worker: Worker) -> None:
    """Stop giving work to a worker, and place anew what was queued for it."""
    worker.slots = 0
    state.queue.eligible.pop(worker, None)
    for queue in worker.queues:
        queue.eligible.pop(worker, None)
        if not queue.eligible and queue.tasks:
            _allow_other_workers(state, queue)
            check_soon(state)
    worker.queues.clear()
    state.index.remove(worker)
    _clear_backlog(state, worker, "its worker left")


def _allow_other_workers(state: State, queue: Queue) -> None:
    """No worker of this queue is left: tasks of it that may also run elsewhere are placed anew."""
    tasks = list(dict.fromkeys(queue.tasks))
    if not any(task.options.allow_other_workers for task in tasks):
        return
    queue.tasks.clear()
    for task in tasks:
        if task.phase is not queue.phase:
            continue  # its entry is stale
        if task.options.allow_other_workers:
            move(state, task, Waiting(0), "its workers left")
            state.ready.append(task)
        else:
            queue.tasks.put(task)


def _clear_backlog(state: State, worker: Worker, why: str) -> None:
    """Place anew what was queued for a worker."""
    for task in list(worker.backlog):
        if type(task.phase) is Queued:
            move(state, task, Waiting(0), why)
            state.ready.append(task)
    worker.backlog.clear()


def set_capacity(state: State, worker: Worker, slots: int) -> None:
    """A worker can run this many tasks at once from now on."""
    worker.capacity = slots
    if worker.phase is HERE:
        worker.slots = slots = 0 if worker.setting_up else slots
        state.index.mark_dirty(worker)
        state.index.update(worker)
        if not slots:
            # No other worker could take it from there: without slots and runs, a worker is never overloaded.
            _clear_backlog(state, worker, "its worker takes no tasks")


def unblock_tasks(state: State, absence: Absence) -> None:
    """Tasks that waited for a worker to return are placed after all."""
    for task in absence.blocked_tasks:
        phase = task.phase
        if type(phase) is Waiting and not phase.missing:
            state.ready.append(task)
    absence.blocked_tasks.clear()


def absence_of(worker: Worker) -> Absence:
    """What has gathered since the connection of a worker was lost; a new one while it is here."""
    phase = worker.phase
    return phase.absence if isinstance(phase, Away | Returning) else Absence()
