"""Every transition of a task.

Theory of operation
-------------------

A task is *needed* while a client wants it, or while a dependent of it is waiting, queued or processing (`waiters`
counts those). The whole life follows from that one notion:

- a needed task that is `released` becomes `waiting`, and with it, recursively, each input that is not in memory;
- a waiting task that misses nothing goes to `State.ready`; `placement` makes it `queued` (or `no-worker`) or
  `processing`. A waiting task may also be assigned ahead, to the worker that computes the inputs it misses;
- its worker reports the result, and it is in `memory`; or an exception, and it is tried again or has `erred`, and every
  needed dependent has erred with it;
- a task that is no longer needed is `released`: its run is cancelled or its result is freed. It is kept while it has
  dependents, since a lost result of theirs would be computed again from it; without dependents it is `forgotten`;
- a result whose last holder is lost is `released`, and, if needed, `waiting` again.

Work spreads along dependencies through explicit lists, never by recursion, so that a chain of a million links is as
good as any other graph. Every change of a phase goes through `move`, which writes the story, and in validating mode
holds every step against `TRANSITIONS`. This file is long because each transition follows from others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from trio_dask.ids import PeerId
from trio_dask.protocol.messages import CancelRuns, KeyFailed, KeyPending, KeyReady
from trio_dask.protocol.wire_constants import SMALL_VALUE_BYTES
from trio_dask.scheduler.core.blobs import unreference
from trio_dask.scheduler.core.copy_records import withdraw_copies, withdraw_move
from trio_dask.scheduler.core.state import COORDINATION, FIRE_AND_FORGET, Client, State, Task, Worker
from trio_dask.scheduler.core.task_states import (
    FORGOTTEN,
    RELEASED,
    Erred,
    Failure,
    InMemory,
    Phase,
    Processing,
    Queued,
    Waiting,
)
from trio_dask.scheduler.core.task_watch import watch
from trio_dask.scheduler.core.worker_states import HERE, Away

TRANSITIONS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("released", "waiting"): "it is needed",
        ("released", "memory"): "a client scattered it, or a worker turned out to hold it",
        ("released", "erred"): "the call was refused, or an input of it cannot be computed again",
        ("released", "forgotten"): "nobody needs it and nothing depends on it",
        ("waiting", "queued"): "all inputs are in memory, no worker has room yet",
        ("waiting", "no-worker"): "all inputs are in memory, no worker meets its demands",
        ("waiting", "processing"): "assigned to a worker, perhaps ahead of inputs that are computed there",
        ("waiting", "released"): "no longer needed",
        ("waiting", "erred"): "an input erred",
        ("waiting", "memory"): "a client scattered the same key",
        ("queued", "processing"): "assigned to a worker",
        ("queued", "no-worker"): "the last worker that meets its demands left",
        ("queued", "waiting"): "an input was lost",
        ("queued", "released"): "no longer needed",
        ("queued", "erred"): "an input was lost that cannot be computed again",
        ("queued", "memory"): "a client scattered the same key",
        ("no-worker", "queued"): "a worker came that meets its demands",
        ("no-worker", "processing"): "assigned to a worker",
        ("no-worker", "waiting"): "an input was lost",
        ("no-worker", "released"): "no longer needed",
        ("no-worker", "erred"): "an input was lost that cannot be computed again",
        ("no-worker", "memory"): "a client scattered the same key",
        ("processing", "memory"): "the worker reported the result",
        ("processing", "erred"): "it raised and no retries are left, an input erred, or its workers kept dying",
        ("processing", "waiting"): "it raised and is retried, its worker died, or it was handed back",
        ("processing", "released"): "no longer needed",
        ("memory", "released"): "no longer needed, or the last holder is lost",
        ("memory", "erred"): "the only copy of scattered data is lost",
        ("erred", "released"): "it is to be retried",
        ("erred", "forgotten"): "nobody needs it and nothing depends on it",
    }
)
"""All transitions there are, each with its reason. The diagram in the documentation is made from this table."""

CHAIN_FAN_OUT: Final = 4
"""Dependents of a wider task are not assigned ahead: they can run anywhere, so they should not pile up in one place."""

CHAIN_FAN_IN: Final = 8
"""Tasks with more inputs are not assigned ahead: reading all inputs at each of their steps would be quadratic."""


def move(state: State, task: Task, phase: Phase, why: str) -> None:
    """Change a task's phase and note it."""
    if state.watches_tasks:
        watch(state, task, phase, why, TRANSITIONS)
    task.phase = phase
    state.story.append((state.now, task.key, why))


