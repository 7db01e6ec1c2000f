"""Futures nested in lists, tuples, sets and dicts: find them, and replace them with values.

Where futures are only found, they may be in dataclasses and in collections of dask as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, TypeGuard, cast

from trio_dask.client.core.key_state import TERMINAL, KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.futures import BaseFuture, states_of
from trio_dask.client.task_errors import no_value
from trio_dask.client.wait_signals import ValueReader
from trio_dask.errors import UsageError

_MISSING: Final = object()
_SERIES: Final = (list, tuple, set, frozenset)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether this is a dictionary."""
    return isinstance(value, dict)


def is_series(value: object) -> TypeGuard[Collection[Any]]:
    """Whether this is a list, tuple, set or frozenset, perhaps a named tuple."""
    return isinstance(value, _SERIES)


def series_like(model: Collection[Any], items: Iterable[Any]) -> Any:
    """The items in a collection of the same kind; in a named tuple of the same type, unless some are left out."""
    items = list(items)
    make: Any = getattr(type(model), "_make", None)
    if make is None or len(items) != len(model):
        make = next(kind for kind in _SERIES if isinstance(model, kind))
    return make(items)


def futures_in(collection: Any) -> Iterator[BaseFuture]:
    """All futures in a nested collection, in order."""
    if isinstance(collection, BaseFuture):
        yield collection
    elif is_series(collection):
        for item in collection:
            if isinstance(item, BaseFuture):
                yield item
            else:
                yield from futures_in(item)
    elif is_dict(collection):
        for item in collection.values():
            yield from futures_in(item)


def all_futures_in(value: Any) -> Iterator[BaseFuture]:
    """All futures in a nested collection, in order, also those in dataclasses and in collections of dask."""
    if isinstance(value, BaseFuture):
        yield value
    elif is_series(value):
        for item in value:
            yield from all_futures_in(item)
    elif is_dict(value):
        for item in value.values():
            yield from all_futures_in(item)
    elif hasattr(value, "__dask_graph__"):
        from trio_dask.client.collections.collection_calls import futures_in_collection

        yield from futures_in_collection(value)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from all_futures_in(getattr(value, field.name, None))


def futures_found(value: Any) -> list[BaseFuture]:
    """All futures in this, each once, in order.

    Raises:
      FutureCancelledError: one of them was cancelled, or lost with its scheduler.
      DataLost: one of them stood for scattered data, which is lost.
    """
    futures = list(dict.fromkeys(all_futures_in(materialize(value))))
    for future in futures:
        if future.state.status in TERMINAL:
            raise no_value(future.state, "")
    return futures


def futures_given(given: Any, function: str) -> list[BaseFuture]:
    """The futures in the argument of a function that takes futures; none if the argument is an empty collection.

    A collection of dask without futures counts as an empty one. Raises `TypeError` for anything else without a future
    in it, such as a key.
    """
    given = materialize(given)
    futures = list(all_futures_in(given))
    if not futures and not _is_empty(given):
        raise TypeError(
            f"{function} takes futures, alone or in lists, tuples, sets and dicts, or collections of dask, "
            f"not {given!r:.60}"
        )
    return futures


def _is_empty(collection: Any) -> bool:
    if is_dict(collection):
        return all(map(_is_empty, collection.values()))
    return hasattr(collection, "__dask_graph__") or (is_series(collection) and all(map(_is_empty, collection)))


def materialize(collection: Any) -> Any:
    """A list in place of an iterator or range; anything else as it is."""
    return list(cast("Iterable[Any]", collection)) if isinstance(collection, Iterator | range) else collection


def leaves_out_failures(errors: str) -> bool:
    """Whether `gather` is to leave out what failed. Raises `UsageError`."""
    if errors not in ("raise", "skip"):
        raise UsageError(f"errors must be 'raise' or 'skip', not {errors!r}")
    return errors == "skip"


def check_cluster(engine: Engine, futures: Iterable[BaseFuture]) -> None:
    """Raise `UsageError` for a future of another cluster: this one knows nothing of it."""
    for future in futures:
        other = future.engine
        if other is not engine and other.address != engine.address:
            name = getattr(other.client, "name", "another client")
            raise UsageError(
                f"{future.key!r} is a future of {name}, which belongs to the scheduler at {other.address}: ask there"
            )


def states_given(engine: Engine, given: Any, function: str) -> list[KeyState]:
    """The states behind the futures that this function of the client was given.

    Raises `UsageError` for one of another cluster, and `TypeError` as `futures_given` does.
    """
    futures = futures_given(given, function)
    check_cluster(engine, futures)
    return states_of(futures)


def own_states(engine: Engine, futures: list[BaseFuture]) -> list[KeyState]:
    """The states behind these futures, each once.

    Raises `ValueError` for futures of another client.
    """
    states = states_of(futures)
    for future in futures:
        if future.engine is not engine:
            raise ValueError(f"{future.key!r} belongs to another client; gather it there")
    return list(dict.fromkeys(states))


def values_of(engine: Engine, reader: ValueReader, states: list[KeyState], *, skip: bool) -> dict[KeyState, Any]:
    """The values that were read; with `skip` those that failed are left out, else the first of them is raised."""
    failed, frames = reader.failed, reader.frames
    if failed is not None and not skip:
        raise no_value(failed, reader.reasons[failed])
    load = engine.load
    return {state: load(frames[state]) for state in states if state in frames}


def with_values(collection: Any, values: Mapping[KeyState, Any]) -> Any:
    """The collection with values for futures. One without a value is missing in its container; alone, it is None."""
    found = _with_values(collection, values)
    return None if found is _MISSING else found


def _with_values(collection: Any, values: Mapping[KeyState, Any]) -> Any:
    if isinstance(collection, BaseFuture):
        return values.get(collection.state, _MISSING)
    if is_dict(collection):
        pairs = [(key, _with_values(item, values)) for key, item in collection.items()]
        return {key: item for key, item in pairs if item is not _MISSING}
    if not is_series(collection):
        return collection
    items = [
        found
        for item in collection
        if (found := values.get(item.state, _MISSING) if isinstance(item, BaseFuture) else _with_values(item, values))
        is not _MISSING
    ]
    return series_like(collection, items)
