"""Refuse keywords that could be meant for `submit`, or for the function that is submitted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache, partial, wraps
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final, TypeVar, cast

from trio_dask.client.task_options import is_forward
from trio_dask.errors import UsageError

_Method = TypeVar("_Method", bound=Callable[..., Any])

_PLAIN: Final = frozenset({int, float, str, bool, type(None)})
MAX_SHOWN: Final = 40


def unambiguous(method: _Method) -> _Method:
    """Have a method `(self, func, /, *args, <options>, **kwargs)` refuse an option that `func` has a parameter for.

    An option counts as given even where it equals its default, which the method itself could not see.
    """
    options = frozenset(cast("FunctionType", method).__kwdefaults__ or ())
    if "time_limit" in options:
        options |= {"output"}

    @wraps(method)
    def checked(self: Any, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not kwargs:
            return method(self, func, *args)
        if not options.isdisjoint(kwargs) and ("key" in kwargs or not _takes_none_of(kwargs, func)):
            _check(
                method.__name__,
                func,
                len(args),
                {name: kwargs[name] for name in kwargs if name in options and _is_meant(name, kwargs[name])},
            )
        return method(self, func, *args, **kwargs)

    return cast("_Method", checked)


def _is_meant(name: str, value: Any) -> bool:
    return name != "output" or is_forward(value)


def _takes_none_of(names: Collection[str], func: Any) -> bool:
    """Whether a quick check shows that no parameter of this function has one of these names."""
    kind = type(func)  # pyright: ignore[reportUnknownVariableType] - of anything
    variables: Collection[str]
    if kind is FunctionType and not func.__dict__:
        variables = func.__code__.co_varnames
    elif kind is BuiltinFunctionType and type(func.__self__) is ModuleType:
        variables = _names_of_builtin(func)[1]
    else:
        return False
    for name in names:  # noqa: SIM110 - every submit comes here
        if name in variables:
            return False
    return True


def _check(call: str, func: Any, bound: int, given: dict[str, Any]) -> None:
    """Raise `UsageError` if one of the options that are given could be meant for the function.

    Its first `bound` parameters are given by position, so no keyword can mean them.
    """
    if "key" in given and callable(given["key"]):
        name = _name(func)
        raise UsageError(
            f"key= must be a name for the task, not a function; if it is meant for {name}(), bind it: "
            f"{call}(functools.partial({name}, key=...), ...)"
        )
    for parameter in parameters_of(func, bound):
        if parameter in given:
            name, value = _name(func), _shown(given[parameter])
            raise UsageError(
                f"{parameter}={value} could be meant for {name}() or for {call}(): both take {parameter!r}. "
                f"For {name}(): {call}(functools.partial({name}, {parameter}={value}), ...). "
                f"For {call}(): bind the argument of {name}() like that, and also give {parameter}={value}"
            )


def parameters_of(func: Any, bound: int) -> Iterable[str]:
    """The parameters of a function that can be given by keyword and are not given by position."""
    if type(func) is FunctionType and not func.__dict__:  # an attribute may change its signature
        code = func.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return names[max(min(bound, code.co_argcount), code.co_posonlyargcount) :]
    is_builtin = type(func) is BuiltinFunctionType and type(func.__self__) is ModuleType
    by_position, by_keyword = (_names_of_builtin if is_builtin else _names)(func)
    gone: Collection[str] = {*by_position[:bound], *(func.keywords if isinstance(func, partial) else ())}
    return [name for name in by_keyword if name not in gone]


def _names(func: Any) -> tuple[list[str], list[str]]:
    """The parameters of any callable that can be given by position, and by keyword."""
    try:
        parameters = list(inspect.signature(func).parameters.values())
    except Exception:  # some builtins have none, and the user's own may raise anything
        return [], []
    return (
        [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)],
        [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)],
    )


_names_of_builtin = lru_cache(maxsize=1024)(_names)  # these are read from texts, which takes 200 µs


def _name(func: Any) -> str:
    while isinstance(func, partial):
        func = func.func
    name: Any = getattr(func, "__name__", None)
    return name if isinstance(name, str) else type(func).__name__


def _shown(value: Any) -> str:
    shown = repr(value) if type(value) in _PLAIN else "..."
    return shown if len(shown) <= MAX_SHOWN else "..."