def activate(state: State, task: Task) -> None:
    """Start what a needed task needs: `task`, if released, and every released input, become waiting."""
    failed: list[tuple[Task, Failure]] = []
    stack = [task]
    while stack:
        task = stack.pop()
        if task.phase is not RELEASED:
            continue
        if task.function is None:
            failed.append((task, _irrecoverable(task)))
            continue
        missing = 0
        failure: Failure | None = None
        for dependency in task.dependencies:
            dependency.waiters += 1
            phase = dependency.phase
            if type(phase) is InMemory:
                continue
            missing += 1
            if type(phase) is Erred:
                failure = phase.failure
            elif phase is RELEASED:
                stack.append(dependency)
        move(state, task, Waiting(missing), "needed")
        if failure is not None:
            failed.append((task, failure))
        elif not missing:
            state.ready.append(task)
        elif len(task.dependencies) <= CHAIN_FAN_IN:
            state.chain_candidates.append(task)
    for task, failure in failed:
        if type(task.phase) is not Erred:
            fail(state, task, failure)


def finish(state: State, task: Task, worker: Worker, nbytes: int, type_name: str, value: bytes | None) -> None:
    """A processing task has its result, which `worker` holds."""
    end_run(state, task)
    is_small = value is not None and task.waiters and len(value) <= SMALL_VALUE_BYTES
    move(state, task, InMemory(worker.self_tuple, nbytes, type_name, value if is_small else None), "finished")
    worker.holds[task] = None
    worker.managed_bytes += nbytes
    if task.history is not None:
        task.history.suspect = False
    unneeded = _stop_waiting(task)
    input_ready(state, task, worker)
    if task.wanted:
        _notify_ready(state, task, value)
    if not task.waiters and not task.wanted:
        unneeded.append(task)
    if unneeded:
        release_unneeded(state, unneeded)


def add_replica(task: Task, phase: InMemory, worker: Worker) -> None:
    """`worker` holds the result of `task` too."""
    if worker not in phase.holders:
        phase.holders += (worker,)
        worker.holds[task] = None
        worker.managed_bytes += phase.nbytes


def move_home(task: Task, phase: InMemory, source: Worker, target: Worker, value: bytes | None) -> None:
    """An actor lives at `target` now, and no more at `source`; `value` is its new proxy, if that is small."""
    add_replica(task, phase, target)
    phase.holders = (target, *(holder for holder in phase.holders if holder is not source and holder is not target))
    source.holds.pop(task, None)
    source.managed_bytes -= phase.nbytes
    phase.small_value = value if value is not None and len(value) <= SMALL_VALUE_BYTES else None


def store_scattered(state: State, task: Task, worker: Worker, nbytes: int, type_name: str) -> None:
    """`worker` holds a result that it was not asked to compute (scattered data)."""
    phase = task.phase
    unneeded: list[Task] = []
    if type(phase) is InMemory:
        add_replica(task, phase, worker)
    else:
        if type(phase) is Erred:
            move(state, task, RELEASED, "stored anew")
        elif phase is not RELEASED:
            if type(phase) is Processing:
                _withdraw_run(state, task, "its value was stored")
            unneeded = _stop_waiting(task)
        move(state, task, InMemory(worker.self_tuple, nbytes, type_name), "stored")
        worker.holds[task] = None
        worker.managed_bytes += nbytes
        input_ready(state, task, worker)
    if task.wanted:
        _notify_ready(state, task, None)
    unneeded.append(task)
    release_unneeded(state, unneeded)


