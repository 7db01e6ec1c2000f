"""One end of a connection for values, without a socket or a clock: what may come, and what goes out in which order.

A message that has `sizes` is followed by that many raw bytes, unframed: first the pickle, then each out-of-band buffer.
Before it, a `MemoryOffered` may say that these bytes can be read from the sender's memory instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from trio_dask.errors import ProtocolError
from trio_dask.protocol.codec import DATA_PLANE, decode, encode
from trio_dask.protocol.frames import Kind, encode_frame, first_frame
from trio_dask.protocol.messages import ActorAnswer, ActorCall, Call, CallResult, MemoryOffered, Message, Put, Value
from trio_dask.protocol.wire_constants import MAX_BUFFERS, MAX_DATA_MESSAGE

SMALL_BYTES: Final = 64 * 2**10
"""Buffers up to this size are copied, to send or receive several at once."""

_PIECE_BYTES = 4 * 2**20
"""What one call sends at most. Over TLS a larger piece would stall the event loop while it is encrypted."""


class Announced(NamedTuple):
    """A message, the sizes of the buffers that belong to it, and where they can be read if they do not follow."""

    message: Message
    sizes: tuple[int, ...]
    offer: MemoryOffered | None


class DataLink:
    """Reads what a peer sends; values of more than `max_bytes` are refused, if that is given."""

    __slots__ = ("_max_bytes", "_offer", "_received")

    def __init__(self, max_bytes: int | None = None, received: bytes = b"") -> None:
        self._max_bytes = max_bytes
        self._received = memoryview(received)  # what has come beyond what was asked for
        self._offer: MemoryOffered | None = None

    @property
    def has_received(self) -> bool:
        """Whether something is there that nobody has asked for yet."""
        return bool(self._received)

    @property
    def received_bytes(self) -> int:
        """How much of that there is."""
        return len(self._received)

    def receive(self, data: bytes) -> None:
        """Put what has come behind what is there."""
        self._received = memoryview(bytes(self._received) + data if self._received else data)

    def next_message(self) -> Message | None:
        """The next message by itself, or None while it is incomplete. Raises `ProtocolError` for what is none."""
        while (found := first_frame(self._received, MAX_DATA_MESSAGE)) is not None:
            frame, end = found
            self._received = self._received[end:]
            messages = decode(frame.payload, DATA_PLANE) if frame.kind == Kind.RECORDS else []
            if len(messages) > 1:
                raise ProtocolError("several messages came in one frame of the data plane")
            if messages:
                return messages[0]
        return None

    def next_announced(self) -> Announced | None:
        """The next message, whose buffers have to be filled before the one after it; None while it is incomplete.

        Raises `ProtocolError` for what the peer may not send or announce.
        """
        while (message := self.next_message()) is not None:
            if self._offer is None and isinstance(message, MemoryOffered):
                self._offer = message
                continue
            offer, self._offer = self._offer, None
            sizes = self._checked_sizes(message)
            if offer is not None and len(offer.places) != len(sizes):
                raise ProtocolError(f"{len(offer.places)} buffers were offered for the {len(sizes)} of a message")
            return Announced(message, sizes, offer)
        return None

    def _checked_sizes(self, message: Message) -> tuple[int, ...]:
        sizes = _sizes(message)
        if len(sizes) > MAX_BUFFERS or min(sizes, default=0) < 0:
            raise ProtocolError(f"a {type(message).__name__} announced impossible sizes")
        if self._max_bytes is not None and sum(sizes) > self._max_bytes:
            raise ProtocolError(
                f"a {type(message).__name__} announced {sum(sizes)} bytes; {self._max_bytes} is the limit"
            )
        return sizes

    def fill(self, buffer: memoryview) -> memoryview:
        """Fill a buffer with what has come; gives the part of it that is still empty."""
        count = min(len(buffer), len(self._received))
        buffer[:count] = self._received[:count]
        self._received = self._received[count:]
        return buffer[count:]


def frame_of(message: Message) -> bytes:
    """The frame of a message of the data plane."""
    return encode_frame(Kind.RECORDS, encode((message,)))


def check_announced(message: Message, views: Sequence[memoryview]) -> None:
    """Raises `ValueError` if a message does not announce the sizes of these buffers."""
    if (sizes := tuple(map(len, views))) != _sizes(message):
        raise ValueError(f"a {type(message).__name__} announces {_sizes(message)} bytes, not {sizes}")


def pieces(frame: bytes, views: Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    """What to send, in order: small things together, large ones in parts."""
    small: list[bytes | memoryview] = [frame]
    size = len(frame)
    for view in views:
        if size + len(view) > SMALL_BYTES:
            yield b"".join(small)
            small.clear()
            size = 0
        if len(view) > SMALL_BYTES:
            for start in range(0, len(view), _PIECE_BYTES):
                yield view[start : start + _PIECE_BYTES]
        else:
            small.append(view)
            size += len(view)
    if small:
        yield b"".join(small)


def _sizes(message: Message) -> tuple[int, ...]:
    return message.sizes if isinstance(message, Value | Put | Call | CallResult | ActorCall | ActorAnswer) else ()
