"""Workers that are lost, perhaps for a moment only.

    here ──► away ──► returning ──► here        its link was cut, it dialled again and brought what it has
              │ │
              │ └──► buried                      its grace is over, or its nanny said that its process has ended
    here ──► buried                              it gave no sign of life for too long, or it said goodbye

While a worker is away it keeps its results and its runs, on paper, and nothing is computed anew: tasks whose inputs
only it has wait, parked. Nothing is sent to it, so whatever was decided meanwhile it does not know, and what it had
said last may not have arrived. Therefore nothing is replayed or merged when it returns: it tells what it has, and
`reconcile` holds that against the books, line by line. A result counts only if the very run that gave it is still
wanted there.
"""

from __future__ import annotations

from typing import Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation, Key, PeerId, RunId
from trio_dask.parsing import counted
from trio_dask.protocol.messages import CancelRuns, Free, Inventory, WorkerAlive, WorkerExited
from trio_dask.scheduler.core.retirement import forget_copies
from trio_dask.scheduler.core.state import (
    ClosePeer,
    InMemory,
    Nanny,
    Notice,
    Processing,
    State,
    Worker,
    WorkerInfo,
)
from trio_dask.scheduler.core.task_transitions import announce, finish, hand_back, lose
from trio_dask.scheduler.core.worker_membership import (
    bury,
    close_to_work,
    enter,
    expect_signs,
    open_to_work,
    release_parked,
)

__all__ = [
    "add_nanny",
    "come_back",
    "end_graces",
    "look_for_signs",
    "lose_worker",
    "may_return",
    "obituary",
    "reconcile",
    "remove_nanny",
    "vouch",
]


SAID_AFTER_S: Final = 1.0
"""The obituary of a worker that has died comes before that, and says why; then its lost link is no news."""

# ------------------------------------------------------------------------------------------------- away and back


def lose_worker(state: State, worker: Worker, reason: str) -> None:
    """The link to a worker was lost without a goodbye. It is away, if it may come back; else this is its end."""
    grace_s = state.settings.reconnect_grace_s
    if not worker.info.reconnect or grace_s <= 0:
        bury(state, worker, reason, expected=False)
        return
    _go_away(state, worker, reason)
    worker.away_said_at = state.now + SAID_AFTER_S


def _go_away(state: State, worker: Worker, reason: str) -> None:
    close_to_work(state, worker)
    del state.workers[worker.peer]
    state.outboxes.pop(worker.peer, None)
    state.frees.pop(worker.peer, None)
    for content in state.contents.values():
        content.shipped.pop(worker, None)
    worker.returning = False
    worker.why_away = reason
    worker.away_until = state.now + state.settings.reconnect_grace_s
    state.away[worker.info.incarnation] = worker


def may_return(state: State, previous: Incarnation, info: WorkerInfo) -> bool:
    """Whether this worker can go on where the session `previous` ended."""
    former = _find(state, previous)
    return (
        former is not None
        and former.info.nthreads == info.nthreads
        and former.info.resources == info.resources
        and (former.leaving != "" or state.names.get(info.name, former) is former)  # one that leaves gives up its name
        and state.addresses.get(info.address, former) is former
    )


def come_back(state: State, peer: PeerId, previous: Incarnation, info: WorkerInfo) -> bool:
    """A worker that was away is back, if it `may_return`. It is given work once it has sent its inventory.

    If its old session still counts as alive, because nobody has noticed its end, that ends here.
    """
    if not may_return(state, previous, info):
        return False
    worker = _find(state, previous)
    assert worker is not None
    if worker.away_until is None:
        state.requests.append(ClosePeer(worker.peer, "this worker has begun another session"))
        _go_away(state, worker, "it has begun another session")
    del state.away[worker.info.incarnation]
    worker.away_said_at = float("inf")
    for table, key in (
        (state.names, worker.info.name),
        (state.addresses, worker.info.address),
        (state.processes, worker.info.process),
    ):
        if table.get(key) is worker:
            del table[key]
    worker.peer = peer
    worker.former = (*worker.former, worker.info.incarnation)
    worker.info = info
    worker.away_until = None
    worker.returning = True
    enter(state, worker)
    return True


