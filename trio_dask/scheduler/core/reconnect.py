"""Workers whose connection is lost, perhaps for a moment only.

While a worker is away, the scheduler keeps the records of its results and its runs, and computes nothing anew: tasks
whose inputs only this worker has wait for its return. Nothing is sent to it, so it does not know what was decided
meanwhile, and what it said last may not have arrived. Therefore nothing is replayed or merged when it returns: it tells
what it has, and `reconcile` compares that with the records, one by one. A result counts only if the very run that gave
it is still wanted there.
"""

from __future__ import annotations

from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation, Key, PeerId, RunId
from trio_dask.parsing import counted
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import CancelRuns, Free, Inventory, SettleActor, WorkerAlive, WorkerExited
from trio_dask.scheduler.core import nanny_calls
from trio_dask.scheduler.core.retirement import begin_retiring
from trio_dask.scheduler.core.state import ClosePeer, LogLine, State, Worker, WorkerInfo
from trio_dask.scheduler.core.task_states import InMemory, Processing
from trio_dask.scheduler.core.task_transitions import finish, notify_client, remove_replica, requeue
from trio_dask.scheduler.core.worker_membership import remove_worker
from trio_dask.scheduler.core.worker_states import HERE, Away, Returning
from trio_dask.scheduler.core.worker_transitions import absence_of, change_phase, leave_tables, unblock_tasks

REPORT_AFTER_S: Final = 1.0
"""A death report comes within this time, and says more than a lost connection."""

ARRIVAL_S: Final = 15.0
"""A worker or client that was offered its session has at least this long to receive the answer and begin it."""

# ------------------------------------------------------------------------------------------------- away and back


def connection_lost(state: State, worker: Worker, reason: str) -> None:
    """The connection to a worker ended without a goodbye. It is away, if it may come back; else this is its end."""
    if not worker.info.reconnect or state.settings.reconnect_grace_s <= 0:
        remove_worker(state, worker, reason, expected=False)
    else:
        _go_away(state, worker, reason, report_at=state.now + REPORT_AFTER_S)


def _go_away(state: State, worker: Worker, reason: str, *, report_at: float) -> None:
    until = state.now + state.settings.reconnect_grace_s
    absence, retirement = absence_of(worker), worker.phase.retirement
    change_phase(state, worker, Away(absence, retirement, why=reason, until=until, report_at=report_at))


def find_resumable(state: State, previous: Incarnation, info: WorkerInfo) -> Worker | None:
    """The worker that was in session `previous` and can go on as the one that now says `info`."""
    for worker in (*state.away, *state.workers.values()) if previous else ():
        # The welcome of a later session may have been lost.
        if previous != worker.info.incarnation and previous not in absence_of(worker).old_incarnations:
            continue
        same = worker.info.nthreads == info.nthreads and worker.info.resources == info.resources
        # A retiring worker gives up its name, so another may have it.
        named = worker.phase.retirement is not None or state.names.get(info.name, worker) is worker
        return worker if same and named and state.addresses.get(info.address, worker) is worker else None
    return None


def offer_return(state: State, worker: Worker, hello: Hello) -> None:
    """A worker called again and hears that it can go on. If its old session seems alive, that ends here."""
    if type(worker.phase) is not Away:
        reason = "this worker has begun another session"
        state.requests.append(ClosePeer(worker.peer, reason))
        _go_away(state, worker, reason, report_at=float("inf"))
    phase = worker.phase
    assert isinstance(phase, Away)
    phase.offered_to = hello
    phase.until = max(phase.until, state.now + ARRIVAL_S)


def resume_worker(state: State, worker: Worker, peer: PeerId, info: WorkerInfo) -> None:
    """A worker that is away has begun a session. It is given work once it has sent its inventory."""
    phase = worker.phase
    assert isinstance(phase, Away)
    leave_tables(state, worker)
    absence = phase.absence
    absence.old_incarnations += (worker.info.incarnation,)
    worker.peer = peer
    worker.info = info
    change_phase(state, worker, Returning(absence, phase.retirement))


