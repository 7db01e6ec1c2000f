"""Objects that pickle as a name in their module, by value: `NewType`, `TypeVar`, type aliases, a script's sentinels.

Ordinary pickle looks such a name up at the other end, which does not have a script's module. So the object travels as
its parts, with a name of its own, and a process has one object for each name: when it comes back to the process that
defined it, it is the object itself.
"""

from __future__ import annotations

import copyreg
import keyword
import secrets
import sys
import threading
import typing
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple
from weakref import ref

from trio_dask.protocol.introspection import attributes_of, kind_of
from trio_dask.protocol.rebuilt_classes import note_renewed
from trio_dask.protocol.wire_constants import DIGEST_BYTES

_lock = threading.RLock()
"""A thread that loads a named object waits until it is complete."""
MOST_HELD = 1 << 14


def leave_as_made(_thing: Any, _state: None) -> None:
    """For objects without state besides their arguments."""


class Parts(NamedTuple):
    """How to make an object: call `maker` with `arguments`, then `set_state` with the object and `state`."""

    maker: Callable[..., Any]
    arguments: tuple[Any, ...]
    state: Any = None
    set_state: Callable[[Any, Any], object] = leave_as_made


# ------------------------------------------------------------------------------------------------- parts


def set_attributes(thing: Any, state: Any) -> None:
    """Replace an object's attributes by those of a state in the form of `object.__getstate__`.

    Other tasks may use it meanwhile, so attributes that stay are there at every moment.
    """
    kept: set[str] = set()
    parts: tuple[dict[str, Any] | None, ...] = state if issubclass(kind_of(state), tuple) else (state,)
    for part in parts:
        for name, value in (part or {}).items():
            object.__setattr__(thing, name, value)
            kept.add(name)
    if hasattr(thing, "__dict__"):
        own = attributes_of(thing)
        for name in own.keys() - kept:
            own.pop(name, None)


