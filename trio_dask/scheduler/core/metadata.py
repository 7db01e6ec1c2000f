"""Metadata: a tree of texts, at whose leaves are values of clients, opaque.

A tree whose first name is the key of a task lasts as long as the task. That is found out when it is read, so that tasks
are released without a look at it, and now and then for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

from trio_dask.errors import ProtocolError
from trio_dask.ids import Key
from trio_dask.protocol.messages import Reply, SetMetadata
from trio_dask.scheduler.core.state import Client, State, Task
from trio_dask.scheduler.core.task_states import FORGOTTEN, Erred, InMemory

Tree: TypeAlias = "dict[str, Any]"
"""Trees, and leaves: tuples of the frames of a pickle."""


def set_metadata(state: State, client: Client, message: SetMetadata) -> None:
    """A client sets the value at a path. What stands in its way, or was there, is replaced.

    Raises `ProtocolError` if there is no path.
    """
    if not message.path:
        raise ProtocolError("metadata has a path")
    *inner, last = message.path
    first = message.path[0]
    _forget_if_of_past_task(state, first)
    node = state.metadata
    for name in inner:
        below = node.get(name)
        if not isinstance(below, dict):
            below = node[name] = {}
        node = cast("Tree", below)
    node[last] = message.value
    if (task := state.tasks.get(first)) is not None:
        state.metadata_of_tasks[first] = task
    _sweep(state)
    state.send(client.peer, Reply(message.request, None))


def get_metadata(state: State, path: tuple[str, ...]) -> tuple[Any, int] | None:
    """What stands at this path, and how much of the path leads further into the leaf that was found.

    None if there is nothing.
    """
    _forget_if_of_past_task(state, path[0] if path else "")
    node: Any = state.metadata
    for depth, name in enumerate(path):
        if not isinstance(node, dict):
            return node, len(path) - depth
        below = cast("Tree", node)
        if name not in below:
            return None
        node = below[name]
    return node, 0


def task_mark(state: State, _: tuple[str, ...]) -> int:
    """What divides the tasks that were submitted so far from later ones."""
    return state.last_submission


def tasks_since(state: State, arguments: tuple[str, ...]) -> dict[Key, tuple[str, Any, tuple[str, ...]]]:
    """Of the tasks that were submitted after a mark and are finished: the state, the metadata and the span of each.

    Raises `ProtocolError` if the mark is none.
    """
    if len(arguments) != 1 or not arguments[0].isdecimal():
        raise ProtocolError(f"tasks_since takes a mark, not {arguments!r:.40}")
    mark = int(arguments[0])
    found: dict[Key, tuple[str, Any, tuple[str, ...]]] = {}
    for task in reversed(state.tasks.values()):
        if task.submission <= mark:
            break
        if isinstance(task.phase, InMemory | Erred):
            found[task.key] = task.phase.state, state.metadata.get(task.key, {}), task.options.span
    return found


def _forget_if_of_past_task(state: State, key: Key) -> None:
    task = state.metadata_of_tasks.get(key)
    if task is not None and task.phase is FORGOTTEN:
        del state.metadata_of_tasks[key]
        state.metadata.pop(key, None)


def _sweep(state: State) -> None:
    """Forget what is of past tasks, each time that there is twice as much of tasks as after the last time."""
    known: Mapping[Key, Task] = state.metadata_of_tasks
    if len(known) > state.sweep_metadata_at:
        for key in list(known):
            _forget_if_of_past_task(state, key)
        state.sweep_metadata_at = 2 * len(known) + 100
