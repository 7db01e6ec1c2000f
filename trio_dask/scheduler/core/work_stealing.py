"""Move work to idle workers: from the backlogs kept here, and, by asking for it back, from the queues of busy workers.

A task moves if the time that it would wait where it is exceeds the time that its inputs take to the idle worker (see
`estimates`). That holds for each way in which it may be waiting.

A run that the scheduler asks back stays where it is until its worker has handed it back, so no task runs twice because
two messages crossed. Then it goes to the worker for which it was asked back; placed anew, it might return to where it
was, and be asked back again.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from trio_dask.ids import RunId
from trio_dask.protocol.messages import ReturnRuns
from trio_dask.scheduler.core.estimates import correct_overruns, expected_s, moving_s, waiting_s
from trio_dask.scheduler.core.placement import assign, block_on_return, has_resources, queue_for
from trio_dask.scheduler.core.state import DEFAULT_OPTIONS, Queue, State, Task, Worker
from trio_dask.scheduler.core.task_states import Processing, Retraction, Waiting
from trio_dask.scheduler.core.worker_states import HERE

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


def balance_again(state: State) -> None:
    """The same some time later: meanwhile calls may have taken longer than expected."""
    for worker in islice(state.index.overloaded, EXAMINED):
        correct_overruns(state, worker)
    balance(state)


def hand_over(state: State, task: Task, thief: Worker) -> None:
    """Give a task that was asked back to the worker for which it was. If that is busy by now, it is placed anew."""
    phase = task.phase
    if type(phase) is not Waiting or phase.missing or thief.phase is not HERE or not state.index.has_room(thief):
        return
    if _is_allowed(state, task, thief) and not (state.away and block_on_return(state, task)):
        assign(state, task, thief, 0)
        state.index.update(thief)


def _from_backlogs(state: State, thief: Worker) -> bool:
    taken = False
    for victim in list(islice(state.index.overloaded, EXAMINED)):
        backlog = victim.backlog
        while _wants_more(state, thief) and (task := backlog.first()) is not None:
            if moving_s(state, task, thief) > waiting_s(victim) - expected_s(task) / max(victim.slots, 1):
                break
            backlog.take()
            assign(state, task, thief, 0)
            taken = True
        taken = _from_queues_of(state, victim, thief) or taken
        if not _wants_more(state, thief):
            break
    if taken:
        state.index.update(thief)
    return taken


def _wants_more(state: State, thief: Worker) -> bool:
    """Whether a worker has a free slot, or so little to do that it would have one again soon."""
    slots = thief.slots
    if len(thief.processing) < slots:
        return True
    return thief.occupancy_s < state.settings.ahead_s * slots and state.index.has_room(thief)


def _from_queues_of(state: State, victim: Worker, thief: Worker) -> bool:
    """Take tasks that wait for the victim by name, and may run on other workers as well."""
    taken = False
    for queue in islice(victim.queues, EXAMINED):
        while _wants_more(state, thief) and (task := queue.tasks.first()) is not None:
            options = task.options
            if not options.allow_other_workers or options.resources:
                break
            if moving_s(state, task, thief) > _queue_s(queue, task, victim):
                break
            queue.tasks.take()
            assign(state, task, thief, 0)
            taken = True
    return taken


def _queue_s(queue: Queue, task: Task, victim: Worker) -> float:
    """How long the last task of a queue waits for the workers that are preferred, if all are like this one."""
    if not victim.slots:
        return float("inf")
    return (victim.occupancy_s + (len(queue.tasks) - 1) * expected_s(task) / len(queue.eligible)) / victim.slots


def _from_queues(state: State, thief: Worker) -> bool:
    victim: Worker | None = None
    for worker in islice(state.index.overloaded, EXAMINED):
        if victim is None or worker.occupancy_s * victim.slots > victim.occupancy_s * worker.slots:
            victim = worker
    if victim is None:
        return False
    count = len(victim.processing)
    slots = victim.slots
    excess = count - slots
    if excess <= 0 or victim.occupancy_s * excess / count < WORTHWHILE_S:
        return False
    wanted = max(1, min(excess, excess * thief.slots // (thief.slots + slots)))
    refusals = EXAMINED
    latency_s = state.settings.latency_s
    before_s = victim.occupancy_s
    retraction = Retraction(thief)
    runs: list[RunId] = []
    for run in islice(reversed(victim.processing), excess + EXAMINED):
        task = victim.processing[run]
        phase = task.phase
        assert isinstance(phase, Processing)
        before_s -= phase.expected_s
        if phase.retraction is not None:
            wanted -= 1
        elif not phase.missing and phase.started_at is None and not (task.dependents and _is_awaited(task)):
            # Of short tasks there are many: what nearly all of them have in common costs no call.
            fetch_s = moving_s(state, task, thief) if task.dependencies else latency_s
            if slots and fetch_s > before_s / slots:
                refusals -= 1
            elif task.options is DEFAULT_OPTIONS or _is_allowed(state, task, thief):
                phase.retraction = retraction
                runs.append(run)
                wanted -= 1
        if wanted <= 0 or refusals <= 0:
            break
    if runs:
        state.send(victim.peer, ReturnRuns(tuple(runs)))
    return bool(runs)


def _is_awaited(task: Task) -> bool:
    """Whether a run that was assigned ahead waits for this one, on the same worker."""
    for dependent in task.dependents or ():
        phase = dependent.phase
        if type(phase) is Processing and phase.missing:
            return True
    return False


def _is_allowed(state: State, task: Task, worker: Worker) -> bool:
    """Whether a worker meets the demands of a task, and has what it requires now."""
    options = task.options
    if not options.resources and (not options.workers or options.allow_other_workers):
        return True
    return worker in queue_for(state, options).eligible and has_resources(worker, options)
