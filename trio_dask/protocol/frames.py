"""Cut a stream of bytes into frames, and nothing else: no socket, no clock, any chunking.

A frame is a header of eight bytes and a payload: magic (1), kind (1), zero (2), length of the payload (4, big-endian).
The magic shows at once when the two sides have lost each other; the zeroes leave room for later needs.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from trio_dask.errors import ProtocolError
from trio_dask.protocol.wire_constants import MAX_CONTROL_FRAME

_MAGIC = 0xDA
_HEADER = Struct(">BBHI")
HEADER_SIZE = _HEADER.size


class Kind(IntEnum):
    """What the payload of a frame is."""

    RECORDS = 1
    """Messages, see `codec`."""
    PING = 2
    """Nothing: the sender is alive. Never answered, since each side sends its own."""
    SHARED = 3
    """Where a piece of a blob lies in the sender's memory, instead of the piece itself."""
    MAPPED = 4
    """The receiver has mapped all of a shared blob, so the sender may let go of it. If empty: the receiver can map."""


class Frame(NamedTuple):
    """One frame. The payload is a view that holds only until the decoder is fed again."""

    kind: int
    payload: memoryview


def frame_header(kind: Kind, length: int) -> bytes:
    """What stands before a payload of this length."""
    return _HEADER.pack(_MAGIC, kind, 0, length)


def encode_frame(kind: Kind, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return frame_header(kind, len(payload)) + payload


PING_FRAME = encode_frame(Kind.PING)


_LARGE = 128 * 2**10
_MOST_ROOM = 2 * 2**20  # the most that is allocated for an announced frame; our peers send no larger ones


class FrameDecoder:
    """Takes bytes as they come and gives the frames that are complete.

    What a header announces is checked when the header is there. The rest of a large frame may be received where it
    belongs, in the `room` for it, and not be copied.
    """

    def __init__(self, max_length: int = MAX_CONTROL_FRAME) -> None:
        self._max_length = max_length
        self._partial = bytearray()
        self._missing = 0  # bytes that the partial frame, or its header, still needs
        self.room: memoryview | None = None
        """Where the rest of a large frame belongs; None if what comes next is for `feed`."""
        self._large = memoryview(b"")  # that frame in its full length
        self._memory: bytearray | None = None  # for large frames, one after the other

    def filled(self, count: int) -> list[Frame]:
        """`count` bytes were received into `room`. Gives the frame if it is complete."""
        large, room = self._large, self.room
        assert room is not None
        if count < len(room):
            self.room = room[count:]
            return []
        self.room = None
        kind, _ = _read_header(large, 0, self._max_length)
        return [Frame(kind, large[HEADER_SIZE:])]

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that these bytes complete, in order.

        Whole frames inside `data` are not copied, so their payloads are gone when the caller reuses its buffer.
        Raises `ProtocolError` on a header that is wrong; the stream is of no more use then.
        """
        view = memoryview(data)
        end = len(view)
        frames: list[Frame] = []
        position = 0
        if (room := self.room) is not None:
            position = min(end, len(room))
            room[:position] = view[:position]
            frames = self.filled(position)
            if not frames:
                return frames
            self._memory = None  # the frame has it until the caller is done with this batch
        elif self._partial:
            position = self._complete(view, frames)
            if self._partial:
                self._make_room()
                return frames
        max_length = self._max_length
        while (start := position + HEADER_SIZE) <= end:
            kind, length = _read_header(view, position, max_length)
            if start + length > end:
                self._missing = start + length - end
                break
            position = start + length
            frames.append(Frame(kind, view[start:position]))
        else:
            self._missing = start - end
        if position < end:
            self._partial = bytearray(view[position:])
            self._make_room()
        return frames

    def _make_room(self) -> None:
        """For the rest of a partial frame that is large and whose header is there."""
        partial, missing = self._partial, self._missing
        if missing >= _LARGE and len(partial) >= HEADER_SIZE and len(partial) + missing <= _MOST_ROOM:
            if self._memory is None:
                self._memory = bytearray(_MOST_ROOM)
            self._large = memoryview(self._memory)[: len(partial) + missing]
            self._large[: len(partial)] = partial
            self.room = self._large[len(partial) :]
            self._partial, self._missing = bytearray(), 0

    def _complete(self, view: memoryview, frames: list[Frame]) -> int:
        """Go on with the partial frame; returns how much of the view belongs to it."""
        partial = self._partial
        position = 0
        while True:
            piece = view[position : position + self._missing]
            had_header = len(partial) >= HEADER_SIZE
            partial += piece
            position += len(piece)
            self._missing -= len(piece)
            if self._missing:
                return position
            kind, length = _read_header(partial, 0, self._max_length)
            if had_header:
                self._partial = bytearray()
                frames.append(Frame(kind, memoryview(partial)[HEADER_SIZE:]))
                return position
            self._missing = length


def first_frame(data: memoryview, max_length: int) -> tuple[Frame, int] | None:
    """The frame at the start of `data` and where it ends, or None while it is incomplete.

    For streams on which not everything is framed. Raises `ProtocolError` on a header that is wrong.
    """
    if len(data) < HEADER_SIZE:
        return None
    kind, length = _read_header(data, 0, max_length)
    end = HEADER_SIZE + length
    return (Frame(kind, data[HEADER_SIZE:end]), end) if len(data) >= end else None


def _read_header(data: bytearray | memoryview, position: int, max_length: int) -> tuple[int, int]:
    magic, kind, zero, length = _HEADER.unpack_from(data, position)
    if magic != _MAGIC or zero or kind not in _KINDS:
        raise ProtocolError(f"no frame begins with {bytes(data[position : position + HEADER_SIZE]).hex(' ')}")
    if length > max_length:
        raise ProtocolError(f"a frame of {length} bytes was announced; {max_length} is the limit")
    return kind, length


_KINDS = frozenset(map(int, Kind))
