"""Tokens: sixteen bytes that are equal for the same function with equal arguments, in every process and hash seed.

A pickle is no token: it records which equal strings were one object, writes sets in the order of their hashes, and
holds random ids of classes by value. A token is the hash of a second, canonical pickle, which nobody loads:

- it has no memo (`Pickler.fast`), so it depends on equality and not on identity. Only objects with cycles, or with
  shared parts that multiply, are pickled with a memo;
- it sorts sets, by value where that is possible, else by the tokens of their elements;
- definitions by value count by their behaviour: code, constants, defaults, captured variables, attributes; not by
  file, line or the random name of their origin;
- an object with `__dask_tokenize__`, as dask calls it, counts by what that gives;
- large content counts by its digest, which the call's own pickle has already computed.
"""

from __future__ import annotations

import enum
import itertools
import sys
from collections.abc import Callable, Mapping
from hashlib import blake2b
from operator import attrgetter
from pickle import PickleBuffer
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from trio_dask.ids import Digest
from trio_dask.protocol.blob_contents import LARGE_BYTES, content_digest, sole_owner
from trio_dask.protocol.bytecode import code_use
from trio_dask.protocol.captured_values import CarriesState, own_attributes
from trio_dask.protocol.introspection import attributes_of, cells_of, is_made_by_statement, kind_of
from trio_dask.protocol.pickled_enums import told_of
from trio_dask.protocol.pickled_names import parts_of_named
from trio_dask.protocol.picklers import (
    CACHED_FUNCTION,
    PICKLE_PROTOCOL,
    Buffer,
    ByValuePickler,
    KeyReference,
    travels_by_value,
    type_name,
)
from trio_dask.protocol.rebuilt_classes import MADE_BY_PYTHON, registered_with

# The limit on a canonical pickle: this many times the ordinary one, and an allowance.
_GROWTH = 8
_ALLOWANCE_BYTES = 1 << 20

_PLAIN = frozenset({int, str, float, bool, type(None), tuple, list, dict, complex})
_SETS: Any = (set, frozenset)
_REDUCED_AS_SETS = frozenset({"set.__reduce__", "frozenset.__reduce__"})
_SORTABLE = frozenset({int, str, bytes})
_UNTOLD = MADE_BY_PYTHON | {"__module__", "__firstlineno__", "__static_attributes__"}


class _TooLong(Exception):
    """The canonical pickle has outgrown its limit."""


