"""The base of the picklers for calls, functions, values and tokens, and the rule for what travels by value.

*By reference* means by module and name: the other side imports it. *By value* means that its definition travels.
Functions and classes that another process cannot import (from `__main__`, a notebook, `python -c`, a closure, or a
module given to `cloudpickle.register_pickle_by_value`) travel by value; so do modules that only this process has, and
objects that pickle as a name in one of these places. Everything else is ordinary pickle, which is many times faster
than cloudpickle. Ordinary pickle alone would refer to `__main__.f`, which the other `__main__` does not have, so every
pickler of this package asks `travels_by_value`, and `names_what_only_we_have` searches its output.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import io
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, cast

import cloudpickle

from trio_dask.protocol.bytecode import code_use
from trio_dask.protocol.introspection import attributes_of, kind_of
from trio_dask.protocol.pickled_enums import fill_enum, make_enum, reduce_enum
from trio_dask.protocol.pickled_names import (
    PARTS_BY_TYPE,
    keep_named,
    make_generic_alias,
    make_named,
    name_of,
    parts_of_named,
    reduce_sentinel,
    renew_named,
)
from trio_dask.protocol.rebuilt_classes import keep_class, make_class, origin_of, renew_class

if TYPE_CHECKING:
    from pickle import Pickler as CloudPickler
else:
    from cloudpickle import Pickler as CloudPickler


PICKLE_PROTOCOL = 5

PICKLING_FAILURES = (Exception, SystemExit, GeneratorExit)
"""What a user's `__reduce__` or `__setstate__` may raise as an error of its own; Ctrl-C is not one."""

Buffer = bytes | bytearray | memoryview

# A wrapper made by lru_cache pickles as its own name, so it needs the same care as a function.
CACHED_FUNCTION: type[Any] = type(functools.lru_cache(abs))

_ALWAYS_THERE = frozenset({type(None), type(...), type(NotImplemented)})
_ABSENT = object()


class KeyReference:
    """An object that represents the result of a task; in a call it becomes a dependency. It has a `key`."""

    __slots__ = ()

    key: str


class Chunks(list[bytes]):
    """A file for picklers that keeps each write as it is."""

    __slots__ = ()

    write = list[bytes].append

    def take(self) -> bytes:
        """Everything written so far in one piece; empties the file."""
        data = self[0] if len(self) == 1 else b"".join(self)
        self.clear()
        return data


def type_name(kind: type[Any]) -> str:
    """The qualified name of a type; without the module for a builtin."""
    module: Any = getattr(kind, "__module__", None)
    name: Any = getattr(kind, "__qualname__", None) or getattr(kind, "__name__", "?")
    return str(name) if module in (None, "builtins") else f"{module}.{name}"


# ------------------------------------------------------------------------------------------------- the rule


def modules_by_value() -> set[str]:
    """Names of the modules that the user has registered with cloudpickle to travel by value."""
    return cast("set[str]", cloudpickle.list_registry_pickle_by_value())


def is_definition(thing: Any) -> bool:
    """Whether this is a function, a cached function or a class."""
    kind = kind_of(thing)
    return kind is FunctionType or kind is CACHED_FUNCTION or issubclass(kind, type)


def travels_by_value(thing: Any) -> bool:
    """Whether `thing` is a definition, or a module, that another process cannot be expected to import."""
    kind = kind_of(thing)
    if kind is ModuleType:
        return thing.__name__ not in sys.modules or _is_registered(thing.__name__)
    if kind is not FunctionType and kind is not CACHED_FUNCTION and not issubclass(kind, type):
        return False
    module_name: Any = getattr(thing, "__module__", None)
    if module_name == "__main__":
        return True
    if _find(module_name, thing.__qualname__) is not thing:
        return thing not in _ALWAYS_THERE if kind is type else True
    return _is_registered(module_name)


def _find(module_name: Any, qualified_name: str) -> Any:
    found: Any = sys.modules.get(module_name, _ABSENT)
    for name in qualified_name.split("."):
        found = getattr(found, name, _ABSENT)
    return found


def _is_registered(module_name: Any) -> bool:
    registered = modules_by_value()
    return bool(registered) and any(module_name == name or module_name.startswith(f"{name}.") for name in registered)


def names_what_only_we_have(pickled: bytes) -> bool:
    """Whether an ordinary pickle may refer by name to a module that travels by value, or only contains its name."""
    if b"\x08__main__" in pickled:  # the length of a name comes before it
        return True
    registered = modules_by_value()
    return bool(registered) and any(name.encode() in pickled for name in registered)


# ------------------------------------------------------------------------------------------------- by value


def code_in_file(filename: str, *arguments: Any) -> CodeType:
    """A code object that names its file, for tracebacks: cloudpickle leaves it out from 3.1.3 on."""
    return CodeType(*arguments).replace(co_filename=filename)


def reduce_method(method: MethodType) -> tuple[Any, ...]:
    """A bound method by name, if that leads to it; for decorated, private and `super()` methods it does not."""
    function, owner = method.__func__, method.__self__
    name: Any = getattr(function, "__name__", None)
    found = getattr(owner, name, None) if type(name) is str else None
    if type(found) is MethodType and found.__func__ is function and found.__self__ is owner:
        return getattr, (owner, name)
    return MethodType, (function, owner)


ORDINARY: Mapping[Any, Callable[[Any], Any]] = ChainMap(
    {MethodType: reduce_method, object: reduce_sentinel}, copyreg.dispatch_table
)
"""The reductions of this package's ordinary picklers, by type."""

_registered: dict[Any, Any] = {}
_ordinary: dict[Any, Callable[[Any], Any]] = {}


