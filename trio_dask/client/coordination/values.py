"""Values as they travel to queues, variables and datasets and back: pickled, beside the keys of the futures in them."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from trio_dask.client.coordination.requests import RequestId
from trio_dask.client.engine import Engine
from trio_dask.client.nested_futures import check_cluster, futures_found
from trio_dask.errors import UsageError
from trio_dask.protocol.messages import Coordinate, EndRequest
from trio_dask.protocol.pickling import dump_value

Item: TypeAlias = tuple[tuple[bytes, ...], tuple[str, ...]]

LARGEST_VALUE_BYTES: Final = 16 * 2**20
"""The scheduler keeps the values, and a message carries each. Larger ones belong onto workers."""


def item_for(value: Any, engine: Engine | None = None, *, place: str = "a queue or variable") -> Item:
    """This value as it travels; `engine` is that of the client whose futures may be in it, if it is known.

    Raises:
      FutureCancelledError: a future in it was cancelled, or lost with its scheduler.
      SerializationError: it cannot be pickled.
      UsageError: it is too large, or a future in it belongs to another cluster.
    """
    futures = futures_found(value)
    if engine is not None:
        check_cluster(engine, futures)
    keys = tuple([future.key for future in futures])
    frames = tuple([bytes(frame) for frame in dump_value(value)])
    nbytes = sum(map(len, frames))
    if nbytes > LARGEST_VALUE_BYTES:
        raise UsageError(
            f"a value of {nbytes / 2**20:.0f} MiB is too large for {place}, whose limit is "
            f"{LARGEST_VALUE_BYTES >> 20} MiB: scatter it, and pass on the future"
        )
    return frames, keys


def values_of(request: RequestId, items: tuple[Item, ...]) -> list[Any]:
    """The values that an answer brought. Futures in them belong to the client that asked."""
    try:
        # Arrays are built on the buffers in place, so these must be writeable.
        return [request.engine.load((frames[0], *map(bytearray, frames[1:]))) for frames, _ in items]
    finally:
        if any(keys for _, keys in items):
            request.end(is_taken=True)


def forget(request: RequestId, items: tuple[Item, ...]) -> None:
    """Nobody takes the values of this answer. Under the lock."""
    if any(keys for _, keys in items):
        request.engine.core.tell(EndRequest(request.number, request.kind, request.name, True))


def put_back(request: RequestId, items: tuple[Item, ...]) -> None:
    """Nobody takes the values of this answer: they are the first that the next request gets. Under the lock."""
    if items:
        request.engine.core.request(
            lambda number: Coordinate(number, request.kind, request.name, "unget", (items,)), lambda _, __: None
        )
        forget(request, items)
