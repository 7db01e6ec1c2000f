"""Answers to questions about the cluster, as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from operator import attrgetter
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import name_of
from trio_dask.scheduler.core.dump import dump, dump_tasks
from trio_dask.scheduler.core.explanations import explain
from trio_dask.scheduler.core.metadata import get_metadata, task_mark, tasks_since
from trio_dask.scheduler.core.state import State, Task, Worker
from trio_dask.scheduler.core.task_states import Erred, InMemory, Processing
from trio_dask.scheduler.core.topic_handlers import events
from trio_dask.scheduler.core.worker_states import Away


def answer(state: State, what: str, arguments: tuple[str, ...]) -> Any:
    """The answer to a `Query`.

    Raises `ProtocolError` for a question that is not known.
    """
    question = _QUESTIONS.get(what)
    if question is None:
        raise ProtocolError(f"no such question: {what!r}")
    return question(state, arguments)


def _tasks(state: State, keys: tuple[str, ...]) -> list[Task]:
    if not keys:
        return list(state.tasks.values())
    return [task for key in keys if (task := state.tasks.get(key)) is not None]


def workers_named(state: State, names: tuple[str, ...]) -> list[Worker]:
    """The workers with these names or addresses; all of them if there are no names."""
    if not names:
        return list(state.workers.values())
    wanted = dict.fromkeys(names)
    return [worker for worker in state.workers.values() if worker.info.name in wanted or worker.info.address in wanted]


def _who_has(state: State, keys: tuple[str, ...]) -> dict[str, list[str]]:
    holders: dict[str, list[str]] = {key: [] for key in keys}
    for task in _tasks(state, keys):
        if isinstance(task.phase, InMemory):
            holders[task.key] = [worker.info.address for worker in task.phase.holders]
    return holders


def _actor_home(state: State, keys: tuple[str, ...]) -> str:
    """The address of the worker on which this actor lives; empty if it lives nowhere."""
    for task in _tasks(state, keys[:1]):
        if task.options.actor and isinstance(task.phase, InMemory):
            return task.phase.holders[0].info.address
    return ""


def _has_what(state: State, names: tuple[str, ...]) -> dict[str, list[str]]:
    return {worker.info.address: [task.key for task in worker.holds] for worker in workers_named(state, names)}


def _processing(state: State, names: tuple[str, ...]) -> dict[str, list[str]]:
    return {
        worker.info.address: [task.key for task in worker.processing.values()] for worker in workers_named(state, names)
    }


def _nbytes(state: State, keys: tuple[str, ...]) -> dict[str, int]:
    return {task.key: task.phase.nbytes for task in _tasks(state, keys) if isinstance(task.phase, InMemory)}


def _nthreads(state: State, names: tuple[str, ...]) -> dict[str, int]:
    return {worker.info.address: worker.info.nthreads for worker in workers_named(state, names)}


def _scheduler_info(state: State, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "type": "Scheduler",
        "workers": {
            worker.info.address: {
                "type": "Worker",
                "id": worker.info.incarnation,
                "slots": worker.slots,
                "resources": dict(worker.info.resources),
                "managed_bytes": worker.managed_bytes,
                "nanny": bool(worker.info.process),
                "nanny_address": worker.info.nanny,
                **_describe(worker),
            }
            for worker in workers_named(state, names)
        },
        "clients": [client.name for client in state.clients.values()],
        "tasks": len(state.tasks),
    }


def _story(state: State, keys: tuple[str, ...]) -> list[tuple[float, str, str]]:
    wanted = dict.fromkeys(keys)
    return [step for step in state.story if not keys or step[1] in wanted]


def _call(state: State, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """What a worker gets to run this task; None if there is no such task, or it has no call."""
    task = state.tasks.get(keys[0]) if keys else None
    if task is None or task.function is None:
        return None
    return {
        "function": task.function.digest,
        "call": task.call,
        "dependencies": [needed.key for needed in task.dependencies],
        "blobs": [(blob.digest, b"".join(blob.pieces)) for blob in (task.function, *task.blobs)],
    }


MOST_COUNTED: Final = 20_000


def _remaining(state: State, keys: tuple[str, ...]) -> dict[str, int] | None:
    """How many tasks have to be computed for these, by name of the function; None if they are too many to count."""
    left = _remaining_keys(state, keys)
    return None if left is None else dict(Counter(map(name_of, left)))


def _remaining_spans(state: State, keys: tuple[str, ...]) -> dict[str, int] | None:
    """The same by span: the names of its parts; by name of the function where there is none."""
    left = _remaining_keys(state, keys)
    if left is None:
        return None
    return dict(Counter("/".join(state.tasks[key].options.span) or name_of(key) for key in left))


def _remaining_keys(state: State, keys: tuple[str, ...]) -> list[str] | None:
    """The tasks that have to be computed for these; None if they are too many."""
    seen: set[Task] = set()
    left: list[str] = []
    stack = [task for key in keys if (task := state.tasks.get(key)) is not None]
    while stack:
        task = stack.pop()
        if task not in seen and not isinstance(task.phase, InMemory | Erred):
            seen.add(task)
            left.append(task.key)
            if len(left) > MOST_COUNTED:
                return None
            stack += task.dependencies
    return left


# ------------------------------------------------------------------------------------------------ for an overview


STATES: Final = ("waiting", "queued", "no-worker", "processing", "memory", "erred", "released")
"""Of the tasks that the scheduler knows, in the order in which people read them."""

WORKERS_AT_ONCE: Final = 20
TASKS_AT_ONCE: Final = 20_000
"""Each of these takes about 2 ms."""


def overview(state: State, clock: Callable[[], float]) -> Generator[None, None, dict[str, Any]]:
    """The workers, how many tasks are in each state, and which task has been running for longest.

    It reads every task and every run, and pauses now and then for the scheduler to do other work, so its parts may be
    some moments apart. Counters would cost more, since each step of each task would have to move them.
    """
    tasks = list(state.tasks.values())
    counts: Counter[str] = Counter()
    for start in range(0, len(tasks), TASKS_AT_ONCE):
        counts += Counter(map(attrgetter("phase.state"), tasks[start : start + TASKS_AT_ONCE]))
        yield
    workers = list(state.workers.values())
    oldest: dict[str, Any] | None = None
    for start in range(0, len(workers), WORKERS_AT_ONCE):
        run = _oldest_run(workers[start : start + WORKERS_AT_ONCE], clock())
        if run is not None and (oldest is None or run["seconds"] > oldest["seconds"]):
            oldest = run
        yield
    return {
        "workers": [
            {
                "address": worker.info.address,
                "title": worker.info.title,
                "status": _status(worker),
                **_describe(worker),
            }
            for worker in (*state.workers.values(), *state.away)
        ],
        "clients": [client.name for client in state.clients.values()],
        "tasks": {name: counts[name] for name in STATES},
        "oldest": oldest,
    }


def _describe(worker: Worker) -> dict[str, Any]:
    info = worker.info
    return {
        "name": info.name,
        "host": info.host,
        "pid": info.pid,
        "nthreads": info.nthreads,
        "memory_limit": info.memory_limit,
        "processing": len(worker.processing),
        "in_memory": len(worker.holds),
        "metrics": dict(worker.last_metrics),
    }


def _status(worker: Worker) -> str:
    if type(worker.phase) is Away:
        return "away"
    if worker.phase.retirement is not None:
        return "leaving"
    return "paused" if worker.last_metrics.get("paused") else "running"


def _oldest_run(workers: Iterable[Worker], now: float) -> dict[str, Any] | None:
    """The task that has run for longest on these workers, among those whose start was reported."""
    found: tuple[float, Task, Worker] | None = None
    for worker in workers:
        for task in worker.processing.values():
            phase = task.phase
            started_at = phase.started_at if type(phase) is Processing else None
            if started_at is not None and (found is None or started_at < found[0]):
                found = (started_at, task, worker)
    if found is None:
        return None
    started_at, task, worker = found
    return {"key": task.key, "worker": worker.info.title, "seconds": max(0.0, now - started_at)}


def _fence(state: State, arguments: tuple[str, ...]) -> None:
    """The answer means only that all that was sent before it has arrived."""


_QUESTIONS: Final[dict[str, Callable[[State, tuple[str, ...]], Any]]] = {
    "who_has": _who_has,
    "actor_home": _actor_home,
    "has_what": _has_what,
    "processing": _processing,
    "nbytes": _nbytes,
    "nthreads": _nthreads,
    "scheduler_info": _scheduler_info,
    "story": _story,
    "fence": _fence,
    "call": _call,
    "metadata": get_metadata,
    "task_mark": task_mark,
    "tasks_since": tasks_since,
    "remaining": _remaining,
    "remaining_keys": _remaining_keys,
    "remaining_spans": _remaining_spans,
    "events": events,
    "explain": explain,
    "dump": dump,
    "dump_tasks": dump_tasks,
}
