"""What each message does: one function for each, and a table for each kind of peer that sends messages.

The tests compare the tables with `protocol.messages`: nothing is forgotten, and each handler takes the type of its row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId
from trio_dask.protocol import messages as m
from trio_dask.protocol.wire_constants import MAX_SECEDED
from trio_dask.scheduler.core import clients, reconnect, retirement, task_transitions, worker_membership
from trio_dask.scheduler.core.blobs import forget_contents, receive
from trio_dask.scheduler.core.placement import learn
from trio_dask.scheduler.core.queries import answer
from trio_dask.scheduler.core.state import (
    DETACHED,
    NO_TERMS,
    RELEASED,
    Client,
    Erred,
    Failure,
    InMemory,
    Past,
    Processing,
    State,
    Stop,
    Task,
    Worker,
)
from trio_dask.scheduler.core.stuck_tasks import look_again
from trio_dask.scheduler.core.submission import submit

__all__ = ["FROM_CLIENT", "FROM_NANNY", "FROM_WORKER"]

# ------------------------------------------------------------------------------------------------- from workers


def _run_finished(state: State, worker: Worker, message: m.RunFinished) -> None:
    task = worker.processing.get(message.run)
    if task is None:
        # Its cancellation is on the way to the worker, which drops the result when that arrives.
        state.note("", f"stale result of run {message.run} from {worker.info.name}")
        return
    if task.function is not None:
        learn(state, task.function, message.duration_s)
    task_transitions.finish(state, task, worker, message.nbytes, message.type_name, message.value)


def _run_failed(state: State, worker: Worker, message: m.RunFailed) -> None:
    task = worker.processing.get(message.run)
    if task is None:
        return
    past = task.past
    attempt = past.attempts if past is not None else 1
    if (past.failures if past is not None else 0) < task.terms.retries:
        if past is None:
            past = task.past = Past()
        past.failures += 1
        past.attempts += 1
        task_transitions.hand_back(state, task, "raised, retried")
        return
    details = {
        "worker": worker.info.name,
        "address": worker.info.address,
        "attempt": attempt,
        "duration_s": message.duration_s,
    }
    failure = Failure(task.key, message.kind, message.error, message.text, details)
    task_transitions.fail(state, task, failure, run_is_over=True)


def _started(state: State, worker: Worker, message: m.Started) -> None:
    for run in message.runs:
        task = worker.processing.get(run)
        if task is not None and isinstance(task.phase, Processing):
            task.phase.started = True
            task.phase.started_at = state.now


def _runs_returned(state: State, worker: Worker, message: m.RunsReturned) -> None:
    for run in message.runs:
        task = worker.processing.get(run)
        if task is not None:
            task_transitions.hand_back(state, task, f"handed back by {worker.info.name}")


def _input_missing(state: State, worker: Worker, message: m.InputMissing) -> None:
    source = state.tasks.get(message.key)
    if source is not None:
        holder = state.addresses.get(message.address) if message.address else worker
        if holder is not None and holder.away_until is None:
            _drop_replica(state, source, holder, f"{worker.info.name} could not get it from {holder.info.name}")
    task = worker.processing.get(message.run)
    if task is not None:
        task_transitions.hand_back(state, task, f"its input {message.key} could not be fetched")


def _replicas(state: State, worker: Worker, message: m.Replicas) -> None:
    unknown: list[str] = []
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None or not isinstance(task.phase, InMemory):
            unknown.append(key)
        elif worker not in task.phase.holders:
            task.phase.holders += (worker,)
            worker.holds[task] = None
            worker.managed_bytes += task.phase.nbytes
    if unknown:
        state.send(worker.peer, m.Free(tuple(unknown)))


def _scattered(state: State, worker: Worker, message: m.Scattered) -> None:
    client = state.incarnations.get(message.client)
    task = state.tasks.get(message.key)
    if task is None:
        if client is None:
            state.free(worker.peer, message.key)
            return
        state.last_submission += 1
        task = state.tasks[message.key] = Task(message.key, state.last_submission, None, b"", NO_TERMS, ())
    if client is not None:
        task_transitions.want(state, task, client.peer)
    task_transitions.appear(state, task, worker, message.nbytes, message.type_name)


def _lost(state: State, worker: Worker, message: m.Lost) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is not None:
            task_transitions.lose(state, task, worker, f"{worker.info.name} lost it")


def _capacity(state: State, worker: Worker, message: m.Capacity) -> None:
    # More than its threads while tasks wait outside of its slots, where they count as processed all the same.
    if not 0 <= message.slots <= worker.info.nthreads + MAX_SECEDED:
        raise ProtocolError(f"a worker of {worker.info.nthreads} threads reports {message.slots} slots")
    worker_membership.set_capacity(state, worker, message.slots)


def _heartbeat(state: State, worker: Worker, message: m.Heartbeat) -> None:
    worker.last_metrics = message.metrics


def _drop_replica(state: State, task: Task, holder: Worker, why: str) -> None:
    if isinstance(task.phase, InMemory) and holder in task.phase.holders:
        state.free(holder.peer, task.key)
        task_transitions.lose(state, task, holder, why)


# ------------------------------------------------------------------------------------------------- from clients


def _want(state: State, client: Client, message: m.Want) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None:
            state.send(client.peer, _unknown(key))
            continue
        task_transitions.want(state, task, client.peer)
        task_transitions.announce(state, task, client.peer)
        if task.phase is RELEASED:
            task_transitions.activate(state, task)
    look_again(state)


def _unknown(key: str) -> m.Dropped:
    return m.Dropped(key, "lost", f"the scheduler does not know {key!r}: it was released, or never submitted")


def _release(state: State, client: Client, message: m.Release) -> None:
    released: list[Task] = []
    for key in message.keys:
        task = state.tasks.get(key)
        if task is not None:
            task_transitions.unwant(state, task, client.peer)
            released.append(task)
    task_transitions.sweep(state, released)


def _cancel(state: State, client: Client, message: m.Cancel) -> None:
    tasks = [task for key in message.keys if (task := state.tasks.get(key)) is not None]
    seen: dict[Task, None] = {}
    stack = list(tasks)
    while stack:
        task = stack.pop()
        if task not in seen:
            seen[task] = None
            stack += task.dependents or ()
    for task in seen:
        for peer in task.wanted if message.force else (client.peer,):
            if peer in task.wanted:
                task_transitions.unwant(state, task, peer)
                if peer != DETACHED:
                    state.send(peer, m.Dropped(task.key, "cancelled", f"cancelled by client {client.name}"))
    task_transitions.sweep(state, list(seen))


def _retry(state: State, client: Client, message: m.Retry) -> None:
    tasks: list[Task] = []
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None:
            state.send(client.peer, _unknown(key))
        else:
            tasks.append(task)
    task_transitions.revive(state, tasks)
    for task in tasks:
        if isinstance(task.phase, Erred):
            task_transitions.announce(state, task, client.peer)


def _fire_and_forget(state: State, client: Client, message: m.FireAndForget) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None or isinstance(task.phase, InMemory | Erred):
            continue
        task_transitions.want(state, task, DETACHED)
        if task.phase is RELEASED:
            task_transitions.activate(state, task)


def _fetch_failed(state: State, client: Client, message: m.FetchFailed) -> None:
    task = state.tasks.get(message.key)
    if task is None:
        state.send(client.peer, _unknown(message.key))
        return
    holder = state.addresses.get(message.address)
    if holder is not None and holder.away_until is not None:
        phase = task.phase
        if isinstance(phase, InMemory) and all(other.away_until is not None for other in phase.holders):
            holder.unreached.append((client.peer, task))
            return
    elif holder is not None:
        _drop_replica(state, task, holder, f"client {client.name} could not get it from {holder.info.name}")
    if isinstance(task.phase, InMemory):
        task_transitions.announce(state, task, client.peer)


def _query(state: State, client: Client, message: m.Query) -> None:
    if message.what == "wait_for_workers":
        number = int(message.arguments[0]) if message.arguments and message.arguments[0].isdecimal() else 1
        if len(state.workers) >= number:
            state.send(client.peer, m.Reply(message.request, len(state.workers)))
        else:
            state.waits.append((client.peer, message.request, number))
        return
    state.send(client.peer, m.Reply(message.request, answer(state, message.what, message.arguments)))


def _restart(state: State, client: Client, message: m.Restart) -> None:
    text = f"the cluster was restarted by client {client.name}"
    tasks = list(state.tasks.values())
    for task in tasks:
        for peer in task.wanted:
            if peer != DETACHED:
                state.send(peer, m.Dropped(task.key, "cancelled", text))
            task_transitions.unwant(state, task, peer)
    task_transitions.sweep(state, tasks)
    for worker in list(state.away.values()):
        worker_membership.bury(state, worker, text, expected=True)
    _begin_afresh(state, client, message.request, list(state.workers.values()), text)


def _restart_workers(state: State, client: Client, message: m.RestartWorkers) -> None:
    chosen, unknown = retirement.select(state, message.workers)
    if unknown:
        state.send(client.peer, m.Reply(message.request, {"refused": f"there is no worker {unknown!r}"}))
        return
    text = f"restarted by client {client.name}"
    _begin_afresh(state, client, message.request, chosen, text)


def _begin_afresh(state: State, client: Client, request: int, workers: list[Worker], text: str) -> None:
    names = dict.fromkeys(worker.info.name for worker in workers)
    for worker in workers:
        # A nanny gives it a new process; without one it begins another session.
        nanny = state.nanny_of.get(worker.info.process)
        state.send(worker.peer if nanny is None else nanny, m.Leave(text, True))
    deadline = state.now + state.settings.restart_timeout_s
    state.restarts.append((client.peer, request, names, deadline))


def _retire(state: State, client: Client, message: m.Retire) -> None:
    retirement.retire(state, client.peer, message)


def _shutdown(state: State, client: Client, message: m.Shutdown) -> None:
    reason = f"client {client.name} shut the cluster down"
    for worker in state.workers.values():
        state.send(worker.peer, m.Leave(reason, False))
    state.requests.append(Stop(reason))


def _drain(state: State, worker: Worker, message: m.Drain) -> None:
    retirement.begin_leaving(state, worker, message.reason)
    worker.leaving, worker.drains = message.reason, True  # though a client may have wanted to retire it before


def _forget_blobs(state: State, client: Client, message: m.ForgetBlobs) -> None:
    forget_contents(state, client, message.digests)


# ------------------------------------------------------------------------------------------------- from nannies


def _worker_exited(state: State, nanny: PeerId, message: m.WorkerExited) -> None:
    reconnect.obituary(state, message)


# ------------------------------------------------------------------------------------------------- the tables

FROM_WORKER: Final[dict[type[Any], Callable[[State, Worker, Any], None]]] = {
    m.RunFinished: _run_finished,
    m.RunFailed: _run_failed,
    m.Started: _started,
    m.RunsReturned: _runs_returned,
    m.InputMissing: _input_missing,
    m.Replicas: _replicas,
    m.Scattered: _scattered,
    m.Lost: _lost,
    m.Capacity: _capacity,
    m.Heartbeat: _heartbeat,
    m.Inventory: reconnect.reconcile,
    m.Drain: _drain,
    m.NotAcquired: retirement.not_acquired,
}
FROM_CLIENT: Final[dict[type[Any], Callable[[State, Client, Any], None]]] = {
    m.Blob: receive,
    m.ForgetBlobs: _forget_blobs,
    m.Received: clients.confirm,
    m.Submit: submit,
    m.Want: _want,
    m.Release: _release,
    m.Cancel: _cancel,
    m.Retry: _retry,
    m.FireAndForget: _fire_and_forget,
    m.FetchFailed: _fetch_failed,
    m.Query: _query,
    m.Restart: _restart,
    m.RestartWorkers: _restart_workers,
    m.Retire: _retire,
    m.Shutdown: _shutdown,
}
FROM_NANNY: Final[dict[type[Any], Callable[[State, PeerId, Any], None]]] = {
    m.WorkerAlive: reconnect.vouch,
    m.WorkerExited: _worker_exited,
}