class _HashingFile:
    """A file for picklers that keeps only a hash of what they write."""

    def __init__(self, limit_bytes: int) -> None:
        self.hash = blake2b(digest_size=16, person=b"canonical")
        self.left = limit_bytes

    def write(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            raise _TooLong
        self.hash.update(data)


_parts_of_code = attrgetter(
    "co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags", "co_argcount",
    "co_posonlyargcount", "co_kwonlyargcount", "co_exceptiontable",
)  # fmt: skip
_parts_of_function = attrgetter(
    "__name__", "__qualname__", "__code__", "__defaults__", "__kwdefaults__", "__annotations__", "__doc__", "__dict__"
)


def _function(function: FunctionType) -> tuple[Any, ...]:
    bound = function.__globals__
    used = {name: bound[name] for name in sorted(code_use(function.__code__).globals) if name in bound}
    return *_parts_of_function(function), tuple(cells_of(function, _unbound)), used


def _class(cls: type[Any]) -> tuple[Any, ...]:
    attributes: Any = {name: value for name, value in attributes_of(cls).items() if name not in _UNTOLD}
    if not attributes.get("__annotations__", True):
        del attributes["__annotations__"]  # Python itself adds an empty one
    if issubclass(cls, enum.Enum):
        attributes = told_of(cls, attributes)
    return type(cls), cls.__qualname__, cls.__bases__, attributes, registered_with(cls)


def _unbound() -> None:
    """Represents an unbound variable in a token; nobody calls it."""


def make_named_of(name: Any, parts: Any) -> Any:
    """Represents an object that pickles as its name in a token; nobody calls it."""
    return name, parts


def as_told(kind: Any, told: Any) -> Any:
    """Represents an object with `__dask_tokenize__` in a token; nobody calls it."""
    return kind, told


class _CanonicalPickler(ByValuePickler):
    """Replaces, by persistent ids, everything whose ordinary pickle is not canonical."""

    def __init__(
        self,
        file: _HashingFile,
        memo: bool,
        digests: Mapping[int, Digest],
        token_by_value: Callable[[Any], bytes] | None,
    ) -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self.fast = not memo
        self.memo_wanted = memo
        self.file = file
        self.digests = digests
        self.token_by_value = token_by_value
        self.met: dict[int, int] = {}
        self.told: dict[int, tuple[Any, bytes]] = {}
        self.kept: list[Any] = []

    def persistent_id(self, obj: Any, /) -> Any:
        kind = kind_of(obj)
        if kind in _PLAIN:
            return None
        if kind is bytes or kind is bytearray:
            return (kind.__name__, self.digest(obj)) if len(obj) >= LARGE_BYTES else None
        if kind is set or kind is frozenset:
            return kind.__name__, self.sort(obj)
        if issubclass(kind, _SETS) and kind.__reduce__.__qualname__ in _REDUCED_AS_SETS:
            return "set", kind, self.sort(obj), getattr(obj, "__dict__", None)
        if issubclass(kind, KeyReference):
            return "key", obj.key
        if kind is PickleBuffer:
            return self.buffer(obj)
        if kind is CodeType:
            return "code", _parts_of_code(obj)
        if kind is FunctionType or issubclass(kind, type) or kind is CACHED_FUNCTION or kind is ModuleType:
            return self.definition(obj) if travels_by_value(obj) else None
        return None

    def reduce_object(self, obj: Any) -> Any:
        told = getattr(kind_of(obj), "__dask_tokenize__", None)
        if told is None:
            return super().reduce_object(obj)
        return as_told, (kind_of(obj), told(obj))

    def reduce_named(self, obj: Any) -> Any:
        number = self.met.get(id(obj))
        if number is not None:
            return make_named_of, ("again", number)
        self.add_met(obj)
        parts = parts_of_named(obj)
        name = f"{type_name(kind_of(obj))} {obj.__reduce_ex__(PICKLE_PROTOCOL)}"
        return make_named_of, (name, (parts.arguments, parts.state))

    def definition(self, thing: Any) -> tuple[Any, ...]:
        """In full at first, later by its number, because definitions refer to each other."""
        kind = kind_of(thing)
        if self.token_by_value is not None and kind is not ModuleType:
            return "by value", self.token_by_value(thing)
        number = self.met.get(id(thing))
        if number is not None:
            return "again", number
        self.add_met(thing)
        if kind is ModuleType:
            return "module", (thing.__name__, own_attributes(thing))
        if kind is FunctionType:
            return "function", _function(thing)
        if kind is CACHED_FUNCTION:
            return "cached function", thing.cache_parameters(), attributes_of(thing)
        if not is_made_by_statement(thing):
            return "built-in", type_name(thing)  # types.FunctionType and the like, which no module offers by its name
        return "class", _class(thing)

    def add_met(self, thing: Any) -> None:
        self.met[id(thing)] = len(self.met)
        self.kept.append(thing)

    def sort(self, elements: set[Any] | frozenset[Any]) -> tuple[Any, ...]:
        kinds = set(map(type, elements))
        if len(kinds) == 1 and kinds <= _SORTABLE:
            return tuple(sorted(elements))
        return tuple(sorted(map(self.nested, elements)))

    def nested(self, value: Any) -> bytes:
        """The token of an element. It starts with the objects met so far: a set may contain itself through others."""
        known = self.told.get(id(value))
        if known is not None:
            return known[1]
        file = _HashingFile(self.file.left)
        pickler = self.another(file)
        pickler.met, pickler.told = dict(self.met), self.told
        pickler.dump(value)
        self.file.left = file.left
        self.kept += pickler.kept
        token = file.hash.digest()
        if not pickler.kept:  # it contains nothing whose number depends on its place
            self.told[id(value)] = value, token
        return token

    def another(self, file: _HashingFile) -> _CanonicalPickler:
        """For a part that has a token of its own."""
        return _CanonicalPickler(file, self.memo_wanted, self.digests, self.token_by_value)

    def digest(self, content: Buffer) -> Digest:
        found = self.digests.get(id(sole_owner(content)))
        return content_digest(content) if found is None else found

    def buffer(self, buffer: PickleBuffer) -> tuple[str, bool, Digest] | None:
        try:
            content = buffer.raw()
        except BufferError:  # not contiguous
            return None
        return "buffer", content.readonly, self.digest(content)


def canonical_token(
    value: Any,
    ordinary: Buffer,
    *,
    salt: bytes = b"",
    digests: Mapping[int, Digest] | None = None,
    token_by_value: Callable[[Any], bytes] | None = None,
) -> bytes:
    """The token of any picklable value.

    `ordinary` is its ordinary pickle: it limits the effort, and stands in for an object that can be pickled but not
    examined. `digests` has the known digests of large content by the id of its `sole_owner`, which must be alive.
    `token_by_value` gives the tokens of functions and classes by value. If it raises `CarriesState`, all of them count
    in full: to find those that carry state would take quadratic time, and the first one depends on the order of sets.
    """
    limit = _GROWTH * len(ordinary) + _ALLOWANCE_BYTES
    for memo in (False, True):
        file = _HashingFile(limit)
        file.hash.update(salt)
        try:
            _CanonicalPickler(file, memo, digests or {}, token_by_value).dump(value)
        except CarriesState:
            return canonical_token(value, ordinary, salt=salt, digests=digests)
        except Exception:  # cycles and entanglement first of all; a user's __reduce__ may raise anything
            continue
        return file.hash.digest()
    hashed = blake2b(salt, digest_size=16, person=b"ordinary")
    hashed.update(ordinary)
    return hashed.digest()


# ------------------------------------------------------------------------------------------------- classes


_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_next_number = itertools.count().__next__


class _ShallowPickler(_CanonicalPickler):
    """Examines one class alone, and records the others that it refers to."""

    def __init__(self, file: _HashingFile, memo: bool, root: Any, others: dict[int, Any]) -> None:
        super().__init__(file, memo, {}, None)
        self.root = root
        self.others = others

    def definition(self, thing: Any) -> tuple[Any, ...]:
        if thing is self.root or not issubclass(kind_of(thing), type) or not is_made_by_statement(thing):
            return super().definition(thing)
        self.others[id(thing)] = thing
        return "another class", _numbers.setdefault(thing, _next_number())

    def another(self, file: _HashingFile) -> _CanonicalPickler:
        return _ShallowPickler(file, self.memo_wanted, self.root, self.others)


class ContentTokens:
    """Tokens of classes and named objects as they are at one moment, good within one process.

    A class's token covers all classes that it reaches. Each is examined once, so the effort is linear where many
    classes refer to each other.
    """

    def __init__(self) -> None:
        self._own: dict[int, tuple[bytes, list[Any]]] = {}

    def of(self, thing: Any) -> bytes:
        """Sixteen bytes. Raises whatever examining it raises."""
        tokens: dict[int, bytes] = {}
        to_come = [thing]
        while to_come:
            found = to_come.pop()
            if id(found) not in tokens:
                tokens[id(found)], others = self._examine(found)
                to_come += others
        own = tokens.pop(id(thing))
        return blake2b(own + b"".join(sorted(tokens.values())), digest_size=16).digest()

    def _examine(self, thing: Any) -> tuple[bytes, list[Any]]:
        found = self._own.get(id(thing))
        if found is None:
            others: dict[int, Any] = {}
            file = _HashingFile(_ALLOWANCE_BYTES)
            try:
                _ShallowPickler(file, False, thing, others).dump(thing)
            except Exception:  # cycles and entanglement, or what cannot be pickled at all
                file = _HashingFile(sys.maxsize)
                _ShallowPickler(file, True, thing, others).dump(thing)
            found = self._own[id(thing)] = file.hash.digest(), list(others.values())
        return found
