"""Messages to msgpack rows and back; whatever a peer sends gives messages or a `ProtocolError`.

The payload of one frame is a msgpack array of rows, each row `[tag, *fields]`. For every message type a check of its
row is compiled once, from the annotations of its fields, so that what leaves `decode` has the shape that its type
promises: the number of fields, the type of each, the types inside tuples, finite numbers only, and where anything is
allowed (`Any`) plain values only, nested at most `MAX_DEPTH` deep. What the values *mean* is for the cores to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import NoneType, UnionType
from typing import Any, NamedTuple, NoReturn, TypeGuard, cast, get_args, get_origin, get_type_hints

import msgpack

from trio_dask.errors import ProtocolError, SerializationError
from trio_dask.protocol import messages
from trio_dask.protocol.frames import Kind
from trio_dask.protocol.messages import TAGS, Message
from trio_dask.protocol.wire_constants import MAX_CONTROL_FRAME, MAX_DEPTH, MAX_ITEMS, TOO_LONG

tag_of_type: Mapping[type[Any], int] = {kind: tag for tag, kind in TAGS.items()}

# One packer for all: it is used by one call at a time, because it neither releases the GIL nor calls Python code.
_pack = cast("Callable[[object], bytes]", msgpack.Packer().pack)


# ------------------------------------------------------------------------------------------------------ encoding

BLOB_ROW_BYTES = 512 * 2**10
"""Pieces of blobs from this size on have a frame each; as rows of one, all would be copied as soon as one waits."""


class OwnFrame:
    """What has a frame to itself; its content is not copied before it is sent."""

    __slots__ = ("_size", "kind", "parts")

    def __init__(self, kind: Kind, *parts: bytes | memoryview) -> None:
        self.kind = kind
        self.parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        """How long its payload is, and so how much memory it takes as long as it waits."""
        return self._size


Row = bytes | OwnFrame

Share = Callable[[messages.Blob], "bytes | None"]
"""Gives the payload of a frame that says where a blob lies which the peer can map; None for another blob."""


def _blob_frame(blob: messages.Blob) -> OwnFrame:
    fields = map(_pack, (tag_of_type[messages.Blob], blob.digest, blob.total))
    head = b"".join((b"\x91\x94", *fields, b"\xc6", len(blob.data).to_bytes(4, "big")))
    return OwnFrame(Kind.RECORDS, head, blob.data)


def encode(batch: Iterable[Message]) -> bytes:
    """The payload of one frame that carries these messages.

    Raises `SerializationError` when a field cannot be put on the wire, which only a bug on this side can cause.
    """
    rows = encode_rows(batch)
    parts = [b"".join(row.parts)[1:] if isinstance(row, OwnFrame) else row for row in rows]
    return rows_header(len(rows)) + b"".join(parts)


def encode_rows(batch: Iterable[Message], share: Share | None = None) -> list[Row]:
    """Each message as a row of its own; several rows for a list that is longer than one message may be.

    In place of a `Reply` that is too long goes one that says so. Raises `SerializationError`, naming the message.
    """
    rows: list[Row] = []
    for message in batch:
        if type(message) is messages.Blob:
            if share is not None and (payload := share(message)):
                rows.append(OwnFrame(Kind.SHARED, payload))
                continue
            if len(message.data) >= BLOB_ROW_BYTES:
                rows.append(_blob_frame(message))
                continue
        try:
            row = _pack((tag_of_type[type(message)], *message))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SerializationError(f"a {type(message).__name__} cannot be sent: {error!r}") from error
        if len(row) <= MAX_ITEMS:
            rows.append(row)
        elif isinstance(message, messages.Reply):
            rows.append(_reply_row(message, row))
        else:
            rows += _cut(message, row)
    return rows


def _reply_row(message: messages.Reply, row: bytes) -> bytes:
    """The row of a long answer, or one that says that it is too long: the session goes on for either end."""
    if len(row) <= _MAX_ROW and not _has_long_part(message.payload):
        return row
    text = f"the answer has {len(row) / 2**20:.0f} MiB, which is more than a message can carry: ask for a part of it"
    return _pack((tag_of_type[messages.Reply], message.request, (TOO_LONG, text)))


def _has_long_part(value: object) -> bool:
    if isinstance(value, dict):
        parts = cast("dict[object, object]", value)
        return len(parts) > MAX_ITEMS or any(map(_has_long_part, parts.values()))
    if isinstance(value, tuple | list):
        items = cast("tuple[object, ...]", value)
        return len(items) > MAX_ITEMS or any(map(_has_long_part, items))
    return False


def rows_header(count: int) -> bytes:
    """The bytes before this many rows."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 2**16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def _cut(message: Message, row: bytes) -> Iterator[bytes]:
    """The row of a big message, or the rows of several shorter ones where it is one long list."""
    fields = cast("tuple[Any, ...]", message)
    lists = [field for field in fields if _is_tuple(field)]
    if not any(len(items) > MAX_ITEMS for items in lists):
        yield _within_limit(message, row)
        return
    if len(lists) > 1 or lists[0] is not fields[0]:
        raise SerializationError(f"a {type(message).__name__} has a list that is too long for one message")
    for start in range(0, len(lists[0]), MAX_ITEMS):
        part = lists[0][start : start + MAX_ITEMS]
        yield _within_limit(message, _pack((tag_of_type[type(message)], part, *fields[1:])))


