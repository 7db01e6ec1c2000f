"""What happens at each step of a task, if anything: it is held against the table, and noted for those who listen."""

from __future__ import annotations

from collections.abc import Container

from trio_dask.scheduler.core.events import TaskMoved
from trio_dask.scheduler.core.state import State, Task
from trio_dask.scheduler.core.task_states import Phase, Processing


def watch(state: State, task: Task, phase: Phase, why: str, allowed: Container[tuple[str, str]]) -> None:
    """A task is about to enter this phase. Call it if `state.watches_tasks`."""
    before = task.phase
    start, finish = before.state, phase.state
    if state.validating and (start, finish) not in allowed:
        raise AssertionError(f"no transition {start} -> {finish} ({why}) for {task.key}")
    if state.events is not None and state.hears_tasks:
        run = phase if isinstance(phase, Processing) else before
        worker = run.worker.info.address if isinstance(run, Processing) else ""
        state.events.note(TaskMoved(state.now, task.key, start, finish, why, worker))
