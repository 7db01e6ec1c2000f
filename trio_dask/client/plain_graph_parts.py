"""The tasks of a plain graph, as they are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.dask_graphs import GraphTask
from trio_dask.client.graph_parts import GraphRow, PartCutter
from trio_dask.errors import UsageError
from trio_dask.ids import Key
from trio_dask.protocol.pickling import PickledFunction, call_token, pickle_call, pickle_function


class PlainGraphParts:
    """A graph as rows, and cut into parts. The tasks come in their order.

    Iterating over it pickles the tasks, while earlier parts run; it raises what pickling raises. Making it raises
    `UsageError` if two keys of the graph have the same name.
    """

    def __init__(self, tasks: list[GraphTask], outputs: Mapping[Key, object], extra: Mapping[str, Any]) -> None:
        self._tasks = tasks
        self._outputs = outputs
        self._extra = extra
        self._functions: dict[int, PickledFunction] = {}
        self._made: dict[Key, GraphRow] = {}
        if len({task.key for task in tasks}) < len(tasks):
            twice = next(key for key, times in Counter([task.key for task in tasks]).items() if times > 1)
            raise UsageError(f"two keys of the graph have the same name, {twice!r}")

    def tokens(self, known: Collection[Key]) -> dict[Key, bytes]:
        """The tokens of those outputs that are known already, which says whether they stand for the same calls.

        Those of the others are empty. Raises what pickling raises.
        """
        if known:
            self._made = {task.key: self._row(task) for task in self._tasks if task.key in known}
        return {key: self._made[key].token if key in self._made else b"" for key in self._outputs}

    def __iter__(self) -> Iterator[GraphPart]:
        last_use: dict[Key, int] = {}
        for number, (_, _, _, dependencies) in enumerate(self._tasks):
            for name in dependencies:
                last_use[name] = number
        cutter = PartCutter(last_use, self._outputs)
        made, make = self._made, self._row
        for task in self._tasks:
            part = cutter.add(made.get(task.key) or make(task))
            if part is not None:
                yield part
        part = cutter.cut()
        if part is not None:
            yield part

    def _row(self, task: GraphTask) -> GraphRow:
        key, function, args, dependencies = task
        pickled = self._functions.get(id(function))
        if pickled is None:
            pickled = self._functions[id(function)] = pickle_function(function)
        call = pickle_call(args, {})
        if len(call.dependencies) > len(dependencies):  # futures in values
            dependencies = call.dependencies
        token = call_token(pickled.token, args, {}, call)
        return GraphRow(key, pickled, call.call, dependencies, call.blobs, token, self._extra)