def _within_limit(message: Message, row: bytes) -> bytes:
    if len(row) > _MAX_ROW:
        raise SerializationError(f"a {type(message).__name__} of {len(row)} bytes is larger than a frame can be")
    return row


_MAX_ROW = MAX_CONTROL_FRAME - 8  # less what `rows_header` puts before it


# ------------------------------------------------------------------------------------------------------ decoding


class _Builders(dict[int, Callable[[Any], Message]]):
    """A builder for each tag, compiled when the first such row comes, so that a program starts sooner."""

    def __init__(self, kinds: Mapping[int, type[Any]]) -> None:
        super().__init__()
        self._kinds = kinds

    def __missing__(self, tag: int) -> Callable[[Any], Message]:
        builder = self[tag] = _compile_builder(self._kinds[tag])
        return builder


class Allowed:
    """The messages that may arrive from one kind of peer: those of `union`, and `Goodbye`. Errors name it `who`."""

    __slots__ = ("builders", "kinds", "who")

    def __init__(self, who: str, union: Any) -> None:
        self.who = who
        kinds = (messages.Goodbye, *(get_args(union) or (union,)))
        self.kinds: Mapping[int, type[Any]] = {tag_of_type[kind]: kind for kind in kinds}
        self.builders: Mapping[int, Callable[[Any], Message]] = _Builders(self.kinds)

    def __repr__(self) -> str:
        return f"<Allowed: what {self.who} may send>"


def decode(payload: bytes | bytearray | memoryview, allowed: Allowed) -> list[Message]:
    """The messages in the payload of one frame.

    Raises `ProtocolError` unless all of it is what the peer is allowed to send.
    """
    rows = _unpack(payload, allowed)
    builders = allowed.builders
    try:
        return [builders[row[0]](row) for row in rows]
    except ProtocolError:
        raise
    except (KeyError, IndexError, TypeError, ValueError):
        _complain(rows, allowed)


