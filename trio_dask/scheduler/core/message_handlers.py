"""What each message does: one function for each, and a table for each kind of peer that sends messages.

The tests compare the tables with `protocol.messages`: nothing is forgotten, and each handler takes the type of its row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId
from trio_dask.protocol import messages as m
from trio_dask.protocol.wire_constants import MAX_SECEDED
from trio_dask.scheduler.core import (
    actor_moves,
    clients,
    copies,
    memory_manager,
    nanny_calls,
    plugins,
    rebalancing,
    reconnect,
    replication,
    retirement,
    task_transitions,
    worker_membership,
    worker_transitions,
)
from trio_dask.scheduler.core.blobs import forget_blobs, receive
from trio_dask.scheduler.core.coordination.handlers import coordinate, end_request
from trio_dask.scheduler.core.estimates import note_bandwidth, update_duration
from trio_dask.scheduler.core.metadata import set_metadata
from trio_dask.scheduler.core.pending_requests import (
    NanniesThere,
    PendingRequest,
    WorkerCount,
    WorkersBack,
    WorkersReady,
    lacks_nanny,
)
from trio_dask.scheduler.core.placement import keep_off, place
from trio_dask.scheduler.core.queries import answer, workers_named
from trio_dask.scheduler.core.run_record import Ran, RunRecord
from trio_dask.scheduler.core.state import (
    DEFAULT_OPTIONS,
    FIRE_AND_FORGET,
    Client,
    ServiceQuestion,
    State,
    Stop,
    Task,
    Worker,
)
from trio_dask.scheduler.core.stuck_tasks import recheck_soon
from trio_dask.scheduler.core.submission import submit, submit_graph
from trio_dask.scheduler.core.task_states import RELEASED, Erred, Failure, InMemory, Processing, RetryHistory
from trio_dask.scheduler.core.topic_handlers import log_event, subscribe
from trio_dask.scheduler.core.work_stealing import hand_over
from trio_dask.scheduler.core.worker_states import Away

NANNY_WAIT_S: Final = 10.0
"""How long a question about nannies waits for those that are about to connect, for the first time or again."""


# ------------------------------------------------------------------------------------------------- from workers


def _run_finished(state: State, worker: Worker, message: m.RunFinished) -> None:
    task = worker.processing.get(message.run)
    if task is None:
        # Its cancellation is on the way to the worker, which drops the result when that arrives.
        state.note("", f"stale result of run {message.run} from {worker.info.name}")
        return
    if task.function is not None:
        update_duration(state, task.function, message.duration_s)
    if state.run_record is not None:
        state.run_record.note(_ran(state, worker, task, message.duration_s, message.nbytes, message.type_name))
    task_transitions.finish(state, task, worker, message.nbytes, message.type_name, message.value)


def _ran(state: State, worker: Worker, task: Task, duration_s: float, nbytes: int, type_name: str) -> Ran:
    """A run that ends now."""
    at = state.now + state.settings.unix_offset_s
    return Ran(at, worker.info.address, task.key, duration_s, nbytes, type_name, task.options.span)


def _run_failed(state: State, worker: Worker, message: m.RunFailed) -> None:
    task = worker.processing.get(message.run)
    if task is None:
        return
    if state.run_record is not None:
        state.run_record.note(_ran(state, worker, task, message.duration_s, 0, ""))
    if message.kind == "reschedule":
        keep_off(state, task, worker)
        task_transitions.requeue(state, task, f"{worker.info.name} rescheduled it")
        return
    history = task.history or RetryHistory()
    if history.failures < task.options.retries:
        task.history = history
        history.failures += 1
        history.attempts += 1
        task_transitions.requeue(state, task, "raised, retried")
        return
    details = {
        "worker": worker.info.title,
        "address": worker.info.address,
        "attempt": history.attempts,
        "duration_s": message.duration_s,
    }
    failure = Failure(task.key, message.kind, message.error, message.text, details)
    task_transitions.fail(state, task, failure, run_is_over=True)


def _started(state: State, worker: Worker, message: m.Started) -> None:
    for run in message.runs:
        task = worker.processing.get(run)
        if task is not None and isinstance(task.phase, Processing):
            task.phase.started_at = state.now


def _runs_returned(state: State, worker: Worker, message: m.RunsReturned) -> None:
    for run in message.runs:
        task = worker.processing.get(run)
        if task is not None:
            phase = task.phase
            retraction = phase.retraction if isinstance(phase, Processing) else None
            task_transitions.requeue(state, task, f"handed back by {worker.info.name}")
            if retraction is not None and retraction.thief is not None:
                hand_over(state, task, retraction.thief)


def _input_missing(state: State, worker: Worker, message: m.InputMissing) -> None:
    source = state.tasks.get(message.key)
    if source is not None:
        holder = state.addresses.get(message.address) if message.address else worker
        is_elsewhere = bool(message.address) and holder is not None and source.is_home_of_actor(holder)
        if holder is not None and type(holder.phase) is not Away and not is_elsewhere:
            _drop_replica(state, source, holder, f"{worker.info.name} could not get it from {holder.info.name}")
    task = worker.processing.get(message.run)
    if task is not None:
        task_transitions.requeue(state, task, f"its input {message.key} could not be fetched")


def _scattered(state: State, worker: Worker, message: m.Scattered) -> None:
    client = state.incarnations.get(message.client)
    task = state.tasks.get(message.key)
    if task is None:
        if client is None:
            state.free(worker.peer, message.key)
            return
        state.last_submission += 1
        task = state.tasks[message.key] = Task(message.key, state.last_submission, None, b"", DEFAULT_OPTIONS, ())
    if client is not None:
        task_transitions.want(state, task, client.peer)
    task_transitions.store_scattered(state, task, worker, message.nbytes, message.type_name)


def _lost(state: State, worker: Worker, message: m.Lost) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is not None:
            task_transitions.remove_replica(state, task, worker, f"{worker.info.name} lost it")


def _capacity(state: State, worker: Worker, message: m.Capacity) -> None:
    # A task that has seceded still counts as processed, so a worker may report more slots than threads.
    if not 0 <= message.slots <= worker.info.nthreads + MAX_SECEDED:
        raise ProtocolError(f"a worker of {worker.info.nthreads} threads reports {message.slots} slots")
    worker_transitions.set_capacity(state, worker, message.slots)


def _heartbeat(state: State, worker: Worker, message: m.Heartbeat) -> None:
    worker.last_metrics = message.metrics
    note_bandwidth(state, message.metrics.get("bandwidth_bytes_per_s"))


def _drop_replica(state: State, task: Task, holder: Worker, why: str) -> None:
    if isinstance(task.phase, InMemory) and holder in task.phase.holders:
        state.free(holder.peer, task.key)
        task_transitions.remove_replica(state, task, holder, why)


# ------------------------------------------------------------------------------------------------- from clients


def _want(state: State, client: Client, message: m.Want) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None:
            state.send(client.peer, _unknown(key))
            continue
        task_transitions.want(state, task, client.peer)
        task_transitions.notify_client(state, task, client.peer)
        if task.phase is RELEASED:
            task_transitions.activate(state, task)
    recheck_soon(state)


def _unknown(key: str) -> m.Dropped:
    return m.Dropped(key, "lost", f"the scheduler does not know {key!r}: it was released, or never submitted")


def _release(state: State, client: Client, message: m.Release) -> None:
    released: list[Task] = []
    for key in message.keys:
        task = state.tasks.get(key)
        if task is not None:
            task_transitions.unwant(state, task, client.peer)
            released.append(task)
    task_transitions.release_unneeded(state, released)


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
                if peer > FIRE_AND_FORGET:
                    state.send(peer, m.Dropped(task.key, "cancelled", f"cancelled by client {client.name}"))
    task_transitions.release_unneeded(state, list(seen))


def _retry(state: State, client: Client, message: m.Retry) -> None:
    tasks: list[Task] = []
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None:
            state.send(client.peer, _unknown(key))
        else:
            tasks.append(task)
    task_transitions.retry_erred(state, tasks)
    for task in tasks:
        if isinstance(task.phase, Erred):
            task_transitions.notify_client(state, task, client.peer)


def _fire_and_forget(state: State, client: Client, message: m.FireAndForget) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None or isinstance(task.phase, InMemory | Erred):
            continue
        task_transitions.want(state, task, FIRE_AND_FORGET)
        if task.phase is RELEASED:
            task_transitions.activate(state, task)


def _fetch_failed(state: State, client: Client, message: m.FetchFailed) -> None:
    task = state.tasks.get(message.key)
    if task is None:
        state.send(client.peer, _unknown(message.key))
        return
    holder = state.addresses.get(message.address)
    if holder is not None and isinstance(holder.phase, Away):
        phase = task.phase
        if isinstance(phase, InMemory) and all(type(other.phase) is Away for other in phase.holders):
            holder.phase.absence.failed_readers.append((client.peer, task))
            return
    elif holder is not None and not task.is_home_of_actor(holder):  # an actor lives on, whoever could not reach it
        _drop_replica(state, task, holder, f"client {client.name} could not get it from {holder.info.name}")
    if isinstance(task.phase, InMemory):
        task_transitions.notify_client(state, task, client.peer)


def _query(state: State, client: Client, message: m.Query) -> None:
    """Answer a question: at once, or later, when workers are there or the service has answered."""
    request, what, arguments = message
    match what:
        case "wait_for_workers":
            if len(arguments) != 1 or not arguments[0].isdecimal():
                raise ProtocolError(f"wait_for_workers takes a number of workers, not {arguments!r}")
            state.pending.add(PendingRequest(client.peer, request, WorkerCount(int(arguments[0]))))
        case "ready_workers":
            setting_up = [worker for worker in workers_named(state, arguments) if worker.setting_up]
            ready = WorkersReady(setting_up, partial(answer, state, "scheduler_info", arguments))
            state.pending.add(PendingRequest(client.peer, request, ready))
        case "nannies":
            lonely = [worker for worker in workers_named(state, arguments) if lacks_nanny(state, worker)]
            there = NanniesThere(lonely, partial(answer, state, "scheduler_info", arguments))
            state.pending.add(PendingRequest(client.peer, request, there, state.now + NANNY_WAIT_S))
        case "logs" | "versions" | "profile":
            state.requests.append(ServiceQuestion(client.peer, request, what, arguments))
        case "task_stream":
            state.send(client.peer, m.Reply(request, _task_stream(state, client, arguments)))
        case _:
            if what == "explain":
                place(state)  # what has come together with the question
            state.send(client.peer, m.Reply(request, answer(state, what, arguments)))


def _task_stream(state: State, client: Client, times: tuple[str, ...]) -> list[Ran]:
    """The runs between two times. From the first question on, runs are noted for this client."""
    record = state.run_record or RunRecord()
    runs = record.between(times)
    record.clients[client.peer] = None
    state.run_record = record
    return runs


def _restart(state: State, client: Client, message: m.Restart) -> None:
    names = restart(state, f"the cluster was restarted by client {client.name}")
    _await_workers(state, client, message.request, names)


def restart(state: State, text: str) -> dict[str, bool]:
    """Cancel all tasks and restart all workers: by name, whether a nanny starts it again."""
    tasks = list(state.tasks.values())
    for task in tasks:
        for peer in task.wanted:
            if peer > FIRE_AND_FORGET:
                state.send(peer, m.Dropped(task.key, "cancelled", text))
            task_transitions.unwant(state, task, peer)
    task_transitions.release_unneeded(state, tasks)
    for worker in list(state.away):
        worker_membership.remove_worker(state, worker, text, expected=True)
    return _begin_afresh(state, list(state.workers.values()), text)


def _restart_workers(state: State, client: Client, message: m.RestartWorkers) -> None:
    chosen = retirement.select(state, message.workers)
    if isinstance(chosen, str):
        state.send(client.peer, m.Reply(message.request, {"refused": chosen}))
        return
    names = _begin_afresh(state, chosen, f"restarted by client {client.name}")
    _await_workers(state, client, message.request, names)


def _begin_afresh(state: State, workers: list[Worker], text: str) -> dict[str, bool]:
    names: dict[str, bool] = {}
    for worker in workers:
        # A nanny gives it a new process. Without one it ends if it has its process to itself, else it begins afresh.
        nanny = state.nanny_of.get(worker.info.process)
        state.send(worker.peer if nanny is None else nanny, m.Leave(text, True))
        names[worker.info.name] = nanny is not None
    return names


def _await_workers(state: State, client: Client, request: int, names: dict[str, bool]) -> None:
    deadline = state.now + state.settings.restart_timeout_s
    state.pending.add(PendingRequest(client.peer, request, WorkersBack(names), deadline))


def _shutdown(state: State, client: Client, message: m.Shutdown) -> None:
    reason = f"client {client.name} shut the cluster down"
    for worker in state.workers.values():
        state.send(worker.peer, m.Leave(reason, False))
    state.requests.append(Stop(reason))


# ------------------------------------------------------------------------------------------------- the tables


FROM_WORKER: Final[dict[type[Any], Callable[[State, Worker, Any], None]]] = {
    m.RunFinished: _run_finished,
    m.RunFailed: _run_failed,
    m.Started: _started,
    m.RunsReturned: _runs_returned,
    m.InputMissing: _input_missing,
    m.Replicas: copies.copied,
    m.Scattered: _scattered,
    m.Lost: _lost,
    m.Capacity: _capacity,
    m.Heartbeat: _heartbeat,
    m.Inventory: reconnect.reconcile,
    m.Drain: retirement.drain,
    m.NotAcquired: copies.not_acquired,
    m.ActorHeld: actor_moves.held,
    m.ActorTaken: actor_moves.taken,
    m.PluginDone: plugins.worker_done,
    m.LogEvent: log_event,
}
FROM_CLIENT: Final[dict[type[Any], Callable[[State, Client, Any], None]]] = {
    m.Blob: receive,
    m.ForgetBlobs: forget_blobs,
    m.Received: clients.confirm,
    m.Submit: submit,
    m.SubmitGraph: submit_graph,
    m.Want: _want,
    m.Release: _release,
    m.Cancel: _cancel,
    m.Retry: _retry,
    m.FireAndForget: _fire_and_forget,
    m.FetchFailed: _fetch_failed,
    m.Query: _query,
    m.Restart: _restart,
    m.RestartWorkers: _restart_workers,
    m.Retire: retirement.retire,
    m.Rebalance: rebalancing.rebalance,
    m.Replicate: replication.replicate,
    m.ManageMemory: memory_manager.manage,
    m.Coordinate: coordinate,
    m.EndRequest: end_request,
    m.SetMetadata: set_metadata,
    m.RegisterPlugin: plugins.register,
    m.UnregisterPlugin: plugins.unregister,
    m.CallNanny: nanny_calls.call,
    m.LogEvent: log_event,
    m.Subscribe: subscribe,
    m.Shutdown: _shutdown,
}
FROM_NANNY: Final[dict[type[Any], Callable[[State, PeerId, Any], None]]] = {
    m.WorkerAlive: reconnect.nanny_heartbeat,
    m.WorkerExited: reconnect.worker_exited,
    m.PluginDone: plugins.nanny_done,
    m.NannyAnswer: nanny_calls.answer,
}
