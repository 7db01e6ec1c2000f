"""Moving work to workers that have none: from the backlogs kept here, and, by retraction, from other workers' queues.

Nothing is moved by decree: a retracted run stays where it is until its worker has handed it back, so that a task never
runs twice because two messages crossed.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from trio_dask.ids import RunId
from trio_dask.protocol.messages import ReturnRuns
from trio_dask.scheduler.core.placement import assign, has_room, settle
from trio_dask.scheduler.core.state import InMemory, Processing, State, Task, Worker

__all__ = ["balance"]

WORTHWHILE_S: Final = 0.003
"""A queue that is worked off sooner than this is left alone: handing it over would take as long."""

LOOKED_AT: Final = 16
"""Loaded workers among which the most loaded is sought, and runs of one that are looked at for each that is taken."""


def balance(state: State) -> None:
    """Give idle workers something of what others have too much of."""
    if not state.idle:
        state.balance_at = float("inf")
        return
    for thief in list(islice(state.idle, LOOKED_AT)):
        if not _from_backlogs(state, thief) and not _from_queues(state, thief):
            break
    due = state.idle and state.surplus
    state.balance_at = state.now + state.settings.balance_interval_s if due else float("inf")


def _from_backlogs(state: State, thief: Worker) -> bool:
    taken = False
    for victim in list(islice(state.surplus, LOOKED_AT)):
        backlog = victim.backlog
        while len(thief.processing) < thief.slots and (task := backlog.first()) is not None:
            wait_s = victim.occupancy_s / victim.slots if victim.slots else float("inf")
            if _moving_s(state, task, thief) > wait_s:
                break
            backlog.take()
            assign(state, task, thief, 0)
            taken = True
        if not has_room(state, thief) or len(thief.processing) >= thief.slots:
            break
    if taken:
        settle(state, thief)
    return taken


def _from_queues(state: State, thief: Worker) -> bool:
    victim: Worker | None = None
    for worker in islice(state.surplus, LOOKED_AT):
        if victim is None or worker.occupancy_s * victim.slots > victim.occupancy_s * worker.slots:
            victim = worker
    if victim is None:
        return False
    count = len(victim.processing)
    surplus = count - victim.slots
    if surplus <= 0 or victim.occupancy_s * surplus / count < WORTHWHILE_S:
        return False
    wanted = max(1, min(surplus, surplus * thief.slots // (thief.slots + victim.slots)))
    runs: list[RunId] = []
    for run in islice(reversed(victim.processing), surplus + LOOKED_AT):
        task = victim.processing[run]
        phase = task.phase
        assert isinstance(phase, Processing)
        if phase.retracting:
            wanted -= 1
        elif not phase.missing and not phase.started and _may_move(task, thief):
            phase.retracting = True
            runs.append(run)
            wanted -= 1
        if wanted <= 0:
            break
    if runs:
        state.send(victim.peer, ReturnRuns(tuple(runs)))
    return bool(runs)


def _may_move(task: Task, thief: Worker) -> bool:
    terms = task.terms
    if terms.workers or terms.resources:
        return any(
            queue.terms.workers == terms.workers and queue.terms.resources == terms.resources for queue in thief.queues
        )
    for dependent in task.dependents or ():
        phase = dependent.phase
        if type(phase) is Processing and phase.missing:
            return False
    return True


def _moving_s(state: State, task: Task, thief: Worker) -> float:
    size = 0
    for dependency in task.dependencies[:LOOKED_AT]:
        phase = dependency.phase
        if type(phase) is InMemory and thief not in phase.holders:
            size += phase.nbytes
    return state.settings.latency_s + size / state.settings.bandwidth_bytes_per_s
