"""The sizes of values that can certainly be pickled, without pickling: arrays, frames, bytes, and containers of these.

A value that counts here has no Python objects inside, so its size is that of its buffers. Everything else has to be
pickled to know that it can be, and how large it is.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from trio_dask.protocol.introspection import kind_of

HEAD_BYTES: Final = 1 << 7
"""About what a pickle has for each array besides its elements."""

MOST_ITEMS: Final = 1 << 10
"""Values with more items are pickled: looking at all of them takes as long."""

MOST_LEVELS: Final = 32
"""Values that are nested deeper are pickled: picklers have a limit, and a value that contains itself has no end."""

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
    nbytes = copied_bytes = 0
    left = MOST_ITEMS
    level = [value]
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for item in level:
            kind = kind_of(item)
            if kind in _NUMBERS:
                nbytes += 8
            elif kind is str:
                if not item.isascii():
                    return None
                nbytes += len(item)
                copied_bytes += len(item)
            elif kind is bytes or kind is bytearray:
                nbytes += len(item)
                if item is not value:  # a value that is nothing else is sent as it is
                    copied_bytes += len(item)
            elif kind is list or kind is tuple or kind is dict or _is_group_of_dask(kind):
                left -= len(item)
                if left < 0:
                    return None
                below += item
                if kind is not list and kind is not tuple:
                    below += item.values()
            else:
                size = _size_of_block(item, kind)
                if size is None:
                    return None
                nbytes += size.nbytes
                copied_bytes += size.copied_bytes
        if not below:
            return PlainSize(nbytes, copied_bytes)
        level = below
    return None


def _is_group_of_dask(kind: type[Any]) -> bool:
    """Whether this is the kind of dict that tasks of dask's shuffles give."""
    module: object = kind.__module__
    return issubclass(kind, dict) and type(module) is str and module.startswith("dask.")


def _size_of_block(block: Any, kind: type[Any]) -> PlainSize | None:
    module: object = kind.__module__
    if module == "numpy":
        return _size_of_array(block) if kind.__name__ in _ARRAYS else None
    if kind.__name__ in ("DataFrame", "Series") and type(module) is str and module.partition(".")[0] == "pandas":
        return _size_of_frame(block)
    return None


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
