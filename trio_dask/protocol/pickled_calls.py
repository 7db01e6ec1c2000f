"""Calls: the arguments of a task as opaque bytes, in one pass.

The pickler's `persistent_id` hook sees every object. A `KeyReference` becomes its key and a dependency; large content,
and definitions by value, become blobs: named by their digest, sent once, and shared by calls. Where a definition
carries state (`captured_values`), the call is pickled as a whole instead, as cloudpickle would: what its parts share,
they share at the other end too, and no other call does.

The first byte of a call tells its form:

| byte | then |
|---|---|
| 0x80 | (the pickle's own first byte) a pickle of `args`, without references; there are no keyword arguments |
| 0x00 | the digest of a blob that holds the call |
| 0x01 | a pickle of `(args, kwargs)` with persistent ids |
| 0x02 | a count (4 bytes), for each out-of-band buffer its digest and 1 if it is read-only, then the same |
| 0x03 | a pickle of `args`, all of them numbers, strings and references; each of these is a tuple of its key |
| 0x04 | one of the others, with code that changes definitions: the task takes a turn |
| 0x05 | one of the others, of `pickled_nodes.GivenArguments`: the worker computes the arguments from these |

A persistent id is a string (a key), bytes (the digest of a bytes object), or a tuple: a kind, a digest, and for a
bytearray its number in the call.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from io import BytesIO
from pickle import PickleBuffer
from types import FunctionType
from typing import Any, Final, NamedTuple

from trio_dask.errors import SerializationError
from trio_dask.ids import Digest, Key
from trio_dask.protocol.blob_contents import LARGE_BYTES, content_digest, fixed_content, sole_owner
from trio_dask.protocol.call_tokens import canonical_token
from trio_dask.protocol.captured_values import CarriesState, stands_alone
from trio_dask.protocol.changing_code import changes_definitions, class_changes_itself
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.pickle_errors import describe_culprit, users_own
from trio_dask.protocol.pickled_definitions import DefinitionPickler, by_value, load_shared, token_of_definition
from trio_dask.protocol.picklers import (
    CACHED_FUNCTION,
    ORDINARY,
    PICKLE_PROTOCOL,
    PICKLING_FAILURES,
    Buffer,
    Chunks,
    KeyReference,
    names_what_only_we_have,
    travels_by_value,
)
from trio_dask.protocol.raw_memory import own_copy
from trio_dask.protocol.rebuilt_classes import load_twice
from trio_dask.protocol.wire_constants import DIGEST_BYTES

_NUMBERS = frozenset({int, float, bool, type(None)})
_ATOMS = _NUMBERS | {complex, str}
_PLAIN = _ATOMS | {tuple, list, dict}

_IN_BLOB, _PERSISTENT_IDS, _BUFFERS, _REFERENCES, _PICKLE = 0x00, 0x01, 0x02, 0x03, 0x80
CHANGES: Final = 0x04
"""The first byte of a call, or of a callable, whose code can be seen to change definitions."""
COMPUTED: Final = 0x05
"""The first byte of a call whose arguments are `pickled_nodes.GivenArguments`."""
WITHOUT_DEFINITIONS: Final = frozenset({_REFERENCES, _PICKLE})
"""The first bytes of calls that have no functions and no classes by value."""
_POOL_SIZE = 4
_POOLED_CALL_BYTES = 1 << 12


def form_of(call: Buffer) -> int:
    """The byte that tells how the arguments of a call are pickled, after that of computed ones."""
    marker = call[0]
    return call[1] if marker == COMPUTED else marker


class PickledCall(NamedTuple):
    """A call, its dependencies, and `(digest, content)` of the blobs that the other end needs first.

    `hashed` holds large arguments that have been hashed, with their digests, for `call_token`.
    """

    call: bytes
    dependencies: tuple[Key, ...]
    blobs: tuple[tuple[Digest, bytes | memoryview], ...]
    hashed: tuple[tuple[Any, Digest], ...] = ()


class _Gathered:
    """What a call needs, gathered while it is pickled.

    An object of its own, because a pickler whose `buffer_callback` is its own method is a cycle, and CPython 3.11 can
    crash when it collects a cycle that holds memoryviews of memoryviews.
    """

    def __init__(self) -> None:
        self.dependencies: dict[Key, None] = {}
        self.blobs: dict[Digest, bytes | memoryview] = {}
        self.hashed: list[tuple[Any, Digest]] = []
        self.buffers: list[bytes] = []
        self.bytearrays: dict[int, int] = {}

    def add_blob(self, data: Buffer) -> Digest:
        """Large content, copied if it could change: the blob leaves later, and must match its digest."""
        digest, fixed = fixed_content(data)
        self.blobs[digest] = fixed
        owner = sole_owner(data)
        if owner is not None:
            self.hashed.append((owner, digest))
        return digest

    def add_bytearray(self, data: bytearray) -> tuple[str, Digest, int]:
        """The same, with a number for each object: one that occurs twice is one object at the other end too."""
        return "bytearray", self.add_blob(data), self.bytearrays.setdefault(id(data), len(self.bytearrays))

    def add_definition(self, thing: Any) -> Digest:
        """A function or class by value. Raises `CarriesState`, or whatever pickling raises."""
        blob = by_value(thing)
        self.blobs[blob.digest] = blob.data
        return blob.digest

    def add_buffer(self, buffer: PickleBuffer) -> bool:
        """Whether to pickle the buffer in band."""
        try:
            content = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if content.nbytes < LARGE_BYTES:
            return True
        self.buffers.append(self.add_blob(content) + bytes([content.readonly]))
        return False

    def finish(self, pickled: bytes, *, changes: bool = False) -> PickledCall:
        if self.buffers:
            head = bytes([_BUFFERS]) + len(self.buffers).to_bytes(4, "little") + b"".join(self.buffers)
            call = head + pickled
        else:
            call = b"\x01" + pickled
        made = _made(call, tuple(self.dependencies), self.blobs, tuple(self.hashed))
        return made._replace(call=bytes([CHANGES]) + made.call) if changes else made


class _Hooks:
    """The base of the picklers of calls. Each use of one makes one call."""

    gathered: _Gathered
    shares_definitions: bool

    def persistent_id(self, obj: Any, /) -> Any:
        kind = kind_of(obj)
        if kind in _PLAIN:
            return None
        if kind is bytes:
            return self.gathered.add_blob(obj) if len(obj) >= LARGE_BYTES else None
        if kind is bytearray:
            return self.gathered.add_bytearray(obj) if len(obj) >= LARGE_BYTES else None
        if issubclass(kind, KeyReference):
            key: Key = obj.key
            self.gathered.dependencies[key] = None
            return key
        if (
            self.shares_definitions
            and (kind is FunctionType or issubclass(kind, type) or kind is CACHED_FUNCTION)
            and travels_by_value(obj)
        ):
            return "definition", self.gathered.add_definition(obj)
        return None


class _PlainPickler(_Hooks, pickle.Pickler):
    shares_definitions = True
    dispatch_table = ORDINARY

    def __init__(self) -> None:
        self.file = Chunks()
        self.gathered = _Gathered()
        pickle.Pickler.__init__(self, self.file, PICKLE_PROTOCOL, buffer_callback=self.gathered.add_buffer)


class _WholePickler(_Hooks, DefinitionPickler):
    """Shares only functions that stand alone: tasks may ask whether a given function is one that they know."""

    shares_definitions = False
    renews_state = True
    changes_definitions = False
    """Whether a function or a class that was pickled can be seen to change one."""

    def persistent_id(self, obj: Any, /) -> Any:
        if kind_of(obj) is FunctionType and not _is_method(obj) and travels_by_value(obj) and stands_alone(obj):
            try:
                return "definition", self.gathered.add_definition(obj)
            except CarriesState:  # an attribute that can change in place
                return None
        return super().persistent_id(obj)

    def __init__(self) -> None:
        self.file = Chunks()
        self.gathered = _Gathered()
        DefinitionPickler.__init__(self, self.file, PICKLE_PROTOCOL, buffer_callback=self.gathered.add_buffer)

    def reduce_function(self, function: FunctionType) -> Any:
        reduced = super().reduce_function(function)
        if reduced is not NotImplemented and not self.changes_definitions:
            self.changes_definitions = changes_definitions(function)
        return reduced

    def reduce_class(self, cls: Any) -> Any:
        reduced = super().reduce_class(cls)
        if reduced is not NotImplemented and not self.changes_definitions:
            self.changes_definitions = class_changes_itself(cls)
        return reduced


def _is_method(function: FunctionType) -> bool:
    scope, _, _ = function.__qualname__.rpartition(".")
    return bool(scope) and not scope.endswith("<locals>")


def _made(
    call: bytes,
    dependencies: tuple[Key, ...],
    blobs: dict[Digest, bytes | memoryview],
    hashed: tuple[tuple[Any, Digest], ...],
) -> PickledCall:
    if len(call) > LARGE_BYTES:
        digest = content_digest(call)
        blobs = {**blobs, digest: call}
        call = bytes([_IN_BLOB]) + digest
    return PickledCall(call, dependencies, tuple(blobs.items()), hashed)


# Making a pickler takes as long as a small pickle. `pop` and `append` are atomic, so each has one user at a time.
_pool: list[_PlainPickler] = []


def pickle_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PickledCall:
    """The arguments of a task as bytes.

    Raises `SerializationError`, which names the argument and what in it cannot be pickled.
    """
    if not kwargs and _ATOMS.issuperset(map(type, args)):
        call = pickle.dumps(args, PICKLE_PROTOCOL)
        return PickledCall(call, (), ()) if len(call) <= LARGE_BYTES else _made(call, (), {}, ())
    try:
        return (not kwargs and _pickle_references(args)) or pickle_arguments(args, kwargs)
    except PICKLING_FAILURES as error:  # of the user's objects, for the caller of `submit`
        raise SerializationError(_complaint(args, kwargs, error)) from users_own(error)


def pickle_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PickledCall:
    """The same without examining the arguments; raises whatever pickling raises."""
    return _pickle_plainly(args, kwargs) or _pickle_whole(args, kwargs)


def _pickle_references(args: tuple[Any, ...]) -> PickledCall | None:
    """A call whose arguments are atoms and references, as in most graphs: no hook has to see them."""
    told: list[Any] = []
    dependencies: dict[Key, None] = {}
    for argument in args:
        if isinstance(argument, KeyReference):
            dependencies[argument.key] = None
            told.append((argument.key,))
        elif type(argument) in _ATOMS:
            told.append(argument)
        else:
            return None
    return _made(b"\x03" + pickle.dumps(tuple(told), PICKLE_PROTOCOL), tuple(dependencies), {}, ())


def _pickle_plainly(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PickledCall | None:
    try:
        pickler = _pool.pop()
    except IndexError:
        pickler = _PlainPickler()
    try:
        pickler.dump((args, kwargs))
    except PICKLING_FAILURES:  # the other pickler may know how, and raises if it does not
        return None
    data = pickler.file.take()
    if names_what_only_we_have(data):
        return None
    pickled = pickler.gathered.finish(data)
    if not pickled.blobs and len(pickled.call) <= _POOLED_CALL_BYTES and len(_pool) < _POOL_SIZE:
        pickler.clear_memo()
        if pickled.dependencies:
            pickler.gathered.dependencies = {}
        _pool.append(pickler)
    return pickled


def _pickle_whole(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PickledCall:
    pickler = _WholePickler()
    pickler.dump((args, kwargs))
    return pickler.gathered.finish(pickler.file.take(), changes=pickler.changes_definitions)


def can_pickle(value: Any) -> bool:
    """Whether a call may have this as an argument."""
    try:
        _WholePickler().dump(value)
    except PICKLING_FAILURES:  # that is the answer
        return False
    return True


def _labelled(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(args, 1):
        yield f"argument {number}", value
    for name, value in kwargs.items():
        yield f"argument {name!r}", value


def _complaint(args: tuple[Any, ...], kwargs: Mapping[str, Any], error: BaseException) -> str:
    for label, value in _labelled(args, kwargs):
        if not can_pickle(value):
            return describe_culprit(value, label, "argument", can_pickle, error)
    return f"cannot pickle the arguments: {error}"


# ------------------------------------------------------------------------------------------------- tokens


def _is_canonical(args: tuple[Any, ...], dependencies: tuple[Key, ...]) -> bool:
    """Whether the call's own pickle is canonical: it cannot contain two equal strings that are not one object."""
    if _NUMBERS.issuperset(map(type, args)):
        return True
    strings = references = 0
    for argument in args:
        kind = kind_of(argument)
        if kind is str:
            strings += 1
        elif kind not in _NUMBERS:
            if not issubclass(kind, KeyReference):
                return False
            references += 1
    return strings <= 1 if not references else not strings and references == len(dependencies)


