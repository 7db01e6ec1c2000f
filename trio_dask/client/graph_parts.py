"""Cuts the tasks of a graph, in the order in which they shall run, into the parts in which they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from trio_dask.client.core.outbox import MAX_CALL_BYTES, MAX_ROWS, NO_EXTRA, Content, GraphPart
from trio_dask.ids import Digest, Key
from trio_dask.protocol.messages import SubmitGraph
from trio_dask.protocol.pickling import PickledFunction

FIRST_PART: Final = 128
"""Rows of the first part, so that workers begin soon; each part has twice as many as the one before."""


class GraphRow(NamedTuple):
    """One task of a graph, which comes after those it depends on."""

    key: Key
    function: PickledFunction
    call: bytes
    dependencies: tuple[Key, ...]
    contents: tuple[Content, ...] = ()
    token: bytes = b""
    extra: Mapping[str, Any] = NO_EXTRA


class _Part:
    """Columns that grow row by row."""

    def __init__(self) -> None:
        self.numbers: dict[Key, int] = {}
        self.calls: list[bytes] = []
        self.call_bytes = 0
        self.functions: dict[Digest, int] = {}
        self.function_of: list[int] = []
        self.inputs: dict[Key, int] = {}
        self.dependencies: list[tuple[int, ...]] = []
        self.blobs: list[tuple[Digest, ...]] = []
        self.tokens: list[bytes] = []
        self.options: list[Mapping[str, Any]] = []
        self.options_of: list[int] = []
        self.contents: dict[Digest, bytes | memoryview] = {}

    def add(self, row: GraphRow) -> None:
        key, function, call, dependencies, contents, token, extra = row
        numbers, inputs = self.numbers, self.inputs
        # Inputs from outside get numbers below 0 until the count of rows is known.
        self.dependencies.append(
            tuple(
                [
                    number if (number := numbers.get(name)) is not None else inputs.setdefault(name, ~len(inputs))
                    for name in dependencies
                ]
            )
        )
        numbers[key] = len(numbers)
        self.calls.append(call)
        self.call_bytes += len(call)
        number = self.functions.get(function.digest)
        if number is None:
            number = self.functions[function.digest] = len(self.functions)
            self.contents[function.digest] = function.data
        self.function_of.append(number)
        blobs = function.blobs + contents
        if blobs:
            self.contents.update(blobs)
        self.blobs.append(tuple([digest for digest, _ in blobs]) if blobs else ())
        self.tokens.append(token)
        try:
            choice = self.options.index(extra)
        except ValueError:
            choice = len(self.options)
            self.options.append(extra)
        self.options_of.append(choice)

    @property
    def is_full(self) -> bool:
        return len(self.calls) >= MAX_ROWS or self.call_bytes >= MAX_CALL_BYTES

    def finish(self, held: list[Key], unheld: list[Key], outputs: Mapping[Key, object]) -> GraphPart:
        count, numbers = len(self.calls), self.numbers
        dependencies = self.dependencies
        if self.inputs:
            dependencies = [
                tuple([number if number >= 0 else count + ~number for number in row]) for row in dependencies
            ]
        message = SubmitGraph(
            tuple(self.functions),
            tuple(self.function_of),
            tuple(numbers),
            tuple(self.calls),
            tuple(self.inputs),
            tuple(dependencies),
            tuple(self.blobs) if any(self.blobs) else (),
            tuple(self.tokens) if any(self.tokens) else (),
            () if self.options == [NO_EXTRA] else tuple(self.options),
            tuple(self.options_of) if len(self.options) > 1 else (),
            (),
            tuple([numbers[key] for key in held]),
            tuple(unheld),
        )
        wanted = [(number, key) for key, number in numbers.items() if key in outputs]
        return GraphPart(message, wanted, tuple(self.contents.items()))


class PartCutter:
    """Gathers rows into parts. `held` has what was sent, and what rows not added yet depend on."""

    def __init__(self, dependents: dict[Key, int], outputs: Mapping[Key, object]) -> None:
        self.held: dict[Key, None] = {}
        self._dependents = dependents
        """How many rows that are still to come depend on each key."""
        self._outputs = outputs
        self._part = _Part()
        self._limit = FIRST_PART
        self._unheld: list[Key] = []

    def add(self, row: GraphRow) -> Iterator[GraphPart]:
        """Take the next row. Gives the part that it completes, if it does."""
        dependents = self._dependents
        for name in row.dependencies:
            left = dependents.get(name, 0) - 1
            if left > 0:
                dependents[name] = left
            elif not left:
                del dependents[name]
                if name in self.held:
                    del self.held[name]
                    self._unheld.append(name)
        part = self._part
        part.add(row)
        if len(part.calls) >= self._limit or part.is_full:
            yield self._cut()

    def end(self) -> Iterator[GraphPart]:
        """Gives the last part."""
        if self._part.calls:
            yield self._cut()

    def _cut(self) -> GraphPart:
        part, self._part = self._part, _Part()
        self._limit *= 2
        held = [key for key in part.numbers if key in self._dependents]
        self.held.update(dict.fromkeys(held))
        unheld, self._unheld = self._unheld, []
        return part.finish(held, unheld, self._outputs)