def is_plain(value: object, depth: int = MAX_DEPTH) -> bool:
    """Whether a value consists of plain atoms, sequences, and maps from strings or integers, not nested too deeply."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if depth == 0:
        return False
    if kind is tuple or kind is list:
        return all(is_plain(item, depth - 1) for item in cast("tuple[object, ...]", value))
    if kind is dict:
        items = cast("dict[object, object]", value)
        return _MAP_KEYS.issuperset(map(type, items)) and all(is_plain(item, depth - 1) for item in items.values())
    return False


_ATOMS = frozenset({NoneType, bool, int, float, str, bytes})
_MAP_KEYS = frozenset({int, str})


def _unpack(payload: bytes | bytearray | memoryview, allowed: Allowed) -> tuple[Any, ...]:
    try:
        rows: object = msgpack.unpackb(
            payload, use_list=False, raw=False, strict_map_key=False, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS
        )
    # RecursionError and MemoryError stand for absurd nesting and lengths, TypeError for a map with a map as its key.
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"{allowed.who} sent a frame that is not msgpack: {error!r}") from error
    if not _is_tuple(rows):
        raise ProtocolError(f"{allowed.who} sent a frame that holds no rows but {_show(rows)}")
    return rows


def _complain(rows: tuple[Any, ...], allowed: Allowed) -> NoReturn:
    """Say which row is wrong and how. Only errors come here, so it may be slow."""
    for row in rows:
        if not _is_tuple(row) or not row or type(tag := row[0]) is not int:
            raise ProtocolError(f"{allowed.who} sent {_show(row)} in place of a row")
        kind = TAGS.get(tag)
        if kind is None:
            raise ProtocolError(f"{allowed.who} sent a message with the unknown tag {tag}")
        if tag not in allowed.kinds:
            raise ProtocolError(f"{allowed.who} sent a {kind.__name__}, which it may not")
        count = len(row) - 1
        if count != len(kind._fields):
            raise ProtocolError(
                f"{allowed.who} sent a {kind.__name__} of {count} fields in place of {len(kind._fields)}"
            )
    raise ProtocolError(f"{allowed.who} sent a frame that cannot be understood")


def _is_tuple(value: object) -> TypeGuard[tuple[Any, ...]]:
    return type(value) is tuple


def _show(value: object) -> str:
    text = repr(value) if type(value) in _ATOMS else type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."


# ------------------------------------------------------------------------------------------- checks from annotations


# What the generated code refers to besides the fields.
_NAMESPACE: Mapping[str, Any] = {
    "new": vars(tuple)["__new__"],  # the constructor of a named tuple takes twice as long
    "chain": chain.from_iterable,
    "plain": is_plain,
    **{f"only_{kind.__name__}": frozenset((kind,)).issuperset for kind in (bool, bytes, int, str, tuple)},
}


class _Field(NamedTuple):
    name: str
    check: str  # a Python expression over the field's name


def _compile_builder(kind: type[Any]) -> Callable[[Any], Message]:
    """A function from row to message: one unpacking, one chain of type checks, one tuple.

    It is generated as source, like the methods of a dataclass, because every message passes here and a loop over
    checks costs three times as much.
    """
    hints = get_type_hints(kind)
    fields = [_Field(name, _check(hints[name], name)) for name in kind._fields]
    names = "".join(f"{field.name}, " for field in fields)
    conditions = "".join(f" and {field.check}" for field in fields)
    source = (
        "def build(row):\n"
        f"    _tag, {names} = row\n"
        f"    if type(row) is tuple{conditions}:\n"
        f"        return new(record_type, ({names}))\n"
        "    raise mismatch(row)\n"
    ).replace("_tag,  = row", "_tag, = row")

    def mismatch(row: object) -> ProtocolError:
        for field, value in zip(fields, cast("tuple[object, ...]", row)[1:], strict=False):
            if not eval(field.check, {**_NAMESPACE, field.name: value}):
                return ProtocolError(f"a {kind.__name__} came with {field.name} = {_show(value)}")
        return ProtocolError(f"a {kind.__name__} came as {_show(row)}")

    namespace: dict[str, Any] = {**_NAMESPACE, "record_type": kind, "mismatch": mismatch}
    exec(source, namespace)
    return cast("Callable[[Any], Message]", namespace["build"])


def _check(annotation: Any, name: str) -> str:
    """An expression that is true if the variable `name` holds what the annotation says."""
    annotation = getattr(annotation, "__supertype__", annotation)
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if annotation is Any:
        return f"plain({name})"
    if annotation is float:
        # Infinity and NaN would poison every sum that they enter; an int is a float that happens to be whole.
        return f"(type({name}) is float or type({name}) is int) and {name} - {name} == 0"
    if annotation in (bool, bytes, int, str):
        return f"type({name}) is {annotation.__name__}"
    if origin is UnionType and arguments[1] is NoneType:
        return f"({name} is None or {_check(arguments[0], name)})"
    if origin is UnionType:
        return "(" + " or ".join(f"({_check(argument, name)})" for argument in reversed(arguments)) + ")"
    if origin is tuple and arguments[-1] is ...:
        return f"({name} == () or type({name}) is tuple and {_check_all(arguments[0], name)})"
    if origin is tuple:
        parts = [_check(argument, f"{name}[{position}]") for position, argument in enumerate(arguments)]
        return " and ".join([f"type({name}) is tuple and len({name}) == {len(parts)}", *parts])
    if origin is Mapping and arguments == (str, Any):
        return f"type({name}) is dict and ({name} == {{}} or only_str(map(type, {name})) and plain({name}))"
    raise TypeError(f"no check is known for {annotation}")


def _check_all(annotation: Any, items: str) -> str:
    """The same for every item of an iterable; in C where the type allows it, because batches of tasks are long."""
    annotation = getattr(annotation, "__supertype__", annotation)
    arguments = get_args(annotation)
    if annotation in (bool, bytes, int, str):
        return f"only_{annotation.__name__}(map(type, {items}))"
    if get_origin(annotation) is tuple and arguments[-1] is ...:
        return f"only_tuple(map(type, {items})) and {_check_all(arguments[0], f'chain({items})')}"
    return f"all([{_check(annotation, 'item')} for item in {items}])"


FROM_CLIENT = Allowed("a client", messages.FromClient)
TO_CLIENT = Allowed("the scheduler", messages.ToClient)
FROM_WORKER = Allowed("a worker", messages.FromWorker)
TO_WORKER = Allowed("the scheduler", messages.ToWorker)
FROM_NANNY = Allowed("a nanny", messages.FromNanny)
TO_NANNY = Allowed("the scheduler", messages.ToNanny)
FROM_CONTROL = Allowed("a program", messages.FromControl)
TO_CONTROL = Allowed("the process that was asked", messages.ToControl)

# By the role of the caller. Only the role `data` has none: after its hello come values.
FROM_CALLER = {"client": FROM_CLIENT, "worker": FROM_WORKER, "nanny": FROM_NANNY, "control": FROM_CONTROL}
TO_CALLER = {"client": TO_CLIENT, "worker": TO_WORKER, "nanny": TO_NANNY, "control": TO_CONTROL}

DATA_PLANE = Allowed("a peer on the data plane", messages.OnDataPlane)
