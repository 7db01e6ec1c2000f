"""Plain graphs: dictionaries from keys to tasks, as `dask` has always had them.

A value of the graph is a task (a tuple that begins with a callable), a key of the graph, a list of these, or a
constant. Tasks nest: `(add, (inc, "x"), 1)`. What is nested runs inside the task around it.

Workers import this file for `evaluate`; it stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeGuard

from trio_dask.errors import UsageError
from trio_dask.ids import Key
from trio_dask.parsing import checked_text
from trio_dask.protocol.picklers import KeyReference
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH

INLINED: Final = frozenset({int, float, complex, bool, str, type(None)})
"""Constants of these types are part of the calls that use them; others become tasks, so that they are sent once."""


def identity(value: Any) -> Any:
    """The value itself."""
    return value


def key_to_str(key: Hashable) -> Key:
    """A key of a graph as the name of a task: text stays as it is, anything else is written out.

    Raises `UsageError` for a text that cannot be sent.
    """
    return checked_text("the key", key if isinstance(key, str) else repr(key), MAX_KEY_LENGTH)


class Nested:
    """A task inside the arguments of another, on its way to the worker."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return Nested, (self.function, self.args)


def evaluate(expression: Any) -> Any:
    """Compute the nested tasks in an expression, innermost first."""
    if type(expression) is Nested:
        return expression.function(*[evaluate(arg) for arg in expression.args])
    if _is_list(expression):
        return [evaluate(item) for item in expression]
    return expression


class Reference(KeyReference):
    """The result of another task of the graph."""

    __slots__ = ("key",)

    def __init__(self, key: Key) -> None:
        self.key = key


class Constant(NamedTuple):
    """A value that needs no task."""

    value: Any


class GraphTask(NamedTuple):
    """One call; references stand for its dependencies."""

    key: Key
    function: Callable[..., Any]
    args: tuple[Any, ...]
    dependencies: tuple[Key, ...]


Bound: TypeAlias = Constant | Reference


class Plan(NamedTuple):
    """The tasks to submit, depth-first, each after those it needs, and the outputs."""

    tasks: list[GraphTask]
    outputs: dict[Hashable, Bound | None]
    """None for a key that the graph does not define."""


def plan(graph: Mapping[Any, Any], outputs: Sequence[Hashable]) -> Plan:
    """Order what the outputs need of a graph; the rest of it is left out.

    Raises `UsageError` for a graph with a cycle.
    """
    if not isinstance(graph, Mapping):
        raise UsageError(f"a graph is a dict from keys to tasks, not {graph!r:.60}")
    bound: dict[Hashable, Bound] = {}
    tasks: list[GraphTask] = []
    path: dict[Hashable, list[Hashable]] = {}
    stack: list[Hashable] = [key for key in reversed(outputs) if key in graph]
    while stack:
        key = stack[-1]
        if key in bound:
            stack.pop()
        elif key in path:  # everything below it is done
            stack.pop()
            bound[key] = _bind(key, graph[key], path.pop(key), bound, tasks)
        else:
            needs = path[key] = []
            _find_needs(graph[key], graph, needs)
            for need in reversed(needs):
                if need in path:
                    raise UsageError(f"the graph has a cycle: {_cycle(path, need)}")
                if need not in bound:
                    stack.append(need)
    return Plan(tasks, {key: bound.get(key) for key in outputs})


def flat_keys(keys: Any) -> list[Hashable]:
    """The keys in nested lists, each once, in order.

    Raises `UsageError` for something that cannot be a key.
    """
    if not _is_list(keys):
        if not isinstance(keys, Hashable):
            raise UsageError(f"the keys to get are keys of the graph, or lists of them, not {keys!r:.60}")
        return [keys]
    found: dict[Hashable, None] = {}
    for item in keys:
        found.update(dict.fromkeys(flat_keys(item)))
    return list(found)


def shaped_like(keys: Any, values: Mapping[Hashable, Any]) -> Any:
    """The values of the keys, in the same nested lists."""
    if _is_list(keys):
        return [shaped_like(item, values) for item in keys]
    return values[keys]


def _cycle(path: Iterable[Hashable], start: Hashable) -> str:
    keys = list(path)
    return " -> ".join(repr(key) for key in [*keys[keys.index(start) :], start])


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list


def _is_task(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return type(value) is tuple and bool(value) and callable(value[0])  # pyright: ignore[reportUnknownArgumentType] - of any kind


def _find_needs(value: Any, graph: Mapping[Any, Any], needs: list[Hashable]) -> None:
    """The keys that a value of the graph refers to, in order."""
    parts: Sequence[Any]
    if _is_list(value):
        parts = value
    elif _is_task(value):
        parts = value[1:]
    else:
        parts = (value,)
    for part in parts:
        if part is not value and type(part) in _COMPOUND and (_is_list(part) or _is_task(part)):
            _find_needs(part, graph, needs)
        elif _is_key(part, graph):
            needs.append(part)


def _is_key(value: Any, graph: Mapping[Any, Any]) -> bool:
    try:
        return value in graph
    except TypeError:  # not hashable
        return False


def _bind(
    key: Hashable, value: Any, needs: list[Hashable], bound: dict[Hashable, Bound], tasks: list[GraphTask]
) -> Bound:
    """Turn one value of the graph into a task, unless it needs none."""
    function: Callable[..., Any] = evaluate
    args: tuple[Any, ...]
    if _is_task(value):
        args = tuple([_substitute(arg, bound) for arg in value[1:]])
        if not _COMPUTED.isdisjoint(map(type, args)) and any(map(_has_nested, args)):
            args = (Nested(value[0], args),)
        else:
            function = value[0]
    elif _is_list(value):
        args = (_substitute(value, bound),)
    elif _is_key(value, bound):
        return bound[value]
    elif type(value) in INLINED:
        return Constant(value)
    else:
        function, args = identity, (value,)
    found = [bound[need] for need in needs]
    dependencies = tuple(dict.fromkeys([need.key for need in found if type(need) is Reference]))
    task = GraphTask(key_to_str(key), function, args, dependencies)
    tasks.append(task)
    return Reference(task.key)


def _substitute(value: Any, bound: Mapping[Hashable, Bound]) -> Any:
    if type(value) in _COMPOUND:
        if _is_list(value):
            return [_substitute(item, bound) for item in value]
        if _is_task(value):
            return Nested(value[0], tuple([_substitute(arg, bound) for arg in value[1:]]))
    try:
        found = bound.get(value)
    except TypeError:  # not hashable
        return value
    if found is None:
        return value
    return found.value if type(found) is Constant else found


def _has_nested(value: Any) -> bool:
    return type(value) is Nested or (_is_list(value) and any(map(_has_nested, value)))


_COMPOUND: Final = frozenset({list, tuple})
_COMPUTED: Final = frozenset({list, Nested})
