"""The tasks of a plain graph, as they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trio_dask.client.core.outbox import GraphPart
from trio_dask.client.dask_graphs import GraphTask
from trio_dask.client.graph_parts import GraphRow, PartCutter
from trio_dask.errors import UsageError
from trio_dask.ids import Key
from trio_dask.protocol.pickling import PickledFunction, call_token, pickle_call, pickle_function


class PlainGraphParts:
    """A graph as rows, and cut into parts. The tasks come in their order.

    Raises what pickling raises, and `UsageError` if two keys of the graph have the same name.
    """

    def __init__(self, tasks: list[GraphTask], outputs: Mapping[Key, object], extra: Mapping[str, Any]) -> None:
        self._outputs = outputs
        self._last_use: dict[Key, int] = {}
        """For each key that others depend on the number of the last row that does."""
        self._rows: dict[Key, GraphRow] = {}
        functions: dict[int, PickledFunction] = {}
        for number, (key, function, args, dependencies) in enumerate(tasks):
            pickled = functions.get(id(function))
            if pickled is None:
                pickled = functions[id(function)] = pickle_function(function)
            call = pickle_call(args, {})
            if len(call.dependencies) > len(dependencies):  # futures in values
                dependencies = call.dependencies
            for name in dependencies:
                self._last_use[name] = number
            token = call_token(pickled.token, args, {}, call)
            if key in self._rows:
                raise UsageError(f"two keys of the graph have the same name, {key!r}")
            self._rows[key] = GraphRow(key, pickled, call.call, dependencies, call.blobs, token, extra)

    @property
    def tokens(self) -> dict[Key, bytes]:
        """The tokens of the outputs."""
        return {key: self._rows[key].token for key in self._outputs}

    def __iter__(self) -> Iterator[GraphPart]:
        cutter = PartCutter(self._last_use, self._outputs)
        for row in self._rows.values():
            part = cutter.add(row)
            if part is not None:
                yield part
        part = cutter.cut()
        if part is not None:
            yield part
