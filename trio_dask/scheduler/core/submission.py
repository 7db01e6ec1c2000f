"""Add the tasks that a client submits."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard, cast

from trio_dask.errors import ProtocolError
from trio_dask.ids import Key
from trio_dask.protocol.messages import KeyFailed, Submit
from trio_dask.protocol.wire_constants import PRIORITY_BITS
from trio_dask.scheduler.core.blobs import complete_blob
from trio_dask.scheduler.core.state import DEFAULT_OPTIONS, Client, State, Task, TaskOptions
from trio_dask.scheduler.core.stuck_tasks import recheck_soon
from trio_dask.scheduler.core.task_states import RELEASED, Failure
from trio_dask.scheduler.core.task_transitions import activate, fail, notify_client, want


def submit(state: State, client: Client, message: Submit) -> None:
    """Add tasks, and start those that are needed.

    Raises `ProtocolError`, before anything has changed, when the message does not fit together.
    """
    _, keys, calls, rows, digests_of_each, tokens, extra = message
    count = len(keys)
    if not len(calls) == len(rows or calls) == len(digests_of_each or calls) == len(tokens or calls) == count:
        raise ProtocolError(
            f"Submit has {count} keys, {len(calls)} calls, {len(rows)} dependencies, {len(digests_of_each)} blobs and "
            f"{len(tokens)} tokens"
        )
    function = complete_blob(state, message.function)
    blobs = [tuple(complete_blob(state, digest) for digest in digests) for digests in digests_of_each]
    options = _options(extra) if extra else DEFAULT_OPTIONS
    tasks = state.tasks
    no_priority = -options.priority << PRIORITY_BITS
    needed: list[Task] = []
    self_tuple = client.self_tuple
    wants = client.wants
    for index, key in enumerate(keys):
        task = tasks.get(key)
        if task is not None:
            _share(state, client, task, tokens[index] if tokens else b"")
            continue
        state.last_submission += 1
        task = tasks[key] = Task(key, no_priority + state.last_submission, function, calls[index], options, ())
        function.references += 1
        if blobs and blobs[index]:
            task.blobs = blobs[index]
            for blob in task.blobs:
                blob.references += 1
        if tokens:
            task.token = tokens[index]
        task.wanted = self_tuple
        wants[task] = None
        needed.append(task)
        if rows and rows[index]:
            _connect(state, task, rows[index])
    for task in needed:
        if task.phase is RELEASED:
            activate(state, task)
    recheck_soon(state)


def _share(state: State, client: Client, task: Task, token: bytes) -> None:
    """A client submits a key that is known: the same task, unless its token says otherwise."""
    if task.token != token:
        text = (
            f"the key {task.key!r} already names another task; give this one another key, "
            "or release every future of the first one"
        )
        state.send(client.peer, KeyFailed(task.key, task.key, "conflict", None, text, {}))
        return
    want(state, task, client.peer)
    notify_client(state, task, client.peer)
    if task.phase is RELEASED:
        activate(state, task)


def _connect(state: State, task: Task, keys: tuple[Key, ...]) -> None:
    """Connect a task to its inputs. An unknown input fails it."""
    inputs: list[Task] = []
    for key in keys:
        dependency = state.tasks.get(key)
        if dependency is None or dependency is task:
            text = f"it depends on {key!r}, which the scheduler does not know: cancelled, released, or never submitted"
            fail(state, task, Failure(task.key, "refused", None, text, {}))
            return
        inputs.append(dependency)
    task.dependencies = tuple(inputs)
    for dependency in inputs:
        if dependency.dependents is None:
            dependency.dependents = {}
        dependency.dependents[task] = None


def _options(extra: Mapping[str, Any]) -> TaskOptions:
    for name, value in extra.items():
        check = _CHECKS.get(name)
        if check is None or not check(value):
            raise ProtocolError(f"Submit with {name}={value!r}")
    fields = {name: extra[name] for name in ("retries", "workers", "allow_other_workers") if name in extra}
    if "priority" in extra:
        fields["priority"] = _ordinal(extra["priority"])
    if "resources" in extra:
        fields["resources"] = tuple(sorted((name, float(amount)) for name, amount in extra["resources"].items()))
    if "time_limit" in extra:
        fields["time_limit_s"] = float(extra["time_limit"])
    options = TaskOptions(**fields)
    return DEFAULT_OPTIONS if options == DEFAULT_OPTIONS else options


def _ordinal(number: float) -> int:
    """A whole number of 64 bits for each number, in the same order; 0 for 0.

    The bits of floats that are not negative are in their order already, behind the sign.
    """
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits if bits >= 0 else -(bits & 2**63 - 1)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _is_amount(value: object) -> bool:
    return _is_number(value) and value >= 0


# `isinstance` alone would leave the types of items unknown: hence the casts.


def _are_names(value: object) -> bool:
    return isinstance(value, tuple) and all(type(name) is str for name in cast("tuple[object, ...]", value))


def _are_amounts(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    amounts = cast("dict[object, object]", value)
    return all(type(name) is str and _is_amount(amount) for name, amount in amounts.items())


_CHECKS: Final[Mapping[str, Callable[[object], bool]]] = {
    "priority": _is_number,
    "retries": lambda value: type(value) is int and value >= 0,
    "workers": _are_names,
    "allow_other_workers": lambda value: type(value) is bool,
    "resources": _are_amounts,
    "time_limit": _is_amount,
}
