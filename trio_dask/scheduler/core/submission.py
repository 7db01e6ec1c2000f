"""Add the tasks that a client submits."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeGuard, cast

from trio_dask.errors import ProtocolError
from trio_dask.ids import Key
from trio_dask.protocol.messages import Submit, SubmitGraph
from trio_dask.protocol.wire_constants import PRIORITY_BITS
from trio_dask.scheduler.core.blobs import complete_blob
from trio_dask.scheduler.core.events import GraphAdded
from trio_dask.scheduler.core.state import DEFAULT_OPTIONS, Client, State, Task, TaskOptions
from trio_dask.scheduler.core.stuck_tasks import recheck_soon
from trio_dask.scheduler.core.task_states import RELEASED, Erred, Failure
from trio_dask.scheduler.core.task_transitions import (
    activate,
    fail,
    hold,
    key_failed,
    notify_client,
    release_unneeded,
    retry_erred,
    unhold,
    want,
    was_refused,
)


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
    for row in rows:
        if len(row) > 1 and len(set(row)) < len(row):
            raise ProtocolError("a task of a Submit depends twice on the same key")
    function = complete_blob(state, message.function)
    blobs = [tuple(complete_blob(state, digest) for digest in digests) for digests in digests_of_each]
    options = _options(extra) if extra else DEFAULT_OPTIONS
    tasks = state.tasks
    no_priority = -options.priority << PRIORITY_BITS
    needed: list[Task] = []
    completed: list[Task] = []
    self_tuple = client.self_tuple
    wants = client.wants
    for index, key in enumerate(keys):
        task = tasks.get(key)
        if task is not None:
            if task.token == (tokens[index] if tokens else b""):
                want(state, task, client.peer)
                if rows and _completes(task, [tasks.get(name) for name in rows[index]]):
                    completed.append(task)
                    continue
                notify_client(state, task, client.peer)
                if task.phase is RELEASED:
                    activate(state, task)
            else:
                state.send(client.peer, key_failed(task, _conflict(task)))
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
            inputs = [tasks.get(name) for name in rows[index]]
            if None in inputs or task in inputs:
                fail(state, task, _refused(task, rows[index][_first_missing(task, inputs)]))
            else:
                _connect(task, cast("list[Task]", inputs))
    if state.events is not None:
        _note_graph(state, client, keys, needed)
    for task in needed:
        if task.phase is RELEASED:
            activate(state, task)
    retry_erred(state, completed)
    recheck_soon(state)


def _note_graph(state: State, client: Client, wanted: Sequence[Key], added: Sequence[Task]) -> None:
    assert state.events is not None
    dependencies = {task.key: tuple([needed.key for needed in task.dependencies]) for task in added}
    tasks = tuple([task.key for task in added])
    state.events.note(GraphAdded(state.now, client.name, tuple(wanted), tasks, dependencies))


def submit_graph(state: State, client: Client, message: SubmitGraph) -> None:
    """Add a part of a graph, and start what is needed of it.

    Raises `ProtocolError`, before anything has changed, when the message does not fit together.
    """
    _check_columns(message)
    _, function_of, keys, calls, inputs, dependencies, digests_of_each, tokens, _, options_of, *_ = message
    count = len(keys)
    functions = [complete_blob(state, digest) for digest in message.functions]
    blobs = [tuple([complete_blob(state, digest) for digest in digests]) for digests in digests_of_each]
    options = [_options(extra) for extra in message.options] or [DEFAULT_OPTIONS]
    offsets = [-option.priority << PRIORITY_BITS for option in options]
    tasks = state.tasks
    # The tasks of this part, then those that it refers to; None for one that is not there.
    known: list[Task | None] = [None] * count
    known += [tasks.get(key) for key in inputs]
    conflicts: dict[int, Task] = {}
    failed: dict[Task, Failure] = {}
    added: list[Task] = []
    completed: list[Task] = []
    for index, key in enumerate(keys):
        task = tasks.get(key)
        if task is not None:
            if task.token == (tokens[index] if tokens else b""):
                known[index] = task
                if _completes(task, [known[number] for number in dependencies[index]]):
                    completed.append(task)
            else:
                conflicts[index] = task
            continue
        state.last_submission += 1
        function = functions[function_of[index]]
        choice = options_of[index] if options_of else 0
        task = Task(key, offsets[choice] + state.last_submission, function, calls[index], options[choice], ())
        known[index] = tasks[key] = task
        added.append(task)
        function.references += 1
        if blobs and blobs[index]:
            task.blobs = blobs[index]
            for blob in task.blobs:
                blob.references += 1
        if tokens:
            task.token = tokens[index]
        numbers = dependencies[index]
        if numbers:
            needs = [known[number] for number in numbers]
            if None not in needs:
                _connect(task, cast("list[Task]", needs))
                continue
            number = numbers[_first_missing(task, needs)]
            if number in conflicts:
                failed[task] = _conflict(conflicts[number])
            else:
                failed[task] = _refused(task, keys[number] if number < count else inputs[number - count])
    if state.events is not None:
        _note_graph(state, client, [keys[index] for index in message.wanted], added)
    for index in message.wanted:
        task = known[index]
        if task is not None:
            want(state, task, client.peer)
            if task not in completed:
                notify_client(state, task, client.peer)
        else:
            state.send(client.peer, key_failed(conflicts[index], _conflict(conflicts[index])))
    for index in message.held:
        task = known[index]
        if task is not None:
            hold(client, task)
    for task, failure in failed.items():
        fail(state, task, failure)
    for index in (*message.wanted, *message.held):
        task = known[index]
        if task is not None and task.phase is RELEASED:
            activate(state, task)
    retry_erred(state, completed)
    unneeded = [task for task in added if not task.dependents and not task.wanted]
    for key in message.unheld:
        task = tasks.get(key)
        if task is not None:
            unhold(state, task, client)
            unneeded.append(task)
    release_unneeded(state, unneeded)
    recheck_soon(state)


def _check_columns(message: SubmitGraph) -> None:
    """Raise `ProtocolError` unless the numbers are in order, and each task comes after those it depends on."""
    functions, function_of, keys, calls, inputs, dependencies, blobs, tokens, options, options_of, wanted, held, _ = (
        message
    )
    count, end = len(keys), len(keys) + len(inputs)
    if not (
        len(function_of) == len(calls) == len(dependencies) == count
        and len(blobs or keys) == len(tokens or keys) == len(options_of or keys) == count
        and len({*keys, *inputs}) == end
        and _are_below(len(functions), function_of)
        and _are_below(len(options), options_of)
        and _are_below(count, (*wanted, *held))
    ):
        raise ProtocolError(f"the columns of a SubmitGraph with {count} keys do not fit together")
    for index, numbers in enumerate(dependencies):
        if not numbers:
            continue
        if len(numbers) > 1 and len(set(numbers)) < len(numbers):
            raise ProtocolError(f"task {index} of a SubmitGraph depends twice on the same key")
        if count <= min(numbers) and max(numbers) < end:  # as in most graphs: all of earlier parts
            continue
        for number in numbers:
            if not (0 <= number < index or count <= number < end):
                raise ProtocolError(f"task {index} of a SubmitGraph depends on {number}, which does not come before it")


def _are_below(end: int, numbers: Sequence[int]) -> bool:
    return not numbers or (min(numbers) >= 0 and max(numbers) < end)


def _conflict(task: Task) -> Failure:
    """The failure of a call that was given the key of another one, `task`."""
    text = f"the key {task.key!r} already names another task; give this one another key, "
    if task.dependents and not task.wanted:
        others = f" and {len(task.dependents) - 1} more" if len(task.dependents) > 1 else ""
        text += f"or first release what was computed from that one: {next(iter(task.dependents)).key!r}{others}"
    else:
        text += "or release every future of the first one"
    return Failure(task.key, "conflict", None, text, {})


def _refused(task: Task, key: Key) -> Failure:
    text = f"it depends on {key!r}, which the scheduler does not know: cancelled, released, or never submitted"
    return Failure(task.key, "refused", None, text, {"input": key})


def _first_missing(task: Task, inputs: Sequence[Task | None]) -> int:
    return next(number for number, found in enumerate(inputs) if found is None or found is task)


def _completes(task: Task, inputs: Sequence[Task | None]) -> bool:
    """Whether a task that was refused for want of an input is whole with these; then the caller retries it.

    Another client may have submitted it after it had cancelled the input.
    """
    if type(task.phase) is not Erred or not was_refused(task) or not inputs or None in inputs:
        return False
    found = cast("list[Task]", inputs)
    below = {task}
    stack = [task]
    while stack:
        new = [dependent for dependent in stack.pop().dependents or () if dependent not in below]
        below.update(new)
        stack += new
    if not below.isdisjoint(found):
        return False
    _connect(task, found)
    return True


def _connect(task: Task, inputs: list[Task]) -> None:
    """Connect a task to its inputs."""
    task.dependencies = tuple(inputs)
    for dependency in inputs:
        if dependency.dependents is None:
            dependency.dependents = {task: None}
        else:
            dependency.dependents[task] = None


def _options(extra: Mapping[str, Any]) -> TaskOptions:
    for name, value in extra.items():
        check = _CHECKS.get(name)
        if check is None or not check(value):
            raise ProtocolError(f"Submit with {name}={value!r}")
    names = ("retries", "workers", "allow_other_workers", "actor", "output", "executor", "span")
    fields = {name: extra[name] for name in names if name in extra}
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
    "actor": lambda value: value is True,
    "output": lambda value: value == "forward",
    "executor": lambda value: type(value) is str and value != "",
    "span": _are_names,
}
