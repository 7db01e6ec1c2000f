"""Functions and classes as blobs: made once, named by content, kept at both ends.

A function that travels by value captures what it refers to at the moment it is pickled. The cache therefore remembers
what was captured, and an entry holds only while all of that is still the same: after `y = 2` in a notebook, `f` that
reads `y` is pickled anew. What could change in place (a list, a dictionary, an array) cannot be checked so cheaply, and
a function that captures it is pickled each time.
"""

from __future__ import annotations

import enum
import functools
import operator
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any, NamedTuple

from trio_dask.errors import SerializationError
from trio_dask.identity import Digest
from trio_dask.protocol.culprits import describe_culprit, users_own
from trio_dask.protocol.picklers import (
    CACHED_FUNCTION,
    PICKLING_FAILURES,
    PROTOCOL,
    Buffer,
    ByValuePickler,
    Chunks,
    KeyReference,
    kind_of,
    load_by_value,
    modules_by_value,
    travels_by_value,
)
from trio_dask.protocol.tokens import canonical_token

__all__ = [
    "FunctionBlob",
    "HoldsReference",
    "blob_by_value",
    "content_digest",
    "load_function",
    "load_shared",
    "pickle_function",
    "share",
    "short_name",
    "token_by_value",
]

CACHE_ENTRIES = 1024
CACHE_DATA_BYTES = 1 << 20


class FunctionBlob(NamedTuple):
    """A pickled callable.

    `digest` names the content `data`. `token` names the callable itself: it is the same in every process and under
    every hash seed, which a pickle by value is not, so keys are derived from it. `name` is for people.
    """

    digest: Digest
    data: bytes
    name: str
    token: bytes


class HoldsReference(Exception):
    """What should travel by value holds a `KeyReference`, so it cannot be shared between calls."""


def content_digest(data: Buffer) -> Digest:
    """The name of a blob with this content."""
    return blake2b(data, digest_size=16).digest()


# ------------------------------------------------------------------------------------------------- what was captured

_FIXED_KINDS = frozenset(
    {
        bool, bytes, complex, float, int, str, type(None), type(...), type(NotImplemented), object,
        CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType,
        CACHED_FUNCTION, classmethod, property, staticmethod,
    }
)  # fmt: skip
_ABSENT = object()
_CLASS_TABLES = frozenset({"_abc_impl", "_field_defaults"})


def _is_fixed(value: Any) -> bool:
    """Whether `value` can change only by being bound anew (functions and classes are watched on their own)."""
    kind = kind_of(value)
    if kind in _FIXED_KINDS or issubclass(kind, type):
        return True
    if kind is BuiltinFunctionType:
        return _is_fixed(value.__self__)  # `math.sqrt`, but not `some_list.append`
    return (kind is tuple or kind is frozenset) and all(map(_is_fixed, value))


def _is_fixed_attribute(cls: type[Any], name: str, value: Any) -> bool:
    if name.startswith("__") or name in _CLASS_TABLES or issubclass(cls, enum.Enum):
        return True  # tables that nobody changes
    return _is_fixed(value) or hasattr(kind_of(value), "__get__")


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _names(constant)


def _captured(function: FunctionType) -> list[Any]:
    captured: list[Any] = [function.__code__, function.__defaults__]
    if function.__kwdefaults__:
        captured += function.__kwdefaults__.values()
    if function.__dict__:
        captured += function.__dict__.values()
    for cell in function.__closure__ or ():
        try:
            captured.append(cell.cell_contents)
        except ValueError:  # not bound yet
            captured.append(_ABSENT)
    return captured


def _bound(namespace: dict[str, Any], names: tuple[str, ...]) -> Iterable[Any]:
    return map(namespace.get, names)


class _Watch:
    """What functions and classes referred to while they were pickled, and how to look at it again."""

    def __init__(self) -> None:
        self.looks: list[Callable[[], Iterable[Any]]] = []
        self.seen: list[Any] = []
        self.fixed = True

    def add_function(self, function: FunctionType) -> None:
        names = tuple(dict.fromkeys(_names(function.__code__)))
        seen = [*_captured(function), *_bound(function.__globals__, names)]
        self.looks += (partial(_captured, function), partial(_bound, function.__globals__, names))
        self.seen += seen
        self.fixed = self.fixed and all(map(_is_fixed, seen))

    def add_class(self, cls: type[Any]) -> None:
        attributes = dict(vars(cls))
        self.looks.append(vars(cls).values)
        self.seen += attributes.values()
        self.fixed = self.fixed and all(_is_fixed_attribute(cls, name, value) for name, value in attributes.items())

    def still_holds(self) -> bool:
        now: list[Any] = []
        for look in self.looks:
            now += look()
        return len(now) == len(self.seen) and all(map(operator.is_, now, self.seen))


class _RecordingPickler(ByValuePickler):
    """Watches what the functions and classes that it pickles by value refer to."""

    def __init__(self, file: Chunks) -> None:
        super().__init__(file, PROTOCOL)
        self.watch = _Watch()

    def persistent_id(self, obj: Any, /) -> Any:
        if issubclass(type(obj), KeyReference):
            raise HoldsReference(obj.key)
        return None

    def reducer_override(self, obj: Any, /) -> Any:
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented:
            if type(obj) is FunctionType:
                self.watch.add_function(obj)
            elif issubclass(type(obj), type):
                self.watch.add_class(obj)
        return reduced


