"""Results and scattered data: proof that they can be pickled, their size, and their frames.

Frames are `[pickle, *buffers]`. Large `bytes` objects inside a value are not copied into the pickle either: then the
first frame is a head that says in how many pieces the pickle comes (0x01 and a count of 4 bytes; a pickle starts with
0x80).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pickle import PickleBuffer
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

from trio_dask.errors import SerializationError
from trio_dask.protocol.captures import CarriesState
from trio_dask.protocol.culprits import describe_culprit, users_own
from trio_dask.protocol.definitions import DefinitionPickler, class_blob, load_shared
from trio_dask.protocol.picklers import (
    CACHED_FUNCTION,
    PICKLING_FAILURES,
    PROTOCOL,
    Buffer,
    kind_of,
    names_what_only_we_have,
    travels_by_value,
    type_name,
)

__all__ = ["ByReferencePickler", "PickledValue", "SharingPickler", "dump_value", "load_value", "pickle_value"]

IN_BAND_BYTES = 1 << 12
"""Buffers smaller than this are pickled in band: a frame of their own would cost more."""

PIECE_BYTES = 1 << 20
"""A single write of the pickler from this size on (a large bytes object) becomes a frame without being copied."""

LARGEST_FRAME_BYTES = 1 << 17
"""The pickler writes whole opcodes, in frames below this size; what is larger is the content of one object."""

_SCALARS: dict[type[Any], str] = {int: "int", float: "float", bool: "bool", type(None): "NoneType", complex: "complex"}
_STRINGS: dict[type[Any], str] = {str: "str", bytes: "bytes"}
_SHORT = 1 << 10
_PIECES = 0x01


class PickledValue(NamedTuple):
    """Proof that a value can be pickled, the size of all its frames in bytes, and the qualified name of its type.

    `inline` is the whole pickle if it is small enough to ride along in a message; `load_value([inline])` loads it.
    """

    inline: bytes | None
    nbytes: int
    type_name: str


class ByReferencePickler(pickle.Pickler):
    """Ordinary pickle; classes by value ride along as blobs, which the other end loads only once."""

    def reducer_override(self, obj: Any, /) -> Any:
        kind = kind_of(obj)
        if kind is FunctionType or kind is CACHED_FUNCTION:
            if travels_by_value(obj):
                raise pickle.PicklingError("by value")  # cloudpickle's turn: functions may share what they capture
        elif issubclass(kind, type) and travels_by_value(obj):
            return load_shared, class_blob(obj)
        return NotImplemented


class SharingPickler(DefinitionPickler):
    """The same by way of cloudpickle, for what ordinary pickle cannot do, and for classes that carry state."""

    def reducer_override(self, obj: Any, /) -> Any:
        if issubclass(type(obj), type) and travels_by_value(obj):
            try:
                return load_shared, class_blob(obj)
            except CarriesState:
                pass
        return super().reducer_override(obj)


class _Sink:
    """Where a pickle goes: counts bytes and buffers; subclasses also keep some."""

    def __init__(self) -> None:
        self.nbytes: int = 0
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
        if content.nbytes < IN_BAND_BYTES:
            return True
        self.nbytes += content.nbytes
        self.buffers.append(content)
        return False


class _Meter(_Sink):
    """Keeps the pickle only as long as it is small."""

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


class _Frames(_Sink):
    """Keeps everything; large writes as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.small = BytesIO()

    def write(self, data: bytes, /) -> None:
        super().write(data)
        if len(data) < PIECE_BYTES:
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
    try:
        ByReferencePickler(sink, PROTOCOL, buffer_callback=sink.add_buffer).dump(value)
        if not sink.names_ours:
            return sink
    except PICKLING_FAILURES:
        pass  # cloudpickle may know how
    sink = new_sink()
    SharingPickler(sink, PROTOCOL, buffer_callback=sink.add_buffer).dump(value)
    return sink


def _pickle_or_complain(value: Any, new_sink: Callable[[], _SinkType], name: str) -> _SinkType:
    try:
        return _pickle(value, new_sink)
    except PICKLING_FAILURES as error:
        raise SerializationError(describe_culprit(value, f"the {name}", name, _can_pickle, error)) from users_own(error)


def _can_pickle(value: Any) -> bool:
    try:
        _pickle(value, _Sink)
    except PICKLING_FAILURES:
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
        data = pickle.dumps(value, PROTOCOL)
        size = len(data)
        return PickledValue(data if size <= inline_limit else None, size, name)
    new_meter: Callable[[], _Meter] = partial(_Meter, inline_limit)
    sink: _Meter = _pickle_or_complain(value, new_meter, "result")
    inline = b"".join(sink.kept) if sink.kept and not sink.buffers else None
    return PickledValue(inline, sink.nbytes, type_name(kind))


def dump_value(value: Any) -> list[Buffer]:
    """The frames of `value`, without a copy of its large parts: they live and change with it.

    Raises `SerializationError`.
    """
    sink = _pickle_or_complain(value, _Frames, "value")
    sink.cut()
    if len(sink.pieces) == 1:
        return [sink.pieces[0], *sink.buffers]
    return [bytes([_PIECES]) + len(sink.pieces).to_bytes(4, "little"), *sink.pieces, *sink.buffers]


def load_value(frames: Sequence[Buffer]) -> Any:
    """The value whose frames these are. Arrays use them as they are: from a `bytearray` they can be written to.

    Raises whatever the loading of the user's objects raises.
    """
    head = frames[0]
    if head[0] != _PIECES:
        return pickle.loads(head, buffers=frames[1:])
    count = 1 + int.from_bytes(head[1:], "little")
    return pickle.Unpickler(_PiecesFile(frames[1:count]), buffers=frames[count:]).load()


class _PiecesFile:
    """What an unpickler needs of a file, over pieces that are read in turn."""

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self.pieces = iter(pieces)
        self.rest = memoryview(b"")

    def readinto(self, target: Buffer, /) -> int:
        view = memoryview(target)
        done = 0
        while done < len(view):
            if not self.rest:
                piece = next(self.pieces, None)
                if piece is None:
                    break
                self.rest = memoryview(piece)
            count = min(len(self.rest), len(view) - done)
            view[done : done + count] = self.rest[:count]
            self.rest = self.rest[count:]
            done += count
        return done

    def read(self, size: int, /) -> bytes:
        data = bytearray(size)
        return bytes(data[: self.readinto(data)])

    def readline(self) -> bytes:
        """Only text protocols read lines."""
        raise pickle.UnpicklingError("not a pickle of ours")
