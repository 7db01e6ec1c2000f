"""The tasks of one of dask's graphs, as they are sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from trio_dask.client.collections.collector import fewer_collections
from trio_dask.client.collections.dask_names import (
    Alias,
    DataNode,
    GraphNode,
    Task,
    TaskRef,
    execute_subgraph,
    ordered,
    reduce_task,
)
from trio_dask.client.collections.graph_size import GraphSize
from trio_dask.client.collections.subgraphs import run_async_subgraph, run_subgraph
from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.dask_graphs import identity, key_to_str
from trio_dask.client.graph_parts import GraphRow, PartCutter
from trio_dask.errors import UsageError
from trio_dask.ids import Key
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.pickled_nodes import NODE, RESULT, VALUE, GivenArguments, NodePickler
from trio_dask.protocol.pickling import PickledFunction, pickle_function

_NOTHING: Mapping[str, Any] = {}


class DaskGraphParts:
    """Makes the parts of a graph: materializes it, leaves out what the outputs do not need, orders and pickles it.

    `make_nodes` gives the tasks by key. `extra_of` gives what the scheduler is told about how the task of a key runs.
    """

    def __init__(
        self,
        make_nodes: Callable[[], dict[Hashable, Any]],
        outputs: Sequence[Hashable],
        extra_of: Callable[[Hashable], Mapping[str, Any]],
    ) -> None:
        self._make_nodes = make_nodes
        self._outputs = outputs
        self._extra_of = extra_of

    def __iter__(self) -> Iterator[GraphPart]:
        with fewer_collections():
            nodes = needed_nodes(self._make_nodes(), self._outputs)
            order = ordered(nodes)
        names = _names(nodes, self._outputs)
        outputs = dict.fromkeys([names[key] for key in self._outputs if key in names])
        encoder = _Encoder(names)
        rows: list[tuple[Hashable, Any, tuple[Key, ...]]] = []
        last_use: dict[Key, int] = {}
        seen: set[Key] = set()
        for key in order:
            node = nodes[key]
            name = names[key]
            dependencies = encoder.names_of(node.dependencies)
            if len(set(dependencies)) < len(dependencies):  # an alias and its target
                pairs = list(zip(dependencies, node.dependencies, strict=True))
                one_key = dict(pairs)
                node = node.substitute({needed: one_key[depends_on] for depends_on, needed in pairs})
                dependencies = encoder.names_of(node.dependencies)
            if type(node) is Alias and dependencies == (name,):
                continue  # it has the name of its target
            if name in seen:
                raise UsageError(f"two keys of the graph have the same name, {name!r}")
            seen.add(name)
            for needed in dependencies:
                last_use[needed] = len(rows)
            rows.append((key, node, dependencies))
        cutter = PartCutter(last_use, outputs)
        size = GraphSize()
        for key, node, dependencies in rows:
            row = encoder.row(names[key], node, dependencies, self._extra_of(key))
            size.add(row)
            part = cutter.add(row)
            if part is not None:
                yield part
        size.warn()
        part = cutter.cut()
        if part is not None:
            yield part


def needed_nodes(nodes: dict[Hashable, Any], outputs: Sequence[Hashable]) -> dict[Hashable, Any]:
    """The nodes that the outputs need, in the order of the graph."""
    found: set[Hashable] = set()
    stack = [key for key in outputs if key in nodes]
    while stack:
        key = stack.pop()
        if key not in found:
            found.add(key)
            stack += [needed for needed in nodes[key].dependencies if needed in nodes]
    return nodes if len(found) == len(nodes) else {key: node for key, node in nodes.items() if key in found}


def _names(nodes: Mapping[Hashable, Any], outputs: Sequence[Hashable]) -> dict[Hashable, Key]:
    """The names of the tasks, by key. An alias has the name of its target, so that it needs no task.

    Where an alias is an output, its target takes the name of the alias, unless something else needs it too.
    """
    names = {key: key_to_str(key) for key in nodes}
    aliases = {key: node.target for key, node in nodes.items() if type(node) is Alias}
    if not aliases:
        return names
    wanted = set(outputs)
    for key, target in aliases.items():
        if key not in wanted:
            while target in aliases and target not in wanted:
                target = aliases[target]
            names[key] = names.get(target) or key_to_str(target)
    shared: dict[Hashable, int] = {}
    for node in nodes.values():
        for needed in node.dependencies:
            shared[needed] = shared.get(needed, 0) + 1
    for key, target in aliases.items():
        if key in wanted and target in nodes and target not in wanted and target not in aliases and shared[target] == 1:
            names[target] = names[key]
    return names


class _Encoder:
    """Turns nodes into rows. It holds every function it meets, so that no other gets its identity."""

    def __init__(self, names: Mapping[Hashable, Key]) -> None:
        self._names = names
        self._functions: dict[int, tuple[Any, PickledFunction]] = {}
        self._is_async: dict[int, bool] = {}
        self._met: list[Any] = []
        self._pickler = NodePickler({Task: reduce_task})

    def names_of(self, keys: frozenset[Hashable]) -> tuple[Key, ...]:
        """The names of dependencies."""
        names = self._names
        return tuple([names[key] if key in names else key_to_str(key) for key in keys])

    def _has_async(self, nodes: Mapping[Hashable, Any]) -> bool:
        known = self._is_async
        for node in nodes.values():
            function = getattr(node, "func", None)
            found = known.get(id(function))
            if found is None:
                self._met.append(function)
                found = known[id(function)] = inspect.iscoroutinefunction(function)
            if found:
                return True
        return False

    def row(self, name: Key, node: Any, dependencies: tuple[Key, ...], extra: Mapping[str, Any]) -> GraphRow:
        """The task of a node. Raises `SerializationError`."""
        kind = kind_of(node)
        function: Callable[..., Any]
        if kind is Alias:
            function, given = identity, GivenArguments((0,), _NOTHING, bytes([RESULT]), ())
        elif kind is DataNode:
            function, given = identity, GivenArguments((node.value,), _NOTHING, bytes([VALUE]), ())
        else:
            function = node.func
            if function is execute_subgraph:
                function = run_async_subgraph if self._has_async(node.args[0]) else run_subgraph
            given = _given(node)
        found = self._functions.get(id(function))
        if found is None:
            found = self._functions[id(function)] = function, pickle_function(function)
        call = self._pickler.pickle_call(given)
        if call.dependencies:  # of futures in values
            dependencies = (*dependencies, *[key for key in call.dependencies if key not in dependencies])
        return GraphRow(name, found[1], call.call, dependencies, call.blobs, b"", extra)


def _given(node: Any) -> GivenArguments:
    keys = tuple(node.dependencies)
    numbers = {key: number for number, key in enumerate(keys)}
    kinds = bytearray()
    has_nodes = False
    given: list[Any] = []
    kwargs: Mapping[str, Any] = node.kwargs
    for argument in (*node.args, *kwargs.values()) if kwargs else node.args:
        if isinstance(argument, TaskRef):
            kinds.append(RESULT)
            given.append(numbers[argument.key])
        elif isinstance(argument, GraphNode):
            if type(argument) is Alias:
                kinds.append(RESULT)
                given.append(numbers[argument.target])
            else:
                has_nodes = True
                kinds.append(NODE)
                given.append(argument)
        else:
            kinds.append(VALUE)
            given.append(argument)
    count = len(node.args)
    if kwargs:
        kwargs = dict(zip(kwargs, given[count:], strict=True))
    return GivenArguments(tuple(given[:count]), kwargs or _NOTHING, bytes(kinds), keys if has_nodes else ())