# ------------------------------------------------------------------------------------------------- making blobs


class _Entry(NamedTuple):
    thing: Any  # held, so that no other object gets its id
    blob: FunctionBlob
    watch: _Watch
    registered: set[str]


class _PartsPickler(pickle.Pickler):
    def reducer_override(self, obj: Any, /) -> Any:
        if issubclass(type(obj), KeyReference):
            raise HoldsReference(obj.key)
        return share(obj) if travels_by_value(obj) else NotImplemented


# Both caches are shared by threads without a lock: each step on them is one atomic operation, and losing a race costs
# one more pickling.
_made: OrderedDict[int, _Entry] = OrderedDict()
_loaded: OrderedDict[Digest, Any] = OrderedDict()


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    if len(cache) > CACHE_ENTRIES:
        try:
            cache.popitem(last=False)
        except KeyError:  # another thread has emptied it
            pass


def _make(thing: Any) -> FunctionBlob:
    if not _is_fixed(thing):
        return _make_of_parts(thing)
    watch = _Watch()
    if travels_by_value(thing):
        data, watch = _pickle_by_value(thing)
        blob = FunctionBlob(content_digest(data), data, short_name(thing), canonical_token(thing, data))
    else:
        data = pickle.dumps(thing, PROTOCOL)
        digest = content_digest(data)
        blob = FunctionBlob(digest, data, short_name(thing), digest)
    if watch.fixed and len(data) <= CACHE_DATA_BYTES:
        _remember(_made, id(thing), _Entry(thing, blob, watch, modules_by_value()))
    return blob


def _pickle_by_value(thing: Any) -> tuple[bytes, _Watch]:
    file = Chunks()
    pickler = _RecordingPickler(file)
    pickler.dump(thing)
    return file.take(), pickler.watch


def _make_of_parts(thing: Any) -> FunctionBlob:
    """The blob of a callable that can change (a bound method, a partial, an object): only its definitions are kept."""
    file = Chunks()
    try:
        _PartsPickler(file, PROTOCOL).dump(thing)
        data = file.take()
    except HoldsReference:
        raise
    except PICKLING_FAILURES:
        data, _ = _pickle_by_value(thing)
    token = canonical_token(thing, data, token_by_value=token_by_value)
    return FunctionBlob(content_digest(data), data, short_name(thing), token)


def _kept(thing: Any) -> FunctionBlob | None:
    entry = _made.get(id(thing))
    if entry is None or entry.registered != modules_by_value():
        return None
    return entry.blob if not entry.watch.looks or entry.watch.still_holds() else None


def blob_by_value(thing: Any) -> FunctionBlob:
    """The blob of a function, class or other callable, from the cache where that is safe.

    Raises `HoldsReference`, or whatever pickling raises.
    """
    return _kept(thing) or _make(thing)


def share(definition: Any) -> tuple[Any, ...]:
    """How a pickler reduces a function or class by value so that the other end loads it only once."""
    blob = blob_by_value(definition)
    return load_shared, (blob.digest, blob.data)


def token_by_value(definition: Any) -> bytes | None:
    """The token of a function or class by value, or None where it can only be told in its place."""
    try:
        return blob_by_value(definition).token
    except HoldsReference:
        return None


def _can_pickle(thing: Any) -> bool:
    try:
        _pickle_by_value(thing)
    except PICKLING_FAILURES:
        return False
    return True


def pickle_function(function: Callable[..., Any]) -> FunctionBlob:
    """The callable as a blob: by reference where another process can import it, else by value.

    Raises `SerializationError`, which says what in it cannot be pickled.
    """
    try:
        return _kept(function) or _make(function)
    except HoldsReference as error:
        raise SerializationError(
            f"the function {short_name(function)} refers to the future {error.args[0]!r}: pass it as an argument"
        ) from None
    except PICKLING_FAILURES as error:
        sentence = describe_culprit(function, f"the function {short_name(function)}", "function", _can_pickle, error)
        raise SerializationError(sentence) from users_own(error)


def short_name(function: Any) -> str:
    """What people call this callable: the prefix of its tasks' keys."""
    while isinstance(function, functools.partial):
        function = function.func
    name: Any = getattr(function, "__name__", None)
    if not isinstance(name, str):
        name = type(function).__name__
    name = name.strip("<>")[:50]
    return name if name and name.isprintable() else "function"  # it becomes part of keys, which travel as UTF-8


# ------------------------------------------------------------------------------------------------- loading blobs


def load_function(data: Buffer) -> Callable[..., Any]:
    """The callable that `pickle_function` gave `data` for; raises whatever its loading raises."""
    function: Callable[..., Any] = load_by_value(data)
    return function


def load_shared(digest: Digest, data: Buffer) -> Any:
    """Like `load_function`, but once per process for each content."""
    try:
        return _loaded[digest]
    except KeyError:
        thing = load_by_value(data)
        _remember(_loaded, digest, thing)
        return thing