def make_type_variable(kind: Any, name: str, constraints: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A `TypeVar` or its like."""
    return kind(name, *constraints, **options)


_VARIANCE = {
    "covariant": "__covariant__",
    "contravariant": "__contravariant__",
    "infer_variance": "__infer_variance__",
    "bound": "__bound__",
}


def _parts_of_type_variable(thing: Any) -> Parts:
    kind = kind_of(thing)
    options = {} if kind is typing.TypeVarTuple else {
        option: getattr(thing, attribute) for option, attribute in _VARIANCE.items() if getattr(thing, attribute, None)
    }  # fmt: skip
    if getattr(thing, "has_default", bool)():  # from Python 3.13 on
        options["default"] = thing.__default__
    return Parts(make_type_variable, (kind, thing.__name__, getattr(thing, "__constraints__", ()), options))


def _parts_of_new_type(thing: Any) -> Parts:
    return Parts(typing.NewType, (thing.__name__, thing.__supertype__), dict(attributes_of(thing)), set_attributes)


_unfilled: dict[int, list[Any]] = {}


def make_lazy_alias(name: str, module: str) -> Any:
    """A type alias whose value `fill_alias` gives: it may refer to the alias itself."""
    box: list[Any] = []
    made: dict[str, Any] = {}
    exec(f"type {name} = box[0]", {"box": box, "__name__": module}, made)
    _unfilled[id(made[name])] = box
    return made[name]


def fill_alias(alias: Any, value: Any) -> None:
    """Give a type alias its value, unless it has one."""
    box = _unfilled.pop(id(alias), None)
    if box is not None:
        box.append(value)


def make_generic_alias(kind: Any, name: str, value: Any, type_params: tuple[Any, ...]) -> Any:
    """A type alias with parameters."""
    return kind(name, value, type_params=type_params)


def _parts_of_alias(thing: Any) -> Parts:
    name: str = thing.__name__
    if thing.__type_params__ or not name.isidentifier() or keyword.iskeyword(name):
        return Parts(make_generic_alias, (type(thing), name, thing.__value__, thing.__type_params__))
    return Parts(make_lazy_alias, (name, thing.__module__), thing.__value__, fill_alias)


PARTS_BY_TYPE: dict[Any, Callable[[Any], Parts]] = {
    typing.NewType: _parts_of_new_type,
    typing.TypeVar: _parts_of_type_variable,
    typing.ParamSpec: _parts_of_type_variable,
    typing.TypeVarTuple: _parts_of_type_variable,
}
if sys.version_info >= (3, 12):
    PARTS_BY_TYPE[typing.TypeAliasType] = _parts_of_alias


def parts_of_named(thing: Any) -> Parts:
    """How to make an object that pickles as its name."""
    kind = kind_of(thing)
    parts = PARTS_BY_TYPE.get(kind)
    if parts is not None:
        return parts(thing)
    return Parts(copyreg.__newobj__, (kind,), thing.__getstate__(), set_attributes)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- sentinels


class _Sentinels:
    """The newest of the plain objects that have travelled, each with a name: nothing else distinguishes them."""

    def __init__(self) -> None:
        self._names: OrderedDict[int, tuple[object, bytes]] = OrderedDict()
        self._things: dict[bytes, object] = {}

    def name_of(self, thing: object) -> bytes:
        with _lock:
            known = self._names.get(id(thing))
            return self._add(thing, secrets.token_bytes(16)) if known is None else known[1]

    def find(self, name: bytes) -> object:
        with _lock:
            if name not in self._things:
                self._add(object(), name)
            return self._things[name]

    def _add(self, thing: object, name: bytes) -> bytes:
        self._names[id(thing)] = thing, name
        self._things[name] = thing
        while len(self._names) > MOST_HELD:
            _, (_, oldest) = self._names.popitem(last=False)
            del self._things[oldest]
        return name


_sentinels = _Sentinels()


def make_sentinel(name: bytes) -> object:
    """The plain object of that name."""
    return _sentinels.find(name)


def reduce_sentinel(thing: object) -> tuple[Any, ...]:
    """The reduction of a plain object, as `object()` makes it."""
    return make_sentinel, (_sentinels.name_of(thing),)


# ------------------------------------------------------------------------------------------------- one for each name


class _Known(NamedTuple):
    name: bytes
    find: Callable[[], Any]
    is_from_here: bool


_by_id: dict[int, _Known] = {}
"""By `id`, as the object may not be hashable."""
_by_name: dict[bytes, _Known] = {}
_empty: set[bytes] = set()
_held: OrderedDict[int, Callable[[object], None]] = OrderedDict()
"""Bounds the objects without weak references: the newest are kept."""


def _itself(thing: Any) -> Any:
    return thing


def _remember(thing: Any, name: bytes, is_from_here: bool) -> None:
    number = id(thing)

    def forget(_: object) -> None:
        _by_id.pop(number, None)
        _unfilled.pop(number, None)
        _empty.discard(name)
        if _by_name.get(name) is known:
            del _by_name[name]

    try:
        find: Callable[[], Any] = ref(thing, forget)
    except TypeError:
        find = partial(_itself, thing)
        _held[number] = forget
    known = _Known(name, find, is_from_here)
    _by_id[number] = _by_name[name] = known
    while len(_held) > MOST_HELD:
        _held.popitem(last=False)[1](None)


def _find(name: bytes) -> Any:
    known = _by_name.get(name)
    return None if known is None else known.find()


def name_of(thing: Any, content: Callable[[Any], bytes]) -> bytes:
    """The name of a named object that is about to be pickled by value.

    `content` gives the token of an object that was defined here; two with the same content get two names.
    """
    known = _by_id.get(id(thing))
    if known is not None:
        return known.name
    name = content(thing)
    with _lock:
        while _find(name) is not None:
            name = blake2b(name, digest_size=DIGEST_BYTES).digest()
        _remember(thing, name, is_from_here=True)
    return name


def make_named(name: bytes, maker: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The named object of that name; `keep_named` or `renew_named` gives it its state."""
    found = _find(name)
    if found is not None:
        return found
    made = maker(*arguments)
    with _lock:
        found = _find(name)
        if found is not None:
            return found
        _remember(made, name, is_from_here=False)
        _empty.add(name)
    return made


def keep_named(thing: Any, state: tuple[Callable[[Any, Any], object], Any]) -> None:
    """Give a named object its state, unless it was defined here or has it already."""
    with _lock:
        known = _by_id.get(id(thing))
        if known is not None and known.name in _empty:
            renew_named(thing, state)


def renew_named(thing: Any, state: tuple[Callable[[Any, Any], object], Any]) -> None:
    """Give a named object its state anew, unless it was defined here."""
    with _lock:
        known = _by_id.get(id(thing))
        if known is not None and not known.is_from_here:
            set_state, content = state
            set_state(thing, content)
            _empty.discard(known.name)
            note_renewed(thing)
