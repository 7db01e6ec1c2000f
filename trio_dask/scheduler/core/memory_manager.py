"""The active memory manager: drops replicas of results that nothing needs where they are.

Each task that needs a result on another worker leaves a replica there. While the manager is on, the results with
several are gathered as their copies arrive, and looked at after each interval; nothing is done while there are none.
"""

from __future__ import annotations

from trio_dask.errors import ProtocolError
from trio_dask.protocol.messages import ManageMemory, Reply
from trio_dask.scheduler.core.copies import MOVED, READ_AT_ONCE, SURPLUS_GAP_S, drop, has_spare, is_needed_at
from trio_dask.scheduler.core.copy_records import NEVER, MemoryManager
from trio_dask.scheduler.core.state import Client, State, Task, Worker
from trio_dask.scheduler.core.task_states import InMemory
from trio_dask.scheduler.core.worker_states import HERE


def manage(state: State, client: Client, message: ManageMemory) -> None:
    """A client switches the manager on or off, has it work once, or asks whether it is on.

    Raises `ProtocolError` for anything else.
    """
    match message.action:
        case "start":
            start(state)
        case "stop":
            state.manager = None
        case "run_once":
            _reduce(state, _replicated(state), NEVER)
        case "running":
            pass
        case _:
            raise ProtocolError(f"a memory manager cannot {message.action!r:.60}")
    state.send(client.peer, Reply(message.request, state.manager is not None))


def start(state: State) -> None:
    """Switch the manager on, if it is off."""
    if state.manager is None:
        state.manager = MemoryManager(max(state.settings.memory_manager_interval_s, SURPLUS_GAP_S))
        for task in _replicated(state):
            state.manager.note(task, state.now)


def run(state: State) -> None:
    """The interval is over: look at what has been copied."""
    manager = state.manager
    if manager is None:
        return
    again = _reduce(state, list(manager.replicated), READ_AT_ONCE)
    if again is None:
        manager.replicated = {task: None for task in manager.replicated if len(_holders(task)) > 1}
        manager.due_at = state.now + manager.interval_s if manager.replicated else NEVER
        return
    for task in list(manager.replicated)[:again]:  # behind the others, which have their turn first
        del manager.replicated[task]
        if len(_holders(task)) > 1:
            manager.replicated[task] = None
    manager.due_at = state.now + SURPLUS_GAP_S


def surplus(state: State, task: Task) -> list[Worker]:
    """The workers that need not hold this result: those with the most bytes first.

    As many replicas are kept as `replicate` or `scatter(broadcast=...)` asked for, and as many as there are tasks that
    still wait for the result; also those that tasks or copies may be reading.
    """
    phase = task.phase
    if not isinstance(phase, InMemory) or task.options.actor:
        return []
    count = len(phase.holders) - max(phase.replicas, task.waiters, 1)
    if count <= 0:
        return []
    ranked = sorted(phase.holders, key=lambda worker: (worker.phase is HERE, -worker.managed_bytes))
    return [worker for worker in ranked if not is_needed_at(state, task, phase, worker)][:count]


def _reduce(state: State, tasks: list[Task], most_read: float) -> int | None:
    """Drop what is surplus of these results; returns how many of them it looked at, if there was no time for all."""
    read = 0
    for number, task in enumerate(tasks):
        if read > most_read:
            return number
        read += 1 + len(task.dependents or ())
        for worker in surplus(state, task):
            if isinstance(task.phase, InMemory) and has_spare(task.phase, worker):
                drop(state, task, worker, MOVED)
    return None


def _replicated(state: State) -> list[Task]:
    return [task for task in state.tasks.values() if len(_holders(task)) > 1]


def _holders(task: Task) -> tuple[Worker, ...]:
    return task.phase.holders if isinstance(task.phase, InMemory) else ()
