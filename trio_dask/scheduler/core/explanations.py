"""Why a task is not done, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trio_dask.ids import Key
from trio_dask.parsing import counted
from trio_dask.scheduler.core.state import State, Task, Worker
from trio_dask.scheduler.core.stuck_tasks import reason_of
from trio_dask.scheduler.core.task_states import Erred, InMemory, Processing, Queued, Waiting
from trio_dask.scheduler.core.worker_states import Away

DEEPEST: Final = 10_000
"""Of a chain of inputs that are not there."""


def explain(state: State, keys: tuple[Key, ...]) -> str:
    """The sentence for the first of these keys."""
    task = state.tasks.get(keys[0]) if keys else None
    if task is None:
        return "the scheduler does not know it: it was released, or never submitted"
    if not _misses_inputs(task):
        return f"{_in_span(task)}{_doing(state, task)}"
    missing = len(_missing(task))
    others = f", and for {counted(missing - 1, 'other task')}" if missing > 1 else ""
    root, seen = task, 0
    while _misses_inputs(root) and seen < DEEPEST:
        root, seen = _missing(root)[0], seen + 1
    return f"{_in_span(task)}waits for {root.key}, which {_doing(state, root)}{others}"


def _in_span(task: Task) -> str:
    return f"(in {' / '.join(task.options.span)}) " if task.options.span else ""


def _misses_inputs(task: Task) -> bool:
    phase = task.phase
    return isinstance(phase, Waiting | Processing) and phase.missing > 0 and bool(_missing(task))


def _missing(task: Task) -> list[Task]:
    """The inputs of a task that are not there; those that run come first."""
    found = [needed for needed in task.dependencies if not isinstance(needed.phase, InMemory)]
    return sorted(found, key=lambda needed: not isinstance(needed.phase, Processing))


def _doing(state: State, task: Task) -> str:
    """What becomes of a task now, as what comes after its name."""
    match task.phase:
        case Processing() as phase:
            return _processing(state, task, phase)
        case Queued() as phase if not phase.queue.eligible:
            return f"waits for a worker: {reason_of(state, phase.queue.options)}"
        case Queued() as phase:
            busy = sum(len(worker.processing) for worker in phase.queue.eligible)
            open_workers = [worker for worker in phase.queue.eligible if worker.slots]
            if not open_workers:
                return "waits for a worker: all that could run it are paused, leaving, or away"
            return f"is ready, and waits for room: {counted(busy, 'task')} on {counted(len(open_workers), 'worker')}"
        case InMemory() as phase:
            return f"is done, {phase.nbytes} bytes on {_workers(phase.holders)}"
        case Erred() as phase:
            blamed = phase.failure.blamed
            because = "" if blamed == task.key else f" because {blamed} has failed"
            return f"has failed{because}: {phase.failure.text.strip().partition(chr(10))[0]}"
        case Waiting():
            return "waits for its inputs"
        case _:
            return "is not asked for"


def _workers(holders: Sequence[Worker]) -> str:
    titles = [holder.info.title for holder in holders[:3]]
    return f"{'worker' if len(titles) == 1 else 'workers'} {' and '.join(titles)}"


def _processing(state: State, task: Task, phase: Processing) -> str:
    title = f"worker {phase.worker.info.title}"
    usual = None if task.function is None else task.function.expected_s
    usually = "" if usual is None else f"; usually {_seconds(usual)}"
    if type(phase.worker.phase) is Away:
        return f"was running on {title}, which has lost its connection a moment ago"
    if phase.started_at is not None:
        return f"has been running for {_seconds(state.now - phase.started_at)} on {title}{usually}"
    ahead = len(phase.worker.processing) - 1
    behind = f", with {counted(ahead, 'other task')}" if ahead > 0 else ""
    return f"is assigned to {title}{behind}{usually}"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{max(seconds, 0.0) * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
