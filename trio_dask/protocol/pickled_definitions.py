"""Functions and classes by value as blobs: made once, named by content, loaded once at the other end.

That is right for a definition that cannot carry anything from one task to another: what it captured is immutable, and
its calls leave nothing in it (`captured_values`). The blob is made anew when the watch sees that a name was rebound:
after `y = 2` in a notebook, `f` that reads `y` is another function. All other definitions are pickled into each call
that has them.
"""

from __future__ import annotations

import functools
import pickle
import sys
import threading
from collections import OrderedDict
from types import FunctionType
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from trio_dask.ids import Digest
from trio_dask.protocol.blob_contents import content_digest
from trio_dask.protocol.call_tokens import ContentTokens, canonical_token
from trio_dask.protocol.captured_values import CarriesState, Watch
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.picklers import (
    PICKLE_PROTOCOL,
    PICKLING_FAILURES,
    Buffer,
    ByValuePickler,
    Chunks,
    KeyReference,
    modules_by_value,
    names_what_only_we_have,
    travels_by_value,
)
from trio_dask.protocol.rebuilt_classes import fill_function, load_twice, make_function

_K = TypeVar("_K")
_V = TypeVar("_V")

CACHE_ENTRIES = 1024
CACHE_BYTES = 128 << 20


class PickledFunction(NamedTuple):
    """A callable as it travels.

    `digest` names the content `data`. `token` names the behaviour: it is the same in every process and for every hash
    seed, unlike a pickle by value, so keys are derived from it. `name` is for people. `blobs` are `(digest, content)`
    of the blobs that the other end needs first.
    """

    digest: Digest
    data: bytes
    name: str
    token: bytes
    blobs: tuple[tuple[Digest, bytes | memoryview], ...] = ()


class DefinitionPickler(ByValuePickler):
    """Pickles definitions by value, classes with the token of their content. For one pickle."""

    _contents: ContentTokens | None = None

    def content_of(self, thing: Any) -> bytes:
        if self._contents is None:
            self._contents = ContentTokens()
        return self._contents.of(thing)


class _WatchingPickler(DefinitionPickler):
    """Examines each definition before it is pickled, and stops at the first that carries state."""

    renews_state = True

    def __init__(self, file: Chunks) -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self.watch = Watch()

    def persistent_id(self, obj: Any, /) -> Any:
        if issubclass(type(obj), KeyReference):
            raise CarriesState
        return None

    def reducer_override(self, obj: Any, /) -> Any:
        if travels_by_value(obj):
            self.watch.add(obj)
        return super().reducer_override(obj)

    def reduce_function(self, function: FunctionType) -> Any:
        """One object at the other end, by whatever path it is reached."""
        reduced = super().reduce_function(function)
        if reduced is NotImplemented:
            return reduced
        maker, arguments, state, _, _, set_state = reduced
        made = make_function, (self.content_of(function), maker, arguments)
        return *made, (set_state, state), None, None, fill_function


class _Entry(NamedTuple):
    thing: Any  # held, so that no other object gets its id
    pickled: PickledFunction
    watch: Watch | None
    registered: set[str]
    modules: int


class _Cache(Generic[_K, _V]):
    """The newest entries, limited in number and in bytes. Threads share it."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_K, tuple[_V, int]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.RLock()  # a finalizer may run at any moment

    def get(self, key: _K) -> _V | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: _K, value: _V, nbytes: int) -> None:
        if nbytes > CACHE_BYTES:
            return
        with self._lock:
            self._nbytes += nbytes - self._entries.pop(key, (None, 0))[1]
            self._entries[key] = value, nbytes
            while len(self._entries) > CACHE_ENTRIES or self._nbytes > CACHE_BYTES:
                self._nbytes -= self._entries.popitem(last=False)[1][1]

    def __len__(self) -> int:
        return len(self._entries)


_made: _Cache[int, _Entry] = _Cache()
_loaded: _Cache[Digest, Any] = _Cache()
_unwatched: WeakSet[Any] = WeakSet()
_classes_loaded: WeakKeyDictionary[Any, tuple[Digest, Buffer]] = WeakKeyDictionary()


def _keep(thing: Any, pickled: PickledFunction, watch: Watch | None) -> PickledFunction:
    _made.put(id(thing), _Entry(thing, pickled, watch, modules_by_value(), len(sys.modules)), len(pickled.data))
    return pickled


def kept_definition(thing: Any) -> PickledFunction | None:
    """The earlier pickle of a definition, if it has not changed since."""
    entry = _made.get(id(thing))
    if entry is None or entry.registered != modules_by_value():
        return None
    # A function by value brings imports of the submodules that it uses, so the set of loaded ones counts.
    if entry.watch is None or (entry.modules == len(sys.modules) and entry.watch.holds()):
        return entry.pickled
    return None


def by_reference(thing: Any) -> PickledFunction | None:
    """A definition that the other end imports; None if its ordinary pickle refers to what only this process has."""
    data = pickle.dumps(thing, PICKLE_PROTOCOL)
    if names_what_only_we_have(data):
        return None
    digest = content_digest(data)
    return _keep(thing, PickledFunction(digest, data, short_name(thing), digest), None)


def by_value(thing: Any) -> PickledFunction:
    """A function or class that travels by value.

    Raises `CarriesState` if it belongs to a single call, or whatever pickling raises.
    """
    kept = kept_definition(thing)
    if kept is not None:
        return kept
    file = Chunks()
    pickler = _WatchingPickler(file)
    pickler.dump(thing)
    data = file.take()
    pickled = PickledFunction(content_digest(data), data, short_name(thing), canonical_token(thing, data))
    return _keep(thing, pickled, pickler.watch)


def token_of_definition(thing: Any) -> bytes:
    """The token of a function or class by value. Raises `CarriesState`, or whatever pickling raises."""
    return by_value(thing).token


def class_blob(cls: type[Any]) -> tuple[Digest, Buffer]:
    """Digest and content of a class by value; a class that came as a blob keeps those.

    Raises `CarriesState`, or whatever pickling raises.
    """
    return _classes_loaded.get(cls) or by_value(cls)[:2]


def load_shared(digest: Digest, data: Buffer) -> Any:
    """The definition of that content, loaded once in a process; raises whatever its loading raises.

    One that a task has changed meanwhile is loaded anew: it is watched here as in the process that made it.
    """
    thing = _loaded.get(digest)
    if thing is None or (thing not in _unwatched and kept_definition(thing) is None):
        thing = load_twice(functools.partial(pickle.loads, data))
        _loaded.put(digest, thing, len(data))
        if issubclass(kind_of(thing), type):
            _classes_loaded[thing] = digest, data
        try:
            by_value(thing)
        except PICKLING_FAILURES:  # it has become what it is elsewhere only
            _unwatched.add(thing)
    return thing


def short_name(function: Any) -> str:
    """The name of this callable for people: the prefix of its tasks' keys."""
    while isinstance(function, functools.partial):
        function = function.func
    name: Any = getattr(function, "__name__", None)
    if not isinstance(name, str):
        name = type(function).__name__
    name = name.strip("<>")[:50]
    return name if name and name.isprintable() else "function"  # it becomes part of keys, which travel as UTF-8