def fail(state: State, task: Task, failure: Failure, *, run_is_over: bool = False) -> None:
    """`task` has erred, and with it all needed tasks that depend on it."""
    unneeded: list[Task] = []
    stack = [task]
    while stack:
        task = stack.pop()
        phase = task.phase
        if type(phase) is Erred or phase is FORGOTTEN:
            continue
        if type(phase) is Processing:
            if run_is_over:
                end_run(state, task)
                run_is_over = False
            else:
                _cancel_run(state, task, phase)
        if phase is not RELEASED and type(phase) is not InMemory:
            unneeded += _stop_waiting(task)
        move(state, task, Erred(failure), "erred")
        unneeded.append(task)
        for peer in task.wanted:
            if peer == FIRE_AND_FORGET:
                task.wanted = tuple(other for other in task.wanted if other != FIRE_AND_FORGET)
            elif peer > FIRE_AND_FORGET:
                state.send(peer, key_failed(task, failure))
        if task.dependents:
            stack += [dependent for dependent in task.dependents if type(dependent.phase) in _ACTIVE]
    release_unneeded(state, unneeded)


def requeue(state: State, task: Task, why: str) -> None:
    """A processing task will not finish where it is: it waits again, and is placed anew once it is ready."""
    _withdraw_run(state, task, why)
    _wait_again(state, task, why)


def remove_replica(state: State, task: Task, worker: Worker, why: str) -> None:
    """`worker` no longer holds the result of `task`."""
    phase = task.phase
    worker.holds.pop(task, None)
    if type(phase) is not InMemory or worker not in phase.holders:
        return
    is_home = task.is_home_of_actor(worker)
    worker.managed_bytes -= phase.nbytes
    state.index.mark_dirty(worker)
    if is_home:
        phase.holders = phase.holders[1:]
        _free(state, task, phase)
    elif len(phase.holders) > 1:
        phase.holders = tuple(holder for holder in phase.holders if holder is not worker)
        for holder in phase.holders:
            state.index.mark_dirty(holder)  # it may be retiring, and the only one with the result now
        return
    elif task in state.copies:
        withdraw_copies(state, task)
    if task.function is None or is_home:
        if not task.wanted and not task.waiters:
            move(state, task, RELEASED, why)
            release_unneeded(state, [task])
        else:
            _inputs_lost(state, task, why)
            fail(state, task, _actor_lost(task, why) if is_home else _irrecoverable(task))
        return
    move(state, task, RELEASED, why)
    _inputs_lost(state, task, why)
    if task.wanted or task.waiters:
        _begin_anew(state, task)
    else:
        release_unneeded(state, [task])


def retry_erred(state: State, tasks: Iterable[Task]) -> None:
    """Run erred tasks again, from the erred task at the root of each; what erred with them comes along.

    A task that was refused, for want of an input, stays erred: it was never whole.
    """
    erred: dict[Task, None] = {}
    stack = [task for task in tasks if type(task.phase) is Erred]
    while stack:
        task = stack.pop()
        if task in erred or was_refused(task):
            continue
        erred[task] = None
        stack += [dependency for dependency in task.dependencies if type(dependency.phase) is Erred]
        stack += [dependent for dependent in task.dependents or () if type(dependent.phase) is Erred]
    for task in erred:
        move(state, task, RELEASED, "retried")
        if task.history is not None:
            task.history.failures = 0
            task.history.deaths.clear()
    for task in erred:
        if task.wanted:
            _begin_anew(state, task)
    release_unneeded(state, list(erred))


def was_refused(task: Task) -> bool:
    """Whether this erred task was refused, for want of an input."""
    phase = task.phase
    assert isinstance(phase, Erred)
    return phase.failure.kind == "refused" and phase.failure.blamed == task.key and not task.dependencies


def _begin_anew(state: State, task: Task) -> None:
    for peer in task.wanted:
        if peer > FIRE_AND_FORGET:
            state.send(peer, KeyPending(task.key))
    activate(state, task)


def want(state: State, task: Task, peer: PeerId) -> None:
    """Note that a client wants `task`. The caller activates it if it is released."""
    if peer not in task.wanted:
        task.wanted += (peer,)
    client = state.clients.get(peer)
    if client is not None:
        client.wants[task] = None