def reconcile(state: State, worker: Worker, inventory: Inventory) -> None:
    """Compare what a returned worker has with what it should have, and give it work again.

    Raises `ProtocolError` if this worker has not just returned.
    """
    phase = worker.phase
    if not isinstance(phase, Returning):
        raise ProtocolError("an inventory came from a worker that has not just returned")
    state.requests.append(
        LogLine(f"Worker {worker.info.title} reconnected with {counted(len(inventory.held), 'result')}")
    )
    kept: dict[Key, None] = {}
    foreign: list[Key] = []
    for key, run, nbytes, type_name in inventory.held:
        task = worker.processing.get(RunId(run)) if run >= 0 else None
        if task is not None and task.key == key:
            finish(state, task, worker, nbytes, type_name, None)
        task = state.tasks.get(key)
        if task is not None and isinstance(task.phase, InMemory) and worker in task.phase.holders:
            kept[key] = None
            if task.options.actor:  # it may have been about to move when the connection was lost
                state.send(worker.peer, SettleActor(key, task.is_home_of_actor(worker)))
        else:
            foreign.append(key)
    for task in list(worker.holds):
        if task.key not in kept:
            remove_replica(state, task, worker, f"{worker.info.name} came back without it")
    brought = dict.fromkeys(inventory.runs)
    for run, task in list(worker.processing.items()):
        if worker.processing.get(run) is not task:
            continue  # requeueing one takes along those that wait there for its result
        if run not in brought:
            requeue(state, task, f"{worker.info.name} came back without it")
        elif isinstance(task.phase, Processing):
            task.phase.retraction = None
    if foreign:
        state.send(worker.peer, Free(tuple(foreign)))
    unwanted = tuple(run for run in inventory.runs if run not in worker.processing)
    if unwanted:
        state.send(worker.peer, CancelRuns(unwanted))
    if phase.retirement is None:
        change_phase(state, worker, HERE)
    else:
        begin_retiring(state, worker, phase.retirement)
    unblock_tasks(state, phase.absence)
    for peer, task in phase.absence.failed_readers:
        if peer in task.wanted:
            notify_client(state, task, peer)


def end_expired(state: State) -> None:
    """Remove each worker whose grace is over; report each lost connection once a death would be known."""
    grace_s = state.settings.reconnect_grace_s
    for worker in list(state.away):
        phase = worker.phase
        assert isinstance(phase, Away)
        if phase.until <= state.now:
            remove_worker(state, worker, phase.why, expected=False)
        elif phase.report_at <= state.now:
            phase.report_at = float("inf")
            text = f"Lost the connection with worker {worker.info.title}: {phase.why}"
            state.requests.append(LogLine(f"{text}; keeping its results for {grace_s:g} s"))


# ------------------------------------------------------------------------------------------------- signs of life


def check_heartbeats(state: State) -> None:
    """Remove the workers that have given no sign of life for too long, and schedule the next check."""
    settings = state.settings
    if state.now - state.heartbeat_check_at > min(settings.worker_ttl_s, settings.lone_worker_ttl_s) / 2:
        # This process itself was stopped or busy: messages of the workers still wait to be read.
        for worker in state.workers.values():
            worker.heard_at = state.now
    for worker in list(state.workers.values()):
        limit_s = settings.worker_ttl_s if worker.info.process else settings.lone_worker_ttl_s
        if state.now - worker.heard_at >= limit_s:
            reason = f"no sign of life for {state.now - worker.heard_at:.0f} s"
            state.requests.append(ClosePeer(worker.peer, reason))
            remove_worker(state, worker, reason, expected=False)
    state.heartbeat_check_at = float("inf")
    state.schedule_heartbeat_check()


def add_nanny(state: State, peer: PeerId, process: str) -> None:
    """A nanny has registered, for the worker process with this name."""
    state.nannies[peer] = ""
    _note_process(state, peer, process)


def remove_nanny(state: State, peer: PeerId) -> None:
    """A nanny has left. Its worker stays, and gives its signs of life alone."""
    _note_process(state, peer, "")
    del state.nannies[peer]
    nanny_calls.nanny_left(state, peer)


def nanny_heartbeat(state: State, peer: PeerId, message: WorkerAlive) -> None:
    """A nanny reports that its worker process is alive."""
    _note_process(state, peer, message.process)
    worker = state.processes.get(message.process)
    if worker is not None:
        worker.heard_at = state.now


def worker_exited(state: State, nanny: PeerId, message: WorkerExited) -> None:
    """A nanny reports that its worker process has ended, and why. The worker does not come back."""
    worker = state.processes.get(message.process)
    if worker is None:
        return
    if worker.phase.has_session:
        state.requests.append(ClosePeer(worker.peer, message.cause))
    ran = message.runs if message.exact else None
    of_memory = message.details.get("of_memory") is True
    remove_worker(state, worker, message.cause, expected=message.planned, ran=ran, of_memory=of_memory)


def _note_process(state: State, peer: PeerId, process: str) -> None:
    before = state.nannies[peer]
    if before != process:
        if state.nanny_of.get(before) == peer:
            del state.nanny_of[before]
        state.nannies[peer] = process
        if process:
            state.nanny_of[process] = peer
            state.pending.nanny_joined()
