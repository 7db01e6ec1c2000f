"""Classes and named objects by value: one object a process for each that was defined somewhere.

Values of several tasks meet in one process, and `isinstance` has to hold between them. So a class travels with its
origin: the name that cloudpickle drew for it where it was defined, and the token of its content when it left. What
comes back to that process is the class itself, as it is now. Elsewhere each origin is built once; a class that was
changed before it was sent again has another content, and is another class.

A named object is one that pickles as a name in its module, as `NewType("UserId", int)` and a script's own sentinels do.
There is one for each token of its content.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

__all__ = ["Origin", "keep_class", "make_class", "make_named", "name_of", "origin_of", "renew_class", "set_named"]


class Origin(NamedTuple):
    """The name of a class where it was defined, and the token of its content when it left."""

    name: str
    content: bytes


_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType)

_lock = threading.Lock()
_home: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""The classes that were defined here and have been sent, by name."""
_origins: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()
"""Of the classes that were built here."""
_built: WeakValueDictionary[Origin, Any] = WeakValueDictionary()
_complete: WeakSet[Any] = WeakSet()

_named: dict[bytes, Any] = {}
_named_elsewhere: dict[int, tuple[Any, bytes]] = {}
"""By `id`, each with the object, since it may be one that cannot be hashed or referred to weakly."""
_stateless: set[bytes] = set()


def origin_of(cls: Any, name: str, content: Callable[[Any], bytes]) -> Origin:
    """The origin of a class that is about to be pickled by value.

    `name` and `content` give the name and the token of the content of one that was defined here.
    """
    origin = _origins.get(cls)
    if origin is not None:
        return origin
    _home[name] = cls
    return Origin(name, content(cls))


def make_class(name: str, content: bytes, maker: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The class of that origin; what `maker` builds is still empty, and one of `keep_class`, `renew_class` fills it."""
    home = _home.get(name)
    if home is not None:
        return home
    origin = Origin(name, content)
    built = _built.get(origin)
    if built is None:
        made = maker(*arguments)
        with _lock:
            built = _built.setdefault(origin, made)
            _origins[built] = origin
    return built


def keep_class(cls: Any, state: tuple[Callable[[Any, Any], object], Any]) -> Any:
    """Give a class its attributes, unless it has them."""
    if cls in _origins and cls not in _complete:
        set_state, attributes = state
        set_state(cls, attributes)
        _complete.add(cls)
    return cls


def renew_class(cls: Any, state: tuple[Callable[[Any, Any], object], Any]) -> Any:
    """Give a class its attributes; one that has them, which tasks may have changed, gets them anew."""
    if cls in _complete and not issubclass(cls, enum.Enum):
        set_state, attributes = state
        table: dict[str, Any] = attributes[0]
        for name, value in _attributes(cls):
            if name not in table and not name.startswith(("__", "_abc_")) and not isinstance(value, _DESCRIPTORS):
                delattr(cls, name)
        set_state(cls, attributes)
        return cls
    return keep_class(cls, state)


def _attributes(cls: type[Any]) -> list[tuple[str, Any]]:
    return list(vars(cls).items())


def _parts_of_state(state: Any) -> list[dict[str, Any]]:
    """What `object.__getstate__` gave: a dictionary of attributes, or a pair of that and one of slots."""
    is_pair = issubclass(type(state), tuple)
    parts: tuple[Any, ...] = state if is_pair else (state,)
    return [part for part in parts if part is not None]


def name_of(thing: Any, content: Callable[[Any], bytes]) -> bytes:
    """The name of a named object that is about to be pickled by value: `content` gives that of one defined here."""
    found = _named_elsewhere.get(id(thing))
    if found is not None:
        return found[1]
    name = content(thing)
    _named[name] = thing
    return name


def make_named(name: bytes, maker: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The named object of that name; what `maker` makes may still want its state from `set_named`."""
    if name not in _named:
        made = maker(*arguments)
        with _lock:
            if name not in _named:
                _named_elsewhere[id(made)] = made, name
                _stateless.add(name)
                _named[name] = made
    return _named[name]


def set_named(thing: Any, state: Any) -> Any:
    """Give a named object its state, unless it was defined here or has it already."""
    found = _named_elsewhere.get(id(thing))
    if found is not None and found[1] in _stateless:
        for part in _parts_of_state(state):
            for attribute, value in part.items():
                object.__setattr__(thing, attribute, value)
        _stateless.discard(found[1])
    return thing