def hold(client: Client, task: Task) -> None:
    """Count that a client needs `task` for what it will send. The caller activates it if it is released."""
    count = client.holds.get(task, 0)
    if not count:
        task.wanted += (client.holder,)
    client.holds[task] = count + 1


def unhold(state: State, task: Task, client: Client) -> None:
    """A client has sent what needs `task`, for one of the times that it held it. The caller releases unneeded ones."""
    count = client.holds.get(task, 0)
    if count > 1:
        client.holds[task] = count - 1
    elif count:
        unwant(state, task, client.holder)


def unwant(state: State, task: Task, peer: PeerId) -> None:
    """Note that a client no longer wants `task`, or holds it. The caller releases it if it is unneeded."""
    task.wanted = (
        tuple(other for other in task.wanted if other != peer)
        if len(task.wanted) > 1
        else (() if task.wanted and task.wanted[0] == peer else task.wanted)
    )
    client = state.clients.get(PeerId(abs(peer)))
    if client is not None:
        (client.wants if peer > FIRE_AND_FORGET else client.holds).pop(task, None)
    elif peer == COORDINATION:
        state.coordinated.pop(task, None)


def notify_client(state: State, task: Task, peer: PeerId) -> None:
    """Tell a client that newly wants `task` its result or failure, if there is one."""
    phase = task.phase
    if type(phase) is InMemory:
        state.send(peer, KeyReady(task.key, phase.nbytes, phase.type_name, None, addresses_of(phase)))
    elif type(phase) is Erred:
        state.send(peer, key_failed(task, phase.failure))


def addresses_of(phase: InMemory) -> tuple[str, ...]:
    """Where a result can be fetched: from holders that are not away, if there are any."""
    holders = phase.holders
    if len(holders) > 1:
        here = tuple(holder.info.address for holder in holders if type(holder.phase) is not Away)
        if here:
            return here
    return tuple(holder.info.address for holder in holders)


def key_failed(task: Task, failure: Failure) -> KeyFailed:
    """The message that tells of a failure."""
    return KeyFailed(task.key, failure.blamed, failure.kind, failure.error, failure.text, failure.details)


def release_unneeded(state: State, tasks: list[Task]) -> None:
    """Release and forget the unneeded ones of `tasks`, and what becomes unneeded by that. Consumes the list."""
    while tasks:
        task = tasks.pop()
        if task.wanted or task.waiters:
            continue
        phase = task.phase
        if phase is FORGOTTEN:
            continue
        if type(phase) is InMemory:
            _free(state, task, phase)
            move(state, task, RELEASED, "no longer needed")
        elif type(phase) in _ACTIVE:
            if type(phase) is Processing:
                _cancel_run(state, task, phase)
            tasks += _stop_waiting(task)
            move(state, task, RELEASED, "no longer needed")
        if task.dependents:
            continue
        move(state, task, FORGOTTEN, "forgotten")
        del state.tasks[task.key]
        for dependency in task.dependencies:
            dependents = dependency.dependents
            if dependents is not None:
                dependents.pop(task, None)
                if not dependents:
                    tasks.append(dependency)
        if task.function is not None:
            unreference(state, task.function)
        for blob in task.blobs:
            unreference(state, blob)


def end_run(state: State, task: Task) -> None:
    """Remove the run of a processing task from its worker. The caller gives the task its next phase."""
    phase = task.phase
    assert isinstance(phase, Processing)
    worker = phase.worker
    processing = worker.processing
    del processing[phase.run]
    function = task.function
    if function is not None and function.guesses:
        function.guesses.pop(task, None)  # else a function that never succeeds would keep all its tasks
    worker.occupancy_s = worker.occupancy_s - phase.expected_s if processing else 0.0
    for name, amount in task.options.resources:
        # Reset when nothing runs there: sums of fractions drift.
        worker.available[name] = worker.available[name] + amount if processing else worker.info.resources[name]
    state.index.mark_dirty(worker)


_ACTIVE: Final = frozenset({Waiting, Queued, Processing})


