"""The tasks of a plain graph, as they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.dask_graphs import GraphTask
from trio_dask.client.graph_parts import GraphRow, PartCutter
from trio_dask.ids import Key
from trio_dask.protocol.pickling import PickledFunction, call_token, pickle_call, pickle_function


class PlainGraphParts:
    """Makes the parts of a graph from its tasks, which come in their order."""

    def __init__(self, tasks: list[GraphTask], outputs: Mapping[Key, object], extra: Mapping[str, Any]) -> None:
        self._tasks = tasks
        self._outputs = outputs
        self._extra = extra
        self.held: Mapping[Key, None] = {}

    def __iter__(self) -> Iterator[GraphPart]:
        last_use: dict[Key, int] = {}
        for number, task in enumerate(self._tasks):
            for name in task.dependencies:
                last_use[name] = number
        cutter = PartCutter(last_use, self._outputs)
        self.held = cutter.held
        extra = self._extra
        functions: dict[int, PickledFunction] = {}
        for key, function, args, dependencies in self._tasks:
            pickled = functions.get(id(function))
            if pickled is None:
                pickled = functions[id(function)] = pickle_function(function)
            call = pickle_call(args, {})
            if len(call.dependencies) > len(dependencies):  # futures in values
                dependencies = call.dependencies
            token = call_token(pickled.token, args, {}, call)
            part = cutter.add(GraphRow(key, pickled, call.call, dependencies, call.blobs, token, extra))
            if part is not None:
                yield part
        part = cutter.cut()
        if part is not None:
            yield part
