"""Classes and functions by value: one object in each process for each original.

Values of several tasks meet in one process, and `isinstance` has to hold between them. So a class travels with its
origin: the random name that cloudpickle gave it where it was defined, and the token of its content when it left. In
that process it loads as the class itself, as it is now. Elsewhere each origin is built once; a class that was changed
before it was sent again has another content, and is another class.

A function that cannot carry state is one object for each content, so that tasks may ask whether two are the same.
"""

from __future__ import annotations

import abc
import enum
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from trio_dask.protocol.introspection import attributes_of

_T = TypeVar("_T")


class Origin(NamedTuple):
    """The name of a class where it was defined, and the token of its content when it left."""

    name: str
    content: bytes


class _Shape(NamedTuple):
    """The attributes of a class when it was complete."""

    bases: tuple[Any, ...]
    attributes: frozenset[str]


MADE_BY_PYTHON = frozenset(
    {"__dict__", "__weakref__", "__slotnames__", "_abc_impl", "__annotations_cache__", "__annotate_func__"}
)
"""Attributes of classes that Python makes by itself, some of them only when the class is first pickled or asked."""


class _Loading(threading.local):
    """The definitions that this thread gives their attributes again, if they are to be noted."""

    renewed: list[Any] | None = None


_loading = _Loading()
_lock = threading.RLock()
"""A thread that loads a class waits until it is complete."""
_home: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""The classes that were defined here and have been sent, by name."""
_origins: WeakKeyDictionary[Any, Origin] = WeakKeyDictionary()
"""Of the classes that were built here."""
_METACLASSES = frozenset({type, abc.ABCMeta, enum.EnumMeta})
_hooks_run = 0
_built: WeakValueDictionary[Origin, Any] = WeakValueDictionary()
_complete: WeakKeyDictionary[Any, _Shape] = WeakKeyDictionary()


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
    """The class of that origin; `maker` builds it empty, and `keep_class` or `renew_class` fills it."""
    global _hooks_run
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
            if _has_hooks(built):
                _hooks_run += 1
    return built


def _has_hooks(cls: Any) -> bool:
    """Whether the user's code runs while such a class is made."""
    return type(cls) not in _METACLASSES or any("__init_subclass__" in vars(base) for base in cls.__mro__[1:-1])


def load_twice(load: Callable[[], _T]) -> _T:
    """The result of `load`, which is called twice if it builds classes whose creation runs the user's code.

    Such code (`__init_subclass__`, a metaclass) ran where the class was defined, and its effects travel. Here it runs
    again, after they have arrived: at the second call all classes exist, and get their original attributes.
    """
    before = _hooks_run
    result = load()
    return result if _hooks_run == before else load()


def keep_class(cls: Any, state: tuple[Callable[[Any, Any], object], Any]) -> Any:
    """Give a class its attributes, unless it has them."""
    with _lock:
        if cls in _origins and cls not in _complete:
            set_state, attributes = state
            set_state(cls, attributes)
            _complete[cls] = _Shape(cls.__bases__, frozenset(attributes_of(cls)))
    return cls


def renew_class(cls: Any, state: tuple[Callable[[Any, Any], object], Any]) -> Any:
    """Give a class its attributes, again if it has them, as tasks may have changed them.

    Other tasks may use it meanwhile, so attributes that stay are there at every moment.
    """
    note_renewed(cls)
    with _lock:
        shape = _complete.get(cls)
        if shape is None:
            return keep_class(cls, state)
        if cls.__bases__ != shape.bases:
            cls.__bases__ = shape.bases
        for name in attributes_of(cls).keys() - shape.attributes - MADE_BY_PYTHON:
            with suppress(AttributeError):  # the task that has bound it has unbound it
                delattr(cls, name)
        set_state, attributes = state
        if registered_with(cls) != frozenset(attributes[0].get("_abc_impl", ())):
            cls._abc_registry_clear()
            cls._abc_caches_clear()
        set_state(cls, attributes)
    return cls


def note_renewed(thing: Any) -> None:
    """A class or named object has got its attributes again."""
    if _loading.renewed is not None:
        _loading.renewed.append(thing)


@contextmanager
def noting_renewed(things: list[Any]) -> Generator[None]:
    """Add the definitions that are loaded in this block, and get their attributes again, to `things`."""
    before, _loading.renewed = _loading.renewed, things
    try:
        yield
    finally:
        _loading.renewed = before


class Bindings:
    """The attributes of definitions as they are now, and how to bind them again."""

    def __init__(self, things: Iterable[Any]) -> None:
        self._classes = [
            (thing, thing.__bases__, dict(attributes_of(thing)), registered_with(thing))
            for thing in things
            if issubclass(type(thing), type)
        ]
        objects = [thing for thing in things if not issubclass(type(thing), type)]
        for cls, *_ in self._classes:
            objects += cls.__members__.values() if issubclass(cls, enum.Enum) else ()
        self._objects = [(thing, dict(attributes_of(thing))) for thing in objects if hasattr(thing, "__dict__")]

    def apply(self) -> None:
        """Bind them again."""
        with _lock:
            for cls, bases, attributes, registered in self._classes:
                if cls.__bases__ != bases:
                    cls.__bases__ = bases
                for name in attributes_of(cls).keys() - attributes.keys() - MADE_BY_PYTHON:
                    type.__delattr__(cls, name)
                for name, value in attributes.items():
                    if name not in MADE_BY_PYTHON and attributes_of(cls).get(name) is not value:
                        type.__setattr__(cls, name, value)
                for other in registered - registered_with(cls):
                    cls.register(other)
            for thing, attributes in self._objects:
                own = attributes_of(thing)
                own.update(attributes)
                for name in own.keys() - attributes.keys():
                    del own[name]


def brings_class(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether one of these arguments is a class that was built here."""
    return any(issubclass(type(value), type) and value in _origins for value in (*args, *kwargs.values()))


def registered_with(cls: Any) -> frozenset[Any]:
    """The classes that `cls.register` was called with."""
    if not issubclass(type(cls), abc.ABCMeta):
        return frozenset()
    references: set[Callable[[], Any]] = vars(abc)["_get_dump"](cls)[0]  # which cloudpickle copies
    return frozenset(reference() for reference in references) - {None}


# ------------------------------------------------------------------------------------------------- functions


_functions: WeakValueDictionary[bytes, FunctionType] = WeakValueDictionary()
_as_made: WeakKeyDictionary[FunctionType, list[Any]] = WeakKeyDictionary()


def make_function(content: bytes, maker: Callable[..., Any], arguments: tuple[Any, ...]) -> FunctionType:
    """The function of that content, which cannot carry state; `fill_function` fills it.

    A function that a task has changed stays with that task; later loads make a new one.
    """
    found = _functions.get(content)
    if found is None or (found in _as_made and _as_made[found] != _bound_to(found)):
        made = maker(*arguments)
        with _lock:
            if _functions.get(content) is found:
                _functions[content] = made
            found = _functions[content]
    return found


def fill_function(function: FunctionType, state: tuple[Callable[[Any, Any], object], Any]) -> None:
    """Give a function its attributes and what it captured, unless it has them."""
    with _lock:
        if function not in _as_made:
            set_state, parts = state
            set_state(function, parts)
            _as_made[function] = _bound_to(function)


def _bound_to(function: FunctionType) -> list[Any]:
    """The parts of a function that can be rebound."""
    looked: list[Any] = [id(function.__code__), id(function.__defaults__), function.__qualname__, function.__doc__]
    for table in (function.__kwdefaults__ or {}, function.__annotations__, function.__dict__):
        looked += [(name, id(value)) for name, value in list(table.items())]
    return looked