def _stop_waiting(task: Task) -> list[Task]:
    """An active task stops being so; returns the inputs that this may leave unneeded."""
    unneeded: list[Task] = []
    for dependency in task.dependencies:
        dependency.waiters -= 1
        if not dependency.waiters and not dependency.wanted:
            unneeded.append(dependency)
    return unneeded


def input_ready(state: State, task: Task, worker: Worker) -> None:
    """A result is there: dependents that missed it miss one input less."""
    for dependent in task.dependents or ():
        phase = dependent.phase
        if type(phase) is Waiting:
            phase.missing -= 1
            if not phase.missing:
                state.ready.append(dependent)
            elif len(dependent.dependencies) <= CHAIN_FAN_IN:
                state.chain_candidates.append(dependent)
        elif type(phase) is Processing and phase.missing and phase.worker is worker:
            phase.missing -= 1


def _notify_ready(state: State, task: Task, value: bytes | None) -> None:
    phase = task.phase
    assert isinstance(phase, InMemory)
    addresses = () if value is not None else addresses_of(phase)
    message = KeyReady(task.key, phase.nbytes, phase.type_name, value, addresses)
    for peer in task.wanted:
        if peer == FIRE_AND_FORGET:
            task.wanted = tuple(other for other in task.wanted if other != FIRE_AND_FORGET)
        elif peer > FIRE_AND_FORGET:
            state.send(peer, message)


def _cancel_run(state: State, task: Task, phase: Processing) -> None:
    if phase.worker.peer in state.workers:
        state.send(phase.worker.peer, CancelRuns((phase.run,)))
    end_run(state, task)


def _withdraw_run(state: State, task: Task, why: str) -> None:
    """Take a run off its worker, and with it those that were assigned there ahead, to wait for its result."""
    phase = task.phase
    assert isinstance(phase, Processing)
    worker = phase.worker
    end_run(state, task)
    stack = [task]
    while stack:
        for dependent in stack.pop().dependents or ():
            below = dependent.phase
            if type(below) is Processing and below.missing and below.worker is worker:
                _cancel_run(state, dependent, below)
                _wait_again(state, dependent, why)
                stack.append(dependent)


def _wait_again(state: State, task: Task, why: str) -> None:
    """An active task starts over as waiting: what it misses is counted anew, and started if it is lost."""
    missing = 0
    failure: Failure | None = None
    lost: list[Task] = []
    for dependency in task.dependencies:
        phase = dependency.phase
        if isinstance(phase, InMemory):
            continue
        missing += 1
        if isinstance(phase, Erred):
            failure = phase.failure
        elif phase is RELEASED:
            lost.append(dependency)
    move(state, task, Waiting(missing), why)
    if failure is not None:
        fail(state, task, failure)
        return
    if not missing:
        state.ready.append(task)
    for dependency in lost:
        activate(state, dependency)


def _inputs_lost(state: State, task: Task, why: str) -> None:
    """A result is gone: dependents that had counted on it miss it again. Processing ones learn it from their worker."""
    for dependent in task.dependents or ():
        phase = dependent.phase
        if type(phase) is Waiting:
            phase.missing += 1
        elif type(phase) is Queued:
            move(state, dependent, Waiting(1), why)


def _free(state: State, task: Task, phase: InMemory) -> None:
    if task in state.copies:
        withdraw_copies(state, task)
    if task in state.actor_moves:
        withdraw_move(state, task)
    for holder in phase.holders:
        del holder.holds[task]
        holder.managed_bytes -= phase.nbytes
        if holder.phase is HERE:
            state.free(holder.peer, task.key)
        elif type(holder.phase) is not Away:
            state.free(holder.peer, task.key)
            state.index.mark_dirty(holder)


def _actor_lost(task: Task, why: str) -> Failure:
    return Failure(task.key, "actor", None, f"the actor {task.key!r} is lost, since it lived on one worker: {why}", {})


def _irrecoverable(task: Task) -> Failure:
    text = f"the data of {task.key!r} was scattered by a client and its last copy is gone; it cannot be computed again"
    return Failure(task.key, "lost", None, text, {})
