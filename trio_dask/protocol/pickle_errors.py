"""Which part of a large object cannot be pickled, as a path for the error message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from pickle import PicklingError
from traceback import walk_tb
from types import FunctionType, MethodType
from typing import Any

import cloudpickle

from trio_dask.protocol.bytecode import code_use
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.picklers import PICKLING_FAILURES, type_name

MAX_DEPTH = 50
REASON_CHARACTERS = 300

_Part = tuple[str, Any]
_PICKLERS = (str(Path(__file__).parent), str(Path(cloudpickle.__file__).parent))
_BUILTIN_CONTAINERS = (dict, list, tuple, set, frozenset)


def _parts_of_function(function: FunctionType) -> Iterator[_Part]:
    name = function.__qualname__
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"variable {variable!r} of {name}", cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for variable in code_use(function.__code__).globals:
        if variable in function.__globals__:
            yield f"global {variable!r} of {name}", function.__globals__[variable]
    for number, default in enumerate(function.__defaults__ or ()):
        yield f"default {number} of {name}", default


def _parts_of_state(state: Any, path: str) -> Iterator[_Part]:
    parts: tuple[Any, ...] = state if issubclass(kind_of(state), tuple) else (state,)
    for part in parts:
        if issubclass(kind_of(part), Mapping):
            yield from ((f"{path}.{name}", value) for name, value in part.items())
        elif part is not None:
            yield f"{path}.__getstate__()", part


def _parts(value: Any, path: str) -> Iterator[_Part]:
    kind = kind_of(value)
    if issubclass(kind, dict):
        yield from ((f"{path}[{_label(key)}]", item) for key, item in value.items())
        yield from ((f"a key of {path}", key) for key in value)
    elif issubclass(kind, list | tuple):
        yield from ((f"{path}[{number}]", item) for number, item in enumerate(value))
    elif issubclass(kind, set | frozenset):
        yield from ((f"an element of {path}", item) for item in value)
    elif kind is FunctionType:
        yield from _parts_of_function(value)
    elif kind is MethodType:
        yield f"{path}.__self__", value.__self__
        yield f"{path}.__func__", value.__func__
    elif issubclass(kind, partial):
        yield f"{path}.func", value.func
        yield from ((f"{path}.args[{number}]", item) for number, item in enumerate(value.args))
        yield from ((f"{path}.keywords[{name!r}]", item) for name, item in value.keywords.items())
    if kind in _BUILTIN_CONTAINERS or kind is FunctionType or kind is MethodType:
        return
    reduced: Any = value.__reduce_ex__(4)
    if kind_of(reduced) is tuple:
        reduction: tuple[Any, ...] = reduced
        _, arguments, state, items, *_ = (*reduction, None, None)
        yield from _parts_of_state(state, path)
        yield from ((f"argument {number} of {path}.__reduce__()", item) for number, item in enumerate(arguments))
        listed: Iterable[Any] = items or ()
        yield from ((f"{path}[{number}]", item) for number, item in enumerate(listed))


def _label(key: Any) -> str:
    return repr(key)[:60] if kind_of(key) in (str, int) else "..."  # others may have a slow or broken __repr__


def _guilty(parts: list[_Part], can_pickle: Callable[[Any], bool]) -> _Part | None:
    """The first part that cannot be pickled. By bisection, each object is tried about twice, not once per sibling."""
    while len(parts) > 1:
        half = parts[: len(parts) // 2]
        parts = parts[len(half) :] if can_pickle([value for _, value in half]) else half
    return parts[0] if parts and not can_pickle(parts[0][1]) else None


def _search(value: Any, path: str, can_pickle: Callable[[Any], bool]) -> _Part:
    for _ in range(MAX_DEPTH):
        try:
            found = _guilty(list(_parts(value, path)), can_pickle)
        except PICKLING_FAILURES:  # this object's own __reduce__ raises: it is the culprit
            break
        if found is None:
            break
        path, value = found
    return path, value


def describe_culprit(value: Any, label: str, path: str, can_pickle: Callable[[Any], bool], error: BaseException) -> str:
    """One sentence: `label` cannot be pickled, because the part at some path below `path` is of some type."""
    own = type_name(kind_of(value))
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return f"cannot pickle {label}, a {own}: it is nested too deeply"
    where, culprit = _search(value, path, can_pickle)
    guilty = type_name(kind_of(culprit))
    inside = "" if culprit is value else f": {where} is a {guilty}"
    return f"cannot pickle {label}, a {own}{inside} ({_reason(error)})"


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except PICKLING_FAILURES:  # its own `__str__` raises
        text = ""
    if not isinstance(error, TypeError | PicklingError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]}..."


def users_own(error: BaseException) -> BaseException | None:
    """The error if the user's code raised it; None if a pickler refused, since the sentence then says everything."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return error if frames and not frames[-1].f_code.co_filename.startswith(_PICKLERS) else None
