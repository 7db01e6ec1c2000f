"""Results and scattered data: proof that they can be pickled, their size, and their frames.

Frames are `[pickle, *buffers]`. The pickle copies no large `bytes` objects: it then consists of several pieces, and the
first frame is a head with their number (0x01 and a count of 4 bytes; a pickle starts with 0x80).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BufferedReader, BytesIO, RawIOBase
from pickle import PickleBuffer
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeVar

from trio_dask.errors import SerializationError
from trio_dask.protocol.captured_values import CarriesState
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.pickle_errors import describe_culprit, users_own
from trio_dask.protocol.pickled_definitions import DefinitionPickler, class_blob, load_shared
from trio_dask.protocol.picklers import (
    CACHED_FUNCTION,
    ORDINARY,
    PICKLE_PROTOCOL,
    PICKLING_FAILURES,
    Buffer,
    names_what_only_we_have,
    ordinary_reductions,
    travels_by_value,
    type_name,
)
from trio_dask.protocol.plain_sizes import plain_size
from trio_dask.protocol.wire_constants import MAX_BUFFERS

IN_BAND_BYTES = 1 << 12
"""Smaller buffers are pickled in band, which costs less than a frame."""

MAX_OUT_OF_BAND = MAX_PIECES = MAX_BUFFERS // 2 - 2
"""Further buffers are pickled in band and further pieces are copied: a receiver takes a bounded number of frames."""

PIECE_BYTES = 1 << 20
"""A single write of the pickler (a large bytes object) becomes a frame without a copy from this size on."""

LARGEST_FRAME_BYTES = 1 << 18
"""The pickler writes whole opcodes, in frames below this size; a larger write is the content of one object."""

_SCALARS: dict[type[Any], str] = {int: "int", float: "float", bool: "bool", type(None): "NoneType", complex: "complex"}
_STRINGS: dict[type[Any], str] = {str: "str", bytes: "bytes"}
_SHORT = 1 << 10
_PIECES = 0x01
_PIECES_HEAD_BYTES = 5


class PickledValue(NamedTuple):
    """Proof that a value can be pickled, the size of all its frames in bytes, and the qualified name of its type.

    `inline` is the whole pickle if it is small enough for a message; `load_value([inline])` loads it. `copied_bytes` is
    the most memory that `dump_value` takes: it copies what it pickles in band.
    """

    inline: bytes | None
    nbytes: int
    type_name: str
    copied_bytes: int = 0


class PickleFile(Protocol):
    """Where `stream_value` writes a pickle."""

    def write(self, data: bytes, /) -> object:
        """Take the next part."""
        ...

    def restart(self) -> None:
        """Drop everything written: the pickle starts again."""
        ...


class ByReferencePickler(pickle.Pickler):
    """Ordinary pickle, with classes by value as blobs, which the other end loads only once."""

    dispatch_table = ORDINARY

    def reducer_override(self, obj: Any, /) -> Any:
        kind = kind_of(obj)
        if kind is FunctionType or kind is CACHED_FUNCTION:
            if travels_by_value(obj):
                raise pickle.PicklingError("by value")  # cloudpickle's turn: functions may share what they capture
        elif issubclass(kind, type) and travels_by_value(obj):
            return load_shared, class_blob(obj)
        return NotImplemented


class SharingPickler(DefinitionPickler):
    """The same with cloudpickle, for objects that ordinary pickle refuses, and for classes that carry state."""

    def reducer_override(self, obj: Any, /) -> Any:
        if issubclass(type(obj), type) and travels_by_value(obj):
            try:
                return load_shared, class_blob(obj)
            except CarriesState:
                pass
        return super().reducer_override(obj)


class _Sink:
    """The file of a pickler: counts bytes and keeps buffers; subclasses also keep or pass on the pickle."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.names_ours = False
        """Whether the pickle may refer by name to what only this process has."""
        self.buffers: list[memoryview] = []

    def write(self, data: bytes, /) -> None:
        self.nbytes += len(data)
        if len(data) < LARGEST_FRAME_BYTES and names_what_only_we_have(data):
            self.names_ours = True

    def add_buffer(self, buffer: PickleBuffer) -> bool:
        """Whether to pickle the buffer in band."""
        try:
            content = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if content.nbytes < IN_BAND_BYTES or len(self.buffers) >= MAX_OUT_OF_BAND:
            return True
        self.nbytes += content.nbytes
        self.buffers.append(content)
        return False


