"""All that the scheduler knows, as plain values, for a client that writes it into a file.

The tasks come in pages, each of which takes some milliseconds; so they may be some moments apart.
"""

from __future__ import annotations

import math
import struct
from itertools import islice
from typing import Any, Final

from trio_dask.errors import ProtocolError
from trio_dask.ids import Key
from trio_dask.scheduler.core.state import DEFAULT_OPTIONS, Client, Queue, State, Task, TaskOptions, Worker
from trio_dask.scheduler.core.task_states import Erred, InMemory, Processing, Waiting

PAGE_BYTES: Final = 2**20
TASK_BYTES: Final = 600
NAME_BYTES: Final = 10
MOST_NAMED: Final = 10_000
"""Of the dependencies of a task, and of what else a row lists."""


def dump(state: State, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Everything but the tasks, and the story."""
    return {
        "type": "Scheduler",
        "incarnation": state.incarnation,
        "time": state.now + state.settings.unix_offset_s,
        "settings": state.settings._asdict(),
        "workers": {worker.info.address: _worker(state, worker) for worker in (*state.workers.values(), *state.away)},
        "clients": {client.incarnation: _client(client) for client in state.clients.values()},
        "queues": [_queue(queue) for queue in (state.queue, *state.queues.values()) if len(queue.tasks)],
        "plugins": [{"id": plugin.id, "kind": plugin.kind, "name": plugin.name} for plugin in state.plugins.values()],
        "task_count": len(state.tasks),
    }


def dump_tasks(state: State, arguments: tuple[str, ...]) -> tuple[int, dict[Key, dict[str, Any]]]:
    """A page of the tasks from a number on, and the number from which to ask for the next one; 0 after the last.

    Raises `ProtocolError` for what is no number.
    """
    if len(arguments) != 1 or not arguments[0].isdecimal():
        raise ProtocolError(f"dump_tasks takes a number, not {arguments!r:.60}")
    number, nbytes = int(arguments[0]), 0
    rows: dict[Key, dict[str, Any]] = {}
    for task in islice(state.tasks.values(), number, None):
        if nbytes > PAGE_BYTES:
            return number, rows
        rows[task.key] = _task(state, task)
        nbytes += TASK_BYTES + sum(len(key) + NAME_BYTES for key in rows[task.key]["dependencies"])
        number += 1
    return 0, rows


def _worker(state: State, worker: Worker) -> dict[str, Any]:
    info, retirement = worker.info, worker.phase.retirement
    return {
        **info._asdict(),
        "resources": dict(info.resources),
        "metrics": dict(worker.last_metrics),
        "phase": worker.phase.name,
        "retirement": None if retirement is None else retirement.reason,
        "slots": worker.slots,
        "capacity": worker.capacity,
        "processing": len(worker.processing),
        "in_memory": len(worker.holds),
        "managed_bytes": worker.managed_bytes,
        "occupancy_s": worker.occupancy_s,
        "available": dict(worker.available),
        "setting_up": list(worker.setting_up),
        "silent_s": max(0.0, state.now - worker.heard_at),
    }


def _client(client: Client) -> dict[str, Any]:
    return {
        "name": client.name,
        "away": client.away is not None,
        "grace_s": client.grace_s,
        "worker": None if client.worker is None else client.worker.info.address,
        "wants": len(client.wants),
        "holds": len(client.holds),
        "blobs": len(client.blobs),
        "unconfirmed": client.sent - client.confirmed,
    }


def _queue(queue: Queue) -> dict[str, Any]:
    eligible = [worker.info.address for worker in islice(queue.eligible, MOST_NAMED)]
    return {"options": _options(queue.options), "tasks": len(queue.tasks), "eligible": eligible}


def _options(options: TaskOptions) -> dict[str, Any]:
    """Those that differ from the defaults."""
    given = {name: value for name, value in options._asdict().items() if value != getattr(DEFAULT_OPTIONS, name)}
    if options.resources:
        given["resources"] = dict(options.resources)
    if options.priority:
        given["priority"] = math.copysign(
            struct.unpack("<d", struct.pack("<q", abs(options.priority)))[0], options.priority
        )
    return given


def _task(state: State, task: Task) -> dict[str, Any]:
    row: dict[str, Any] = {
        "state": task.phase.state,
        "function": None if task.function is None else task.function.digest.hex(),
        "usual_s": None if task.function is None else task.function.expected_s,
        "submission": task.submission,
        "options": _options(task.options),
        "clients": [client.incarnation for peer in task.wanted if (client := state.clients.get(peer)) is not None],
        "dependencies": [needed.key for needed in task.dependencies[:MOST_NAMED]],
        "dependents": len(task.dependents or ()),
        "call_bytes": len(task.call),
    }
    match task.phase:
        case Waiting(missing):
            row["missing"] = missing
        case Processing() as phase:
            row |= {
                "worker": phase.worker.info.address,
                "run": phase.run,
                "missing": phase.missing,
                "expected_s": phase.expected_s,
                "running_s": None if phase.started_at is None else state.now - phase.started_at,
            }
        case InMemory() as phase:
            row |= {
                "holders": [holder.info.address for holder in phase.holders[:MOST_NAMED]],
                "nbytes": phase.nbytes,
                "type": phase.type_name,
            }
        case Erred(failure):
            row |= {"blamed": failure.blamed, "kind": failure.kind, "text": failure.text}
        case _:
            pass
    if task.history is not None:
        history = task.history
        row |= {"attempts": history.attempts, "failures": history.failures, "deaths": list(history.deaths)}
    return row