def ordinary_reductions() -> Mapping[Any, Callable[[Any], Any]]:
    """`ORDINARY` as a dictionary: a pickler looks up the type of each object, which a chain of maps does in Python."""
    global _registered, _ordinary
    if _registered != copyreg.dispatch_table:
        _registered, _ordinary = dict(copyreg.dispatch_table), dict(ORDINARY)
    return _ordinary


def make_cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    """A cached function with an empty cache."""
    return functools.lru_cache(**parameters)(function)


def make_cached_property(function: Callable[..., Any], name: str | None) -> Any:
    """A cached property: Python 3.11 gives it a lock, which cannot be pickled."""
    made: functools.cached_property[Any] = functools.cached_property(function)
    made.attrname = name
    return made


class _Example:
    """Shows how cloudpickle makes classes other than enumerations."""


_Example.__module__ = "__main__"
_MAKE_CLASS: Any = cast("Any", CloudPickler(io.BytesIO()).reducer_override(_Example))[0]


def _with_slots(cls: type[Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make the class with its slots, so that its instances also load where the class was defined."""
    if "__slots__" not in vars(cls):
        return arguments
    return (*arguments[:3], {**arguments[3], "__slots__": vars(cls)["__slots__"]}, *arguments[4:])


class ByValuePickler(CloudPickler):
    """cloudpickle, with what it leaves out: files of code, globals of nested classes, cached functions, named objects.

    It refuses open files, which cloudpickle pickles by content. `renews_state` tells whether the other side sets the
    attributes of classes and named objects again that it has already.
    """

    renews_state = False
    _met_aliases: Sequence[Any] = ()

    def content_of(self, thing: Any) -> bytes:
        """The token of the content of a class or named object that was defined here."""
        raise NotImplementedError

    def reducer_override(self, obj: Any, /) -> Any:
        kind = kind_of(obj)
        if kind is FunctionType:
            return self.reduce_function(obj)
        if kind is CACHED_FUNCTION:
            if travels_by_value(obj):
                attributes = {name: value for name, value in attributes_of(obj).items() if name != "__wrapped__"}
                return make_cached, (obj.__wrapped__, obj.cache_parameters()), attributes
            return NotImplemented
        if issubclass(kind, type):
            return self.reduce_class(obj)
        if kind is CodeType:
            reduced = cast("tuple[Any, ...]", self.dispatch_table[CodeType](obj))
            return code_in_file, (obj.co_filename, *reduced[1])
        if kind is object:
            return reduce_sentinel(obj)
        if kind is functools.cached_property:
            return make_cached_property, (obj.func, obj.attrname)
        if kind is io.TextIOWrapper and obj is not sys.stdout and obj is not sys.stderr:
            raise TypeError("cannot pickle an open file")
        if kind in self.dispatch_table and kind not in PARTS_BY_TYPE:
            return NotImplemented
        return self.reduce_object(obj)

    def reduce_function(self, function: FunctionType) -> Any:
        """A function with all its globals: cloudpickle misses those that the body of a nested class reads."""
        reduced: Any = super().reducer_override(function)
        if reduced is not NotImplemented:
            carried = cast("dict[str, Any]", reduced[2][1]["__globals__"])
            for name in code_use(function.__code__).globals:
                if name not in carried and name in function.__globals__:
                    carried[name] = function.__globals__[name]
            if getattr(function, "__type_params__", ()):  # from Python 3.12 on
                reduced[2][1]["__type_params__"] = function.__type_params__  # type: ignore[attr-defined]
        return reduced

    def reduce_class(self, cls: Any) -> Any:
        """A class by value, with its origin; cloudpickle makes its type and its attributes."""
        reduced: Any = super().reducer_override(cls)
        if reduced is NotImplemented or len(reduced) < 6:
            return reduced
        maker, arguments, state, _, _, set_state = reduced
        origin = origin_of(cls, arguments[-2], self.content_of)
        if issubclass(cls, enum.Enum):
            arguments, state = reduce_enum(cls, state[0], set_state)
            maker, set_state = make_enum, fill_enum
        else:
            if maker is _MAKE_CLASS and not issubclass(cls, tuple):
                arguments = _with_slots(cls, arguments)
            arguments = (*arguments[:-2], None, None)
        fill = renew_class if self.renews_state else keep_class
        return make_class, (*origin, maker, arguments), (set_state, state), None, None, fill

    def reduce_object(self, obj: Any) -> Any:
        """The usual reduction, except for objects that pickle as a name in a module that travels by value."""
        reduced = obj.__reduce_ex__(PICKLE_PROTOCOL)
        if type(reduced) is not str:
            kind = kind_of(obj)
            if issubclass(kind, enum.Enum) and reduced[0] is kind and obj.name in kind.__members__:
                return getattr, (kind, obj.name)  # a task may have changed the value
            return reduced
        module_name: Any = getattr(obj, "__module__", None)
        if module_name is None:
            return NotImplemented  # pickle itself searches all modules for it
        if module_name != "__main__" and _find(module_name, reduced) is obj and not _is_registered(module_name):
            return NotImplemented
        return self.reduce_named(obj)

    def reduce_named(self, obj: Any) -> Any:
        """A named object by value.

        Raises `TypeError` for a type alias that has parameters and refers to itself: Python makes these only from
        source.
        """
        parts = parts_of_named(obj)
        if parts.maker is make_generic_alias:
            self._met_aliases = [*self._met_aliases, obj]
            if sum(met is obj for met in self._met_aliases) > 1:  # it has no place in the memo yet
                raise TypeError(
                    f"cannot pickle the type alias {obj.__name__}, which has parameters and refers to itself"
                )
        fill = renew_named if self.renews_state else keep_named
        made = make_named, (name_of(obj, self.content_of), parts.maker, parts.arguments)
        return *made, (parts.set_state, parts.state), None, None, fill