class _Meter(_Sink):
    """Keeps the pickle while it is small."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes
        self.kept: list[bytes] = []

    def write(self, data: bytes, /) -> None:
        super().write(data)
        if self.nbytes <= self.limit_bytes:
            self.kept.append(data)
        else:
            self.kept.clear()


class _Stream(_Sink):
    """Passes the pickle on while the pickler makes it."""

    def __init__(self, file: PickleFile) -> None:
        super().__init__()
        file.restart()
        self.file = file

    def write(self, data: bytes, /) -> None:
        super().write(data)
        self.file.write(data)


class _Frames(_Sink):
    """Keeps everything, large writes without a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.small = BytesIO()

    def write(self, data: bytes, /) -> None:
        super().write(data)
        if len(data) < PIECE_BYTES or len(self.pieces) >= MAX_PIECES:
            self.small.write(data)
        else:
            self.cut()
            self.pieces.append(data)

    def cut(self) -> None:
        if self.small.tell():
            self.pieces.append(self.small.getvalue())
            self.small = BytesIO()


_SinkType = TypeVar("_SinkType", bound=_Sink)


def _pickle(value: Any, new_sink: Callable[[], _SinkType]) -> _SinkType:
    sink = new_sink()
    if kind_of(value).__module__ != "__main__":
        # Without a hook that sees every object it takes half the time. What needs the hook shows in the pickle.
        pickler = pickle.Pickler(sink, PICKLE_PROTOCOL, buffer_callback=sink.add_buffer)
        pickler.dispatch_table = ordinary_reductions()
        try:
            pickler.dump(value)
            if not sink.names_ours:
                return sink
        except PICKLING_FAILURES:  # the next one may know how
            pass
        sink = new_sink()
    try:
        ByReferencePickler(sink, PICKLE_PROTOCOL, buffer_callback=sink.add_buffer).dump(value)
        if not sink.names_ours:
            return sink
    except PICKLING_FAILURES:  # cloudpickle may know how
        pass
    sink = new_sink()
    SharingPickler(sink, PICKLE_PROTOCOL, buffer_callback=sink.add_buffer).dump(value)
    return sink


def _pickle_or_complain(value: Any, new_sink: Callable[[], _SinkType], name: str) -> _SinkType:
    try:
        return _pickle(value, new_sink)
    except PICKLING_FAILURES as error:  # of the user's objects: the result of the task
        raise SerializationError(describe_culprit(value, f"the {name}", name, _can_pickle, error)) from users_own(error)


def _can_pickle(value: Any) -> bool:
    try:
        _pickle(value, _Sink)
    except PICKLING_FAILURES:  # that is the answer
        return False
    return True


def pickle_value(value: Any, inline_limit: int) -> PickledValue:
    """Prove that `value` can be pickled and measure it, keeping at most `inline_limit` bytes.

    Raises `SerializationError`, which names the type and what in it cannot be pickled.
    """
    kind = kind_of(value)
    name = _SCALARS.get(kind)
    if name is None and kind in _STRINGS and len(value) <= _SHORT:
        name = _STRINGS[kind]
    if name is not None:
        data = pickle.dumps(value, PICKLE_PROTOCOL)
        size = len(data)
        return PickledValue(data if size <= inline_limit else None, size, name)
    if _is_long_text(value) and inline_limit < len(value):
        nbytes = sum(map(len, _pickle_text(value)))
        return PickledValue(None, nbytes, "str", nbytes)
    sink = _pickle_or_complain(value, partial(_Meter, inline_limit), "result")
    inline = b"".join(sink.kept) if sink.kept and not sink.buffers else None
    copied_bytes = 0 if kind is bytes or kind is bytearray else sink.nbytes - sum(view.nbytes for view in sink.buffers)
    return PickledValue(inline, sink.nbytes, type_name(kind), copied_bytes)


