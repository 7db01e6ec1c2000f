"""The picklers that calls, functions, values and tokens are made with, and the rule for what travels by value.

*By reference* means by module and name: the other side imports it. *By value* means its definition travels. Functions
and classes that another process cannot import (from `__main__`, a notebook, `python -c`, a closure, or a module that
was given to `cloudpickle.register_pickle_by_value`) travel by value; all else is ordinary pickle, which is many times
faster than cloudpickle. Ordinary pickle alone would happily refer to `__main__.f`, which is another `__main__` over
there, so every pickler of this package asks `travels_by_value`.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import cloudpickle

if TYPE_CHECKING:
    from pickle import Pickler as CloudPickler
else:
    from cloudpickle import Pickler as CloudPickler

__all__ = [
    "CACHED_FUNCTION",
    "PICKLING_FAILURES",
    "PROTOCOL",
    "Buffer",
    "ByValuePickler",
    "Chunks",
    "KeyReference",
    "kind_of",
    "load_by_value",
    "modules_by_value",
    "travels_by_value",
    "type_name",
]

PROTOCOL = 5

PICKLING_FAILURES = (Exception, SystemExit, GeneratorExit)
"""What a user's `__reduce__` or `__setstate__` may raise that is an error of theirs; a real Ctrl-C is not among it."""

Buffer = bytes | bytearray | memoryview

kind_of: Callable[[Any], type[Any]] = type
"""`type` with one argument, in words that type checkers accept for any object."""

# A wrapper made by lru_cache pickles as its own name, so it needs the same care as a function.
CACHED_FUNCTION: type[Any] = type(functools.lru_cache(abs))

_ALWAYS_THERE = frozenset({type(None), type(...), type(NotImplemented)})
_ABSENT = object()


class KeyReference:
    """Something that stands for the result of a task: in a call it becomes a dependency. Has the attribute `key`."""

    __slots__ = ()

    key: str


class Chunks(list[bytes]):
    """A file for picklers that keeps what is written as it is, without joining or copying."""

    __slots__ = ()

    write = list[bytes].append

    def take(self) -> bytes:
        """All that was written, as one piece; empties the file."""
        data = self[0] if len(self) == 1 else b"".join(self)
        self.clear()
        return data


def type_name(kind: type[Any]) -> str:
    """Qualified name of a type, without the module where it is a builtin."""
    module: Any = getattr(kind, "__module__", None)
    name: Any = getattr(kind, "__qualname__", None) or getattr(kind, "__name__", "?")
    return str(name) if module in (None, "builtins") else f"{module}.{name}"


def modules_by_value() -> set[str]:
    """Names of the modules that the user has registered with cloudpickle to travel by value."""
    return cast("set[str]", cloudpickle.list_registry_pickle_by_value())


def travels_by_value(thing: Any) -> bool:
    """Whether `thing` is a function or class that another process cannot be expected to import."""
    kind = kind_of(thing)
    if kind is not FunctionType and kind is not CACHED_FUNCTION and not issubclass(kind, type):
        return False
    module_name: Any = getattr(thing, "__module__", None)
    if module_name == "__main__":
        return True
    found: Any = sys.modules.get(module_name, _ABSENT)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, _ABSENT)
    if found is not thing:
        return thing not in _ALWAYS_THERE if kind is type else True
    registered = modules_by_value()
    return bool(registered) and any(module_name == name or module_name.startswith(f"{name}.") for name in registered)


def code_in_file(filename: str, *arguments: Any) -> CodeType:
    """A code object that names its file: cloudpickle 3.1.3 and later leave it out, and tracebacks need it."""
    return CodeType(*arguments).replace(co_filename=filename)


def _again_cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


class ByValuePickler(CloudPickler):
    """cloudpickle with code that names its file, without open files by their content, and with cached functions."""

    def reducer_override(self, obj: Any, /) -> Any:
        kind = kind_of(obj)
        if kind is CACHED_FUNCTION:
            if travels_by_value(obj):
                return _again_cached, (obj.__wrapped__, obj.cache_parameters())
        elif issubclass(kind, type):
            if obj not in _from_elsewhere and travels_by_value(obj):
                _at_home.add(obj)
        elif kind is CodeType:
            reduced = cast("tuple[Any, ...]", self.dispatch_table[CodeType](obj))
            return code_in_file, (obj.co_filename, *reduced[1])
        elif kind is io.TextIOWrapper and obj is not sys.stdout and obj is not sys.stderr:
            raise TypeError("cannot pickle an open file")
        return super().reducer_override(obj)


# cloudpickle finds a class that returns to its home by an id that travels along, but then sets all its attributes
# anew: methods would be swapped, under the user's feet, for copies with other globals.
_at_home: WeakSet[type[Any]] = WeakSet()
_from_elsewhere: WeakSet[type[Any]] = WeakSet()


def _set_class_state(setter: Callable[[Any, Any], Any], made: type[Any], state: Any) -> Any:
    if made in _at_home:
        return made
    _from_elsewhere.add(made)
    return setter(made, state)


class _ByValueUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        return partial(_set_class_state, found) if global_name == "_class_setstate" else found


def load_by_value(data: Buffer) -> Any:
    """Load what a `ByValuePickler` wrote. A class that was defined in this process comes back as it is now."""
    return _ByValueUnpickler(io.BytesIO(data)).load()
