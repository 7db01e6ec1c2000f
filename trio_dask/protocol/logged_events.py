"""Events as they travel: pickled by the client or the task that logs them, and opaque to the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, cast

import msgpack

from trio_dask.errors import UsageError
from trio_dask.parsing import checked_text
from trio_dask.protocol.messages import LogEvent
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import dump_value
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH

LARGEST_EVENT_BYTES: Final = 2**20


def log_message(topic: str | Collection[str], event: Any) -> LogEvent:
    """The message that logs this event under a topic, or under several.

    Raises `UsageError` if it is too large, or a topic is no text, and `SerializationError`.
    """
    topics = (topic,) if isinstance(topic, str) else tuple(topic)
    for name in topics:
        check_topic(name)
    payload = msgpack.packb([bytes(frame) for frame in dump_value(event)])
    if len(payload) > LARGEST_EVENT_BYTES:
        raise UsageError(f"an event of {len(payload)} bytes is too large; the limit is 1 MiB")
    return LogEvent(topics, payload)


def check_topic(name: Any) -> None:
    """Raise `UsageError` unless this can be the name of a topic."""
    if not isinstance(name, str):
        raise UsageError(f"the name of a topic is a text, not {name!r:.60}")
    checked_text("the name of a topic", name, MAX_KEY_LENGTH)


def load_event(payload: Any, load: Callable[[Sequence[Buffer]], Any]) -> Any:
    """What was logged: a value that `load` unpickles, or the plain value of a plugin."""
    if not isinstance(payload, bytes):
        return payload[0]
    head, *buffers = cast("list[bytes]", msgpack.unpackb(payload))
    return load((head, *map(bytearray, buffers)))