def call_token(function_token: bytes, args: tuple[Any, ...], kwargs: Mapping[str, Any], pickled: PickledCall) -> bytes:
    """Sixteen bytes that are the same for the same function with equal arguments, in every process.

    `function_token` is the `PickledFunction.token` of the function, `pickled` the result of `pickle_call`. The order of
    keyword arguments does not count; that of dictionaries does.
    """
    if not kwargs and _is_canonical(args, pickled.dependencies):
        return blake2b(function_token + pickled.call, digest_size=DIGEST_BYTES).digest()
    call: Buffer = pickled.call
    if call[0] == CHANGES:
        call = call[1:]
    if call[0] == _IN_BLOB:
        call = dict(pickled.blobs)[bytes(call[1:])]
    return canonical_token(
        (args, sorted(kwargs.items())),
        call,
        salt=function_token,
        digests={id(owner): digest for owner, digest in pickled.hashed},
        token_by_value=token_of_definition,
    )


# ------------------------------------------------------------------------------------------------- loading


class _Unpickler(pickle.Unpickler):
    values: Mapping[Key, Any]
    blobs: Mapping[Digest, Buffer]
    made: dict[int, bytearray]

    def persistent_load(self, pid: Any, /) -> Any:
        kind = kind_of(pid)
        if kind is str:
            return self.values[pid]
        if kind is bytes:
            return bytes(self.blobs[pid])
        what, digest, *number = pid
        if what == "bytearray":
            made = self.made.get(number[0])
            if made is None:
                made = self.made[number[0]] = bytearray(self.blobs[digest])
            return made
        return load_shared(digest, self.blobs[digest])