def measure_value(value: Any, inline_limit: int = 0) -> PickledValue:
    """The same; what can certainly be pickled, and is too large to be kept, is not pickled for it."""
    if kind_of(value) in _SCALARS:
        return pickle_value(value, inline_limit)
    size = plain_size(value)
    if size is None or size.nbytes <= inline_limit:
        return pickle_value(value, inline_limit)
    return PickledValue(None, size.nbytes, type_name(kind_of(value)), size.copied_bytes)


def dump_value(value: Any) -> list[Buffer]:
    """The frames of `value`, without a copy of its large buffers and bytes, which live and change with it.

    Raises `SerializationError`.
    """
    if _is_long_text(value):
        return _in_pieces(list(_pickle_text(value)))
    sink = _pickle_or_complain(value, _Frames, "value")
    sink.cut()
    return [*_in_pieces(sink.pieces), *sink.buffers]


def stream_value(value: Any, file: PickleFile) -> list[memoryview]:
    """Write the pickle of `value` into a file as it is made, which takes hardly any memory.

    Returns: its buffers, which live and change with it. Pickle and buffers are frames for `load_value`.

    Raises:
      SerializationError: it cannot be pickled.
      BaseException: `file.write` raised it, and it is not an `Exception`: those count as failures of the value.
    """
    if _is_long_text(value):
        file.restart()
        for piece in _pickle_text(value):
            file.write(piece)
        return []
    return _pickle_or_complain(value, partial(_Stream, file), "value").buffers


def copied_bytes(sizes: Sequence[int]) -> int:
    """About how much memory `load_value` takes for frames of these sizes: it does not copy out-of-band buffers."""
    return sum(sizes) if sizes[0] == _PIECES_HEAD_BYTES else sizes[0]


def _in_pieces(pieces: list[bytes]) -> list[Buffer]:
    if len(pieces) == 1:
        return [pieces[0]]
    return [bytes([_PIECES]) + len(pieces).to_bytes(_PIECES_HEAD_BYTES - 1, "little"), *pieces]


def _is_long_text(value: Any) -> bool:
    return kind_of(value) is str and len(value) >= PIECE_BYTES


def _pickle_text(text: str) -> Iterator[bytes]:
    """The pickle of a long string, part by part.

    A pickler would encode all of it at once and, unless it is ASCII, keep the encoding with the string for good.
    """
    size = len(text) if text.isascii() else sum(map(len, _encoded(text)))
    yield pickle.PROTO + bytes([PICKLE_PROTOCOL]) + pickle.BINUNICODE8 + size.to_bytes(8, "little")
    yield from _encoded(text)
    yield pickle.STOP


def _encoded(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), PIECE_BYTES):
        yield text[start : start + PIECE_BYTES].encode("utf-8", "surrogatepass")


def load_value(frames: Sequence[Buffer]) -> Any:
    """The value of these frames. Its arrays use them without a copy, and are writeable in a `bytearray`.

    Raises whatever loading the user's objects raises.
    """
    head = frames[0]
    if head[0] != _PIECES:
        return pickle.loads(head, buffers=frames[1:])
    count = 1 + int.from_bytes(head[1:], "little")
    return pickle.Unpickler(BufferedReader(_Pieces(frames[1:count])), buffers=frames[count:]).load()


class _Pieces(RawIOBase):
    """A file that consists of several pieces."""

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self.pieces = iter(pieces)
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any, /) -> int:
        """Copy as much as fits from one piece; 0 at the end."""
        while not self.rest and (piece := next(self.pieces, None)) is not None:
            self.rest = memoryview(piece)
        count = min(len(target), len(self.rest))
        target[:count], self.rest = self.rest[:count], self.rest[count:]
        return count
