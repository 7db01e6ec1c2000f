"""What must hold between any two events. Tests and simulations call `check` after every single one."""

from __future__ import annotations

from itertools import chain

from trio_dask.ids import PeerId
from trio_dask.scheduler.core.state import COORDINATION, FIRE_AND_FORGET, State, Task, Worker
from trio_dask.scheduler.core.task_states import FORGOTTEN, RELEASED, Erred, InMemory, Processing, Queued, Waiting
from trio_dask.scheduler.core.topic_handlers import unread_bytes
from trio_dask.scheduler.core.worker_states import GONE, HERE, Away, Retiring
from trio_dask.scheduler.core.worker_transitions import absence_of


def check(state: State) -> None:
    """Check the whole state against its rules.

    Raises `AssertionError` naming the first one that is broken. Costs O(tasks and dependencies).
    """
    content_references: dict[object, int] = {}
    for key, task in state.tasks.items():
        assert task.key == key
        _check_task(state, task)
        for blob in (task.function, *task.blobs):
            if blob is not None:
                content_references[blob] = content_references.get(blob, 0) + 1
    for client in state.clients.values():
        for task in client.wants:
            assert client.peer in task.wanted, f"{client.name} wants {task}, which does not know"
        for task, count in client.holds.items():
            assert client.holder in task.wanted, f"{client.name} holds {task}, which does not know"
            assert count > 0, f"{client.name} holds {task} {count} times"
        for blob in client.blobs:
            content_references[blob] = content_references.get(blob, 0) + 1
        assert (client.away is not None) == (client.peer in state.away_clients), f"{client.name} is away or not"
        unconfirmed = sum(map(len, client.unconfirmed))
        assert not client.grace_s or client.sent - client.confirmed == unconfirmed, "sent messages are counted wrongly"
        if client.grace_s:
            unread = unread_bytes(chain(*client.unconfirmed, state.outboxes.get(client.peer, ())))
            assert client.unread_bytes == unread, "unread events are counted wrongly"
    state.coordination.check(state.clients.keys())
    for task, count in state.coordinated.items():
        assert COORDINATION in task.wanted, f"{task} is in a queue or variable, and does not know"
        assert count > 0, f"{task} is in queues and variables {count} times"
    for blob in state.blobs.values():
        assert blob.references == content_references.get(blob, 0), "a blob counts its references wrongly"
        for worker in blob.shipped:
            assert worker.peer in state.workers, "a blob is said to be at a worker that is gone"
    for worker in (*state.workers.values(), *state.away):
        occupancy_s = 0.0
        used: dict[str, float] = {}
        for run, task in worker.processing.items():
            phase = task.phase
            assert isinstance(phase, Processing), f"{worker} processes {task}"
            assert phase.run == run
            assert phase.worker is worker
            occupancy_s += phase.expected_s
            for name, amount in task.options.resources:
                used[name] = used.get(name, 0.0) + amount
        assert abs(worker.occupancy_s - occupancy_s) < 1e-6, f"occupancy of {worker}"
        for name, amount in worker.info.resources.items():
            assert abs(worker.available[name] + used.get(name, 0.0) - amount) < 1e-9, f"resources of {worker}"
            assert worker.available[name] >= -1e-9, f"{worker} gives more {name} than it has"
        managed = 0
        for task in worker.holds:
            assert isinstance(task.phase, InMemory), f"{worker} holds {task}"
            assert worker in task.phase.holders
            managed += task.phase.nbytes
        assert worker.managed_bytes == managed, f"bytes of {worker}"
        _check_worker_phase(state, worker)
    for task, under_way in state.copies.items():
        assert isinstance(task.phase, InMemory), f"{task} is being copied"
        assert under_way, f"{task} is said to be copied"
        for worker in under_way:
            assert worker.phase.has_session, f"{worker} copies {task}"
    for task, move in state.actor_moves.items():
        assert task.is_home_of_actor(move.source), f"{task} is to leave a worker where it does not live"
        assert type(move.source.phase) is Retiring, f"{task} is to leave a worker that stays"
        assert move.target.phase is HERE, f"{task} is to move to a worker that does not stay"
    for task, spreads in state.spreads.items():
        assert task in state.copies, f"{task} is to be copied, and no copy is under way"
        assert all(spread.targets and spread.goal.open for spread in spreads), f"copies of {task} are over"
    for call in state.nanny_calls.values():
        assert call.nanny in state.nannies, f"the nanny of {call.worker} runs a function and has no session"
        assert call.client in state.clients, f"the nanny of {call.worker} runs a function for a client that has left"
    for group in (state.index.idle, state.index.has_capacity, state.index.overloaded):
        for worker in group:
            assert worker.phase is HERE, f"{worker} is to be given work"
            assert worker.peer in state.workers, f"{worker} is still listed"