def load_call(
    call: Buffer, blobs: Mapping[Digest, Buffer], values: Mapping[Key, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a task, its references replaced by `values`.

    Arguments are the task's own copies, and writeable where the client's were; only `values` are shared. Raises
    `KeyError` for a missing blob or value, and whatever loading the user's objects raises.
    """
    marker = call[0]
    if marker == _PICKLE:
        return pickle.loads(call), {}
    if marker == _REFERENCES:
        told: tuple[Any, ...] = pickle.loads(call[1:])
        return tuple([values[item[0]] if kind_of(item) is tuple else item for item in told]), {}
    if marker == _IN_BLOB:
        return load_call(blobs[bytes(call[1:])], blobs, values)
    if marker in (CHANGES, COMPUTED):
        return load_call(call[1:], blobs, values)
    return load_twice(functools.partial(_load_whole, call, blobs, values))


def _load_whole(
    call: Buffer, blobs: Mapping[Digest, Buffer], values: Mapping[Key, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    file = BytesIO(call)
    file.seek(1)
    unpickler = _Unpickler(file, buffers=_buffers(file, blobs)) if call[0] == _BUFFERS else _Unpickler(file)
    unpickler.values = values
    unpickler.blobs = blobs
    unpickler.made = {}
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = unpickler.load()
    return arguments


def _buffers(file: BytesIO, blobs: Mapping[Digest, Buffer]) -> list[Buffer]:
    """The out-of-band buffers: blobs serve many calls, so writeable ones are copied."""
    count = int.from_bytes(file.read(4), "little")
    buffers: list[Buffer] = []
    for _ in range(count):
        content = blobs[file.read(DIGEST_BYTES)]
        readonly = file.read(1) == b"\x01"
        buffers.append(memoryview(content).toreadonly() if readonly else own_copy(content))
    return buffers