def reconcile(state: State, worker: Worker, inventory: Inventory) -> None:
    """Hold what a returned worker has against what it should have, and give it work again.

    Raises `ProtocolError` if this worker has not just returned.
    """
    if not worker.returning:
        raise ProtocolError("an inventory came from a worker that has not just returned")
    worker.returning = False
    worker.former = ()
    state.requests.append(
        Notice(f"Worker {worker.info.title} reconnected with {counted(len(inventory.held), 'result')}")
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
        else:
            foreign.append(key)
    for task in list(worker.holds):
        if task.key not in kept:
            lose(state, task, worker, f"{worker.info.name} came back without it")
    brought = dict.fromkeys(inventory.runs)
    for run, task in list(worker.processing.items()):
        if worker.processing.get(run) is not task:
            continue  # handing one back takes along those that wait there for its result
        if run not in brought:
            hand_back(state, task, f"{worker.info.name} came back without it")
        elif isinstance(task.phase, Processing):
            task.phase.retracting = False
    if foreign:
        state.send(worker.peer, Free(tuple(foreign)))
    unwanted = tuple(run for run in inventory.runs if run not in worker.processing)
    if unwanted:
        state.send(worker.peer, CancelRuns(unwanted))
    forget_copies(state, worker)
    if worker.leaving:
        state.leaving[worker] = None  # whatever it was told before may not have come
        state.leaving_at = state.now
    else:
        open_to_work(state, worker)
    release_parked(state, worker)
    unreached, worker.unreached = worker.unreached, []
    for peer, task in unreached:
        if peer in task.wanted:
            announce(state, task, peer)


def end_graces(state: State) -> None:
    """Bury each worker whose time to come back is over; report one whose death would be known by now."""
    grace_s = state.settings.reconnect_grace_s
    for worker in list(state.away.values()):
        if worker.away_until is not None and worker.away_until <= state.now:
            bury(state, worker, worker.why_away, expected=False)
        elif worker.away_said_at <= state.now:
            worker.away_said_at = float("inf")
            text = f"Lost the connection with worker {worker.info.title}: {worker.why_away}"
            state.requests.append(Notice(f"{text}; keeping its results for {grace_s:g} s"))


def _find(state: State, previous: Incarnation) -> Worker | None:
    """The worker, here or away, that was in this session last, as far as it knows: a welcome may have been lost."""
    for workers in (state.away, state.workers):
        for worker in workers.values():
            if previous and (worker.info.incarnation == previous or previous in worker.former):
                return worker
    return None


# ------------------------------------------------------------------------------------------------- signs of life


def look_for_signs(state: State) -> None:
    """Bury the workers that have given no sign of life for too long, and say when to look again."""
    settings = state.settings
    if state.now - state.signs_at > min(settings.worker_ttl_s, settings.lone_worker_ttl_s) / 2:
        # This process itself was stopped or busy: what the workers have said meanwhile waits to be read.
        for worker in state.workers.values():
            worker.heard_at = state.now
    for worker in list(state.workers.values()):
        limit_s = settings.worker_ttl_s if worker.info.process else settings.lone_worker_ttl_s
        if state.now - worker.heard_at >= limit_s:
            reason = f"no sign of life for {state.now - worker.heard_at:.0f} s"
            state.requests.append(ClosePeer(worker.peer, reason))
            bury(state, worker, reason, expected=False)
    state.signs_at = float("inf")
    expect_signs(state)


def add_nanny(state: State, peer: PeerId, name: str, process: str) -> None:
    """A nanny has registered, for the process that it calls so."""
    state.nannies[peer] = Nanny(peer, name, "")
    if process:
        _note_process(state, peer, process)


def remove_nanny(state: State, peer: PeerId) -> None:
    """A nanny has left. Its worker stays, with nobody to vouch for it."""
    nanny = state.nannies.pop(peer)
    if state.nanny_of.get(nanny.process) == peer:
        del state.nanny_of[nanny.process]


def vouch(state: State, peer: PeerId, message: WorkerAlive) -> None:
    """A worker process is alive, says its nanny."""
    _note_process(state, peer, message.process)
    worker = state.processes.get(message.process)
    if worker is not None:
        worker.heard_at = state.now


def obituary(state: State, message: WorkerExited) -> None:
    """A worker process has ended, says its nanny, who knows why. So it does not come back."""
    worker = state.processes.get(message.process)
    if worker is None:
        return
    if worker.peer in state.workers:
        state.requests.append(ClosePeer(worker.peer, message.cause))
    ran = message.runs if message.exact else None
    of_memory = message.details.get("of_memory") is True
    bury(state, worker, message.cause, expected=message.planned, ran=ran, of_memory=of_memory)


def _note_process(state: State, peer: PeerId, process: str) -> None:
    nanny = state.nannies[peer]
    if nanny.process != process:
        if state.nanny_of.get(nanny.process) == peer:
            del state.nanny_of[nanny.process]
        state.nannies[peer] = nanny._replace(process=process)
        state.nanny_of[process] = peer
