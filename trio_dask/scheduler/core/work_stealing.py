"""Move work to idle workers: from the backlogs kept here, and, by asking for it back, from the queues of busy workers.

A run that the scheduler asks back stays where it is until its worker has handed it back, so no task runs twice because
two messages crossed.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from trio_dask.ids import RunId
from trio_dask.protocol.messages import ReturnRuns
from trio_dask.scheduler.core.placement import assign
from trio_dask.scheduler.core.state import State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory, Processing

WORTHWHILE_S: Final = 0.003
"""A queue with less work than this is left alone: moving it would take as long."""

EXAMINED: Final = 16
"""Overloaded workers that are compared, and runs of one worker that are passed over at most."""


def balance(state: State) -> None:
    """Give idle workers some of the work of overloaded ones."""
    if not state.index.idle:
        state.balance_at = float("inf")
        return
    for thief in list(islice(state.index.idle, EXAMINED)):
        if not _from_backlogs(state, thief) and not _from_queues(state, thief):
            break
    due = state.index.idle and state.index.overloaded
    state.balance_at = state.now + state.settings.balance_interval_s if due else float("inf")


def _from_backlogs(state: State, thief: Worker) -> bool:
    taken = False
    for victim in list(islice(state.index.overloaded, EXAMINED)):
        backlog = victim.backlog
        while len(thief.processing) < thief.slots and (task := backlog.first()) is not None:
            wait_s = victim.occupancy_s / victim.slots if victim.slots else float("inf")
            if _moving_s(state, task, thief) > wait_s:
                break
            backlog.take()
            assign(state, task, thief, 0)
            taken = True
        taken = _from_queues_of(state, victim, thief) or taken
        if not state.index.has_room(thief) or len(thief.processing) >= thief.slots:
            break
    if taken:
        state.index.update(thief)
    return taken


def _from_queues_of(state: State, victim: Worker, thief: Worker) -> bool:
    """Take tasks that wait for the victim by name, and may run on other workers as well."""
    taken = False
    for queue in islice(victim.queues, EXAMINED):
        while len(thief.processing) < thief.slots and (task := queue.tasks.first()) is not None:
            options = task.options
            if not options.allow_other_workers or options.resources:
                break
            if _moving_s(state, task, thief) > victim.occupancy_s / max(victim.slots, 1):
                break
            queue.tasks.take()
            assign(state, task, thief, 0)
            taken = True
    return taken


def _from_queues(state: State, thief: Worker) -> bool:
    victim: Worker | None = None
    for worker in islice(state.index.overloaded, EXAMINED):
        if victim is None or worker.occupancy_s * victim.slots > victim.occupancy_s * worker.slots:
            victim = worker
    if victim is None:
        return False
    count = len(victim.processing)
    excess = count - victim.slots
    if excess <= 0 or victim.occupancy_s * excess / count < WORTHWHILE_S:
        return False
    wanted = max(1, min(excess, excess * thief.slots // (thief.slots + victim.slots)))
    runs: list[RunId] = []
    for run in islice(reversed(victim.processing), excess + EXAMINED):
        task = victim.processing[run]
        phase = task.phase
        assert isinstance(phase, Processing)
        if phase.retracting:
            wanted -= 1
        elif not phase.missing and phase.started_at is None and _may_move(task, thief):
            phase.retracting = True
            runs.append(run)
            wanted -= 1
        if wanted <= 0:
            break
    if runs:
        state.send(victim.peer, ReturnRuns(tuple(runs)))
    return bool(runs)


def _may_move(task: Task, thief: Worker) -> bool:
    options = task.options
    if options.workers or options.resources:
        return any(
            queue.options.workers == options.workers and queue.options.resources == options.resources
            for queue in thief.queues
        )
    for dependent in task.dependents or ():
        phase = dependent.phase
        if type(phase) is Processing and phase.missing:
            return False
    return True


def _moving_s(state: State, task: Task, thief: Worker) -> float:
    size = 0
    for dependency in task.dependencies[:EXAMINED]:
        phase = dependency.phase
        if type(phase) is InMemory and thief not in phase.holders:
            size += phase.nbytes
    return state.settings.latency_s + size / state.settings.bandwidth_bytes_per_s
