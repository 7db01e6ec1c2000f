"""What must hold between any two events. Tests and simulations call `check` after every single one."""

from __future__ import annotations

from trio_dask.scheduler.core.state import (
    FIRE_AND_FORGET,
    FORGOTTEN,
    RELEASED,
    Erred,
    InMemory,
    Processing,
    Queued,
    State,
    Task,
    Waiting,
)

__all__ = ["check", "check_empty"]


def check(state: State) -> None:
    """Hold the whole state against its rules.

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
        for blob in client.blobs:
            content_references[blob] = content_references.get(blob, 0) + 1
        assert (client.away_until is not None) == (client.peer in state.away_clients), f"{client.name} is away or not"
        unconfirmed = sum(map(len, client.unconfirmed))
        assert not client.grace_s or client.sent - client.confirmed == unconfirmed, "sent messages are counted wrongly"
    for blob in state.blobs.values():
        assert blob.references == content_references.get(blob, 0), "a blob counts its references wrongly"
        for worker in blob.shipped:
            assert worker.peer in state.workers, "a blob is said to be at a worker that is gone"
    for worker in (*state.workers.values(), *state.away.values()):
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
    for group in (state.idle, state.roomy, state.surplus):
        for worker in group:
            assert worker.peer in state.workers, "a worker that is gone is still listed"
            assert not worker.leaving, "a worker that leaves is to be given work"
            assert not worker.returning, "a worker is to be given work before it has said what it brings back"
    for incarnation, worker in state.away.items():
        assert worker.info.incarnation == incarnation
        assert worker.away_until is not None
        assert worker.peer not in state.workers, "a worker is away and here"
    for worker in state.leaving:
        assert worker.leaving


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
        assert peer == FIRE_AND_FORGET or task in state.clients[peer].wants, (
            f"{task} is wanted by a client that does not know"
        )
    missing = sum(not isinstance(dependency.phase, InMemory) for dependency in task.dependencies)
    needed = bool(task.wanted) or task.waiters > 0
    if phase is RELEASED:
        assert not needed, f"{task} is needed, and nobody works on it"
        assert task.dependents, f"{task} should have been forgotten"
    elif isinstance(phase, Waiting):
        assert needed
        assert phase.missing == missing, f"{task} counts {phase.missing} missing inputs, misses {missing}"
        if not missing and task not in state.ready:
            blocked_on_return = any(task in worker.blocked_on_return for worker in state.away.values())
            blocked_on_return = blocked_on_return or any(
                worker.returning and task in worker.blocked_on_return for worker in state.workers.values()
            )
            assert blocked_on_return, f"{task} is ready, and nobody will place it"
        for dependency in task.dependencies:
            assert not isinstance(dependency.phase, Erred), f"{task} waits for an input that erred"
    elif isinstance(phase, Queued):
        assert needed
        assert not missing, f"{task} is queued and misses inputs"
        queues = [phase.queue.tasks, *(worker.backlog for worker in state.workers.values())]
        assert any(entry is task for queue in queues for entry in queue), f"{task} is queued nowhere"
    elif isinstance(phase, Processing):
        assert needed
        assert phase.worker.processing.get(phase.run) is task, f"{task} runs where nobody knows"
        assert phase.missing <= missing, f"{task} waits at its worker for an input that is there"
    elif isinstance(phase, InMemory):
        assert needed, f"{task} is in memory, and nobody needs it"
        assert phase.holders, f"{task} is in memory nowhere"
        for worker in phase.holders:
            assert task in worker.holds
            assert worker.peer in state.workers or worker.info.incarnation in state.away


def check_empty(state: State) -> None:
    """What must hold when every client has left.

    Raises `AssertionError` naming what is left.
    """
    assert not state.tasks, f"{len(state.tasks)} tasks are left"
    assert not state.blobs, f"{len(state.blobs)} blobs are left"
    for worker in state.workers.values():
        assert not worker.processing, f"{worker} still processes"
        assert not worker.holds, f"{worker} still holds"
