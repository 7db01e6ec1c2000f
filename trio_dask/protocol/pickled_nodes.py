"""The calls of graphs: their arguments may be results of other tasks, or computed from these where the task runs.

In a graph an argument is a value, the result of a dependency, or a node: something that is called with the results of
the dependencies, as a nested task is. Nodes travel as they are, and their workers call them. So neither client nor
worker takes them apart, and the worker needs no library for them but the one that defined them.

Most of these calls are pickled without a hook that sees every object, in a quarter of the time: what needs the hook
shows in the result (a name of `__main__`, a future), or raises, and is pickled again as other calls are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pickle import PickleBuffer
from typing import Any, Final, NamedTuple

from trio_dask.ids import Key
from trio_dask.protocol.blob_contents import LARGE_BYTES
from trio_dask.protocol.pickled_calls import COMPUTED, PickledCall, pickle_call
from trio_dask.protocol.picklers import (
    PICKLE_PROTOCOL,
    PICKLING_FAILURES,
    Chunks,
    names_what_only_we_have,
    ordinary_reductions,
)

VALUE: Final = 0
RESULT: Final = 1
NODE: Final = 2

_MARKER: Final = bytes([COMPUTED])
_FUTURE: Final = b"trio_dask.client.futures"


class GivenArguments(NamedTuple):
    """Arguments of a task of a graph, from which its worker computes those that the function gets.

    `kinds` has a byte for each argument, keyword arguments last: `VALUE`; `RESULT`, then the argument is the number of
    a dependency; or `NODE`, then it is called with the results of the dependencies by `keys`, which are parallel to
    the first dependencies (and empty if there is no node). Futures in values are dependencies after those.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    kinds: bytes
    keys: tuple[Any, ...]

    def compute(self, results: Mapping[Key, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function. `results` are those of the dependencies, in their order.

        Raises whatever the nodes raise.
        """
        values = list(results.values())
        # Behind those of the nodes there may be results that values refer to by themselves.
        by_key = dict(zip(self.keys, values, strict=False)) if self.keys else {}
        computed = [
            values[given] if kind == RESULT else given(by_key) if kind == NODE else given
            for given, kind in zip((*self.args, *self.kwargs.values()), self.kinds, strict=True)
        ]
        count = len(self.args)
        return tuple(computed[:count]), dict(zip(self.kwargs, computed[count:], strict=True))


class _NeedsHooks(Exception):
    """The pickle has a large buffer."""


class NodePickler:
    """Pickles the calls of one graph. For one thread. `reductions` has functions that reduce nodes, by type."""

    def __init__(self, reductions: Mapping[type[Any], Callable[[Any], Any]]) -> None:
        self._reductions = {**ordinary_reductions(), **reductions}

    def pickle_call(self, given: GivenArguments) -> PickledCall:
        """The arguments as bytes; `dependencies` of the result are futures in values, beside those of the task.

        Raises `SerializationError`, which names the argument and what in it cannot be pickled.
        """
        file = Chunks()
        pickler = pickle.Pickler(file, PICKLE_PROTOCOL, buffer_callback=_refuse_large)
        pickler.dispatch_table = self._reductions
        try:
            pickler.dump(tuple(given))
        except (_NeedsHooks, *PICKLING_FAILURES):  # the other pickler may know how, and raises if it does not
            pass
        else:
            data = file.take()
            if len(data) <= LARGE_BYTES and _FUTURE not in data and not names_what_only_we_have(data):
                return PickledCall(_MARKER + data, (), ())
        made = pickle_call(tuple(given), {})
        return made._replace(call=_MARKER + made.call)


def _refuse_large(buffer: PickleBuffer) -> bool:
    """Have a small buffer pickled in band."""
    try:
        size = buffer.raw().nbytes
    except BufferError:  # not contiguous
        return True
    if size >= LARGE_BYTES:
        raise _NeedsHooks
    return True
