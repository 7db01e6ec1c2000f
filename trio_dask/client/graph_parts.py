"""Cuts the tasks of a graph, in the order in which they shall run, into the parts in which they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from trio_dask.client.core.outbox import MAX_CALL_BYTES, MAX_ROWS, NO_EXTRA, Content, GraphPart
from trio_dask.ids import Digest, Key
from trio_dask.protocol.messages import SubmitGraph
from trio_dask.protocol.pickling import PickledFunction

FIRST_PART: Final = 128
"""Rows of the first part, so that workers begin soon; each part has twice as many as the one before."""

MAX_DEPENDENCIES: Final = 2**16
"""A part is complete when its rows have this many dependencies: it has to fit into a frame."""


class GraphRow(NamedTuple):
    """One task of a graph, which comes after those it depends on."""

    key: Key
    function: PickledFunction
    call: bytes
    dependencies: tuple[Key, ...]
    contents: tuple[Content, ...] = ()
    token: bytes = b""
    extra: Mapping[str, Any] = NO_EXTRA


class PartCutter:
    """Gathers rows into parts.

    `last_use` has for each key that rows depend on the number of the last one that does.
    """

    def __init__(self, last_use: Mapping[Key, int], outputs: Mapping[Key, object]) -> None:
        self._held: dict[Key, None] = {}
        """What was cut and is needed by rows that were not."""
        self._last_use = last_use
        self._outputs = outputs
        self._rows: list[GraphRow] = []
        self._cut_rows = 0
        self._call_bytes = 0
        self._dependencies = 0
        self._limit = FIRST_PART

    def add(self, row: GraphRow) -> GraphPart | None:
        """Take the next row. The part that it completes, if it does."""
        rows = self._rows
        rows.append(row)
        self._call_bytes += len(row.call)
        self._dependencies += len(row.dependencies)
        is_full = (
            len(rows) >= self._limit or self._call_bytes >= MAX_CALL_BYTES or self._dependencies >= MAX_DEPENDENCIES
        )
        return self.cut() if is_full else None

    def cut(self) -> GraphPart | None:
        """The rows so far as a part; None if there are none."""
        rows, self._rows = self._rows, []
        if not rows:
            return None
        self._call_bytes = self._dependencies = 0
        self._limit = min(2 * self._limit, MAX_ROWS)
        keys, functions, calls, names_of_each, contents_of_each, tokens, extras = zip(*rows, strict=True)
        count = len(keys)
        numbers = _Numbers(zip(keys, range(count), strict=True))
        dependencies = [tuple([numbers[name] for name in names]) for names in names_of_each]
        inputs = tuple(islice(numbers, count, None))
        function_numbers: dict[Digest, int] = {}
        function_of = [function_numbers.setdefault(function.digest, len(function_numbers)) for function in functions]
        distinct = dict(zip(function_of, functions, strict=True)).values()
        contents: dict[Digest, bytes | memoryview] = {}
        for function in distinct:
            contents.update(function.blobs)
            contents[function.digest] = function.data
        blobs: list[tuple[Digest, ...]] = []
        if any(contents_of_each) or any(function.blobs for function in distinct):
            for function, own in zip(functions, contents_of_each, strict=True):
                contents.update(own)
                blobs.append(tuple([digest for digest, _ in function.blobs + own]))
        options: list[Mapping[str, Any]] = []
        options_of = [_number_in(options, extra) for extra in extras] if any(extras) else []
        self._cut_rows += count
        end, last_use, held = self._cut_rows, self._last_use, self._held
        unheld = [name for name in inputs if name in held and last_use[name] < end]
        for name in unheld:
            del held[name]
        now_held = [key for key in keys if last_use.get(key, -1) >= end]
        held.update(dict.fromkeys(now_held))
        message = SubmitGraph(
            tuple(function_numbers),
            tuple(function_of),
            keys,
            calls,
            inputs,
            tuple(dependencies),
            tuple(blobs),
            tokens if any(tokens) else (),
            tuple(options),
            tuple(options_of),
            (),
            tuple([numbers[key] for key in now_held]),
            tuple(unheld),
        )
        outputs = self._outputs
        return GraphPart(message, [(numbers[key], key) for key in keys if key in outputs], tuple(contents.items()))


class _Numbers(dict[Key, int]):
    """The numbers of the tasks of a part; other keys get the numbers that follow as they are asked for."""

    def __missing__(self, key: Key) -> int:
        number = self[key] = len(self)
        return number


def _number_in(options: list[Mapping[str, Any]], extra: Mapping[str, Any]) -> int:
    for number, option in enumerate(options):
        if option is extra:
            return number
    options.append(extra)
    return len(options) - 1
