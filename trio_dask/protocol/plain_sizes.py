"""The sizes of values that can certainly be pickled, without pickling them: arrays, frames, and containers of these.

A value that counts here has no Python objects inside, so its size is that of its buffers. Everything else has to be
pickled to know that it can be, and how large it is.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from trio_dask.protocol.introspection import kind_of

HEAD_BYTES: Final = 1 << 7
"""About what a pickle has for each array besides its elements."""

MOST_ITEMS: Final = 1 << 10
"""Containers with more items are pickled: looking at all of them takes as long."""

_NUMBERS: Final = frozenset({int, float, bool, complex, type(None)})


_ARRAYS: Final = (
    frozenset({"ndarray", "bool", "bool_", "datetime64", "timedelta64"})
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    | {f"float{bits}" for bits in (16, 32, 64)}
)
"""Types of numpy: arrays and scalars, which have the same attributes."""


class PlainSize(NamedTuple):
    """Bytes of a value, and those of them that pickling would copy."""

    nbytes: int
    copied_bytes: int = 0


def plain_size(value: Any) -> PlainSize | None:
    """The size of a value that can certainly be pickled; None for others."""
    kind = kind_of(value)
    if kind in _NUMBERS:
        return PlainSize(8)
    if kind is list or kind is tuple:
        return _size_of_items(value)
    if kind is dict or (issubclass(kind, dict) and kind.__module__.startswith("dask.")):  # as tasks of shuffles give
        return _size_of_items((*value, *value.values())) if len(value) <= MOST_ITEMS else None
    if kind is str:
        return PlainSize(len(value)) if value.isascii() else None
    if kind.__module__ == "numpy":
        return _size_of_array(value) if kind.__name__ in _ARRAYS else None
    if kind.__name__ in ("DataFrame", "Series") and kind.__module__.partition(".")[0] == "pandas":
        return _size_of_frame(value)
    return None


def _size_of_items(items: Any) -> PlainSize | None:
    if len(items) > 2 * MOST_ITEMS:
        return None
    nbytes = copied_bytes = 0
    for item in items:
        size = plain_size(item)
        if size is None:
            return None
        nbytes += size.nbytes
        copied_bytes += size.copied_bytes
    return PlainSize(nbytes, copied_bytes)


def _size_of_array(array: Any) -> PlainSize | None:
    if array.dtype.hasobject:
        return None
    nbytes = array.nbytes
    return PlainSize(nbytes + HEAD_BYTES, 0 if array.flags.forc else nbytes)


def _size_of_frame(frame: Any) -> PlainSize | None:
    """Of a pandas object, by its blocks: its public ways to ask take as long as pickling it."""
    try:
        arrays = frame._mgr.arrays
        index = frame.index
        if frame.attrs or index.nlevels > 1 or index.dtype == object:
            return None
        nbytes, copied_bytes = index.nbytes + HEAD_BYTES, 0
        for array in arrays:
            if array.dtype == object:
                return None
            nbytes += array.nbytes + HEAD_BYTES
            flags = getattr(array, "flags", None)
            if flags is None or not flags.forc:
                copied_bytes += array.nbytes
    except AttributeError:  # another pandas
        return None
    return PlainSize(nbytes, copied_bytes)
