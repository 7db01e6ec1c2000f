"""The callables of tasks as bytes: each travels once for all the tasks that call it.

The first byte distinguishes two kinds, by the rule of `captured_values`. A definition that cannot carry anything from
one task to another (by reference, or by value with only immutable captures) is a plain pickle: it is loaded once and
shared by all its tasks. Everything else (a bound method, a partial, an object, a closure over a list) has the form of a
call with one argument: each task loads its own.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType
from typing import Any

from trio_dask.errors import SerializationError
from trio_dask.ids import Digest
from trio_dask.protocol.blob_contents import content_digest
from trio_dask.protocol.call_tokens import canonical_token
from trio_dask.protocol.captured_values import CarriesState, is_immutable
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.pickle_errors import describe_culprit, users_own
from trio_dask.protocol.pickled_calls import can_pickle, load_call, pickle_arguments
from trio_dask.protocol.pickled_definitions import (
    PickledFunction,
    by_reference,
    by_value,
    kept_definition,
    load_shared,
    short_name,
    token_of_definition,
)
from trio_dask.protocol.picklers import (
    PICKLING_FAILURES,
    Buffer,
    is_definition,
    travels_by_value,
)
from trio_dask.protocol.rebuilt_classes import make_class

__all__ = ["PickledFunction", "load_function", "pickle_function"]

_PICKLE = 0x80
_BRINGS_CLASSES = make_class.__name__.encode()


def pickle_function(function: Callable[..., Any]) -> PickledFunction:
    """The callable as it travels.

    Raises `SerializationError`, which tells which part cannot be pickled.
    """
    kept = kept_definition(function)
    if kept is not None:
        return kept
    try:
        return _pickle_shared(function) or _pickle_own(function)
    except PICKLING_FAILURES as error:  # of the user's objects, for the caller of `submit`
        sentence = describe_culprit(function, f"the function {short_name(function)}", "function", can_pickle, error)
        raise SerializationError(sentence) from users_own(error)


def _pickle_shared(function: Any) -> PickledFunction | None:
    """The callable in a form that tasks may share, or None if it can carry something from one to another."""
    if not is_definition(function):
        try:
            return by_reference(function) if _is_fixed(function) else None
        except PICKLING_FAILURES:  # a part of it travels by value
            return None
    if not travels_by_value(function):
        return by_reference(function)
    try:
        return by_value(function)
    except CarriesState:
        return None


def _is_fixed(function: Any) -> bool:
    """Whether this callable, which is no definition, can carry nothing all the same."""
    kind = kind_of(function)
    if kind is partial:
        bound = (function.func, *function.args, *function.keywords.values())
        return not vars(function) and all(map(is_immutable, bound))
    return kind is BuiltinFunctionType and is_immutable(function)


def _pickle_own(function: Any) -> PickledFunction:
    pickled = pickle_arguments((function,), {})
    if pickled.dependencies:
        raise SerializationError(
            f"the function {short_name(function)} refers to the future {pickled.dependencies[0]!r}: "
            "pass it as an argument"
        )
    token = canonical_token(
        function,
        pickled.call,
        digests={id(owner): digest for owner, digest in pickled.hashed},
        token_by_value=token_of_definition,
    )
    return PickledFunction(content_digest(pickled.call), pickled.call, short_name(function), token, pickled.blobs)


def brings_classes(data: Buffer) -> bool:
    """Whether a callable is a task's own, or has classes by value."""
    return data[0] != _PICKLE or _BRINGS_CLASSES in bytes(data)


def load_function(digest: Digest, data: Buffer, blobs: Mapping[Digest, Buffer]) -> tuple[Callable[..., Any], bool]:
    """The callable that `pickle_function` gave `digest` and `data` for, and whether the caller may keep it.

    Do not keep one that brings classes: tasks may change these, and then it is loaded anew. Raises whatever its loading
    raises.
    """
    if data[0] == _PICKLE:
        if brings_classes(data):
            return load_shared(digest, data), False
        function: Callable[..., Any] = pickle.loads(data)
        return function, True
    (own,), _ = load_call(data, blobs, {})
    return own, False