def _check_worker_phase(state: State, worker: Worker) -> None:
    phase = worker.phase
    assert phase is not GONE, f"{worker} is in a table"
    assert phase.has_session == (state.workers.get(worker.peer) is worker), f"{worker} is in the wrong table"
    assert (type(phase) is Away) == (worker in state.away), f"{worker} is away or not"
    assert (type(phase) is Retiring) == (worker in state.retiring), f"{worker} is retiring or not"
    takes_work = phase is HERE and not worker.setting_up
    assert worker.slots == (worker.capacity if takes_work else 0), f"slots of {worker}"
    assert phase is HERE or not worker.queues, f"{worker} has queues"


def _check_task(state: State, task: Task) -> None:
    phase = task.phase
    assert phase is not FORGOTTEN, f"{task} is in the table"
    waiters = 0
    for dependent in task.dependents or ():
        assert task in dependent.dependencies
        assert dependent.phase is not FORGOTTEN, f"{task} has a dependent that is forgotten"
        waiters += isinstance(dependent.phase, Waiting | Queued | Processing)
    assert task.waiters == waiters, f"{task} counts {task.waiters} waiters, has {waiters}"
    for dependency in task.dependencies:
        assert dependency.dependents is not None
        assert task in dependency.dependents
    for peer in task.wanted:
        client = state.clients.get(PeerId(abs(peer)))
        if peer == COORDINATION:
            assert task in state.coordinated, f"{task} is in no queue or variable"
            continue
        assert peer == FIRE_AND_FORGET or (client and task in (client.wants if peer > 0 else client.holds)), (
            f"{task} is wanted by a client that does not know"
        )
    missing = sum(not isinstance(dependency.phase, InMemory) for dependency in task.dependencies)
    needed = bool(task.wanted) or task.waiters > 0
    if phase is RELEASED:
        assert not needed, f"{task} is needed, and nothing is done for it"
        assert task.dependents, f"{task} should have been forgotten"
    elif isinstance(phase, Waiting):
        assert needed
        assert phase.missing == missing, f"{task} counts {phase.missing} missing inputs, misses {missing}"
        if not missing and task not in state.ready:
            workers = (*state.away, *state.workers.values())
            blocked = any(task in absence_of(worker).blocked_tasks for worker in workers)
            assert blocked, f"{task} is ready, and nothing will place it"
        for dependency in task.dependencies:
            assert not isinstance(dependency.phase, Erred), f"{task} waits for an input that erred"
    elif isinstance(phase, Queued):
        assert needed
        assert not missing, f"{task} is queued and misses inputs"
        queues = [phase.queue.tasks, *(worker.backlog for worker in state.workers.values())]
        assert any(entry is task for queue in queues for entry in queue), f"{task} is queued nowhere"
    elif isinstance(phase, Processing):
        assert needed
        assert phase.worker.processing.get(phase.run) is task, f"{task} runs at a worker that does not know it"
        assert phase.missing <= missing, f"{task} waits at its worker for an input that is there"
    elif isinstance(phase, InMemory):
        assert needed, f"{task} is in memory, and not needed"
        assert phase.holders, f"{task} is in memory nowhere"
        for worker in phase.holders:
            assert task in worker.holds
            assert worker.phase is not GONE, f"{worker} holds {task}"


def check_empty(state: State) -> None:
    """What must hold when every client has left.

    Raises `AssertionError` naming what is left.
    """
    assert not state.tasks, f"{len(state.tasks)} tasks are left"
    assert not state.blobs, f"{len(state.blobs)} blobs are left"
    assert not state.copies and not state.spreads, "copies are under way"  # noqa: PT018
    assert not state.surplus, "replicas are said to be surplus"
    assert not state.actor_moves, "actors are said to move"
    for worker in state.workers.values():
        assert not worker.processing, f"{worker} still processes"
        assert not worker.holds, f"{worker} still holds"
