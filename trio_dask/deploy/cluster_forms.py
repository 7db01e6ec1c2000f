"""How one definition of a cluster's arguments and methods becomes two forms: one for Trio, and one that blocks."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Set
from contextlib import AbstractAsyncContextManager
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import trio

from trio_dask.client.call_forms import described_by, remade
from trio_dask.client.wait_signals import refuse_in_event_loop, require_trio
from trio_dask.deploy.block import opened
from trio_dask.errors import UsageError

if TYPE_CHECKING:
    from trio_dask.deploy.cluster import AsyncCluster

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", bound="AsyncCluster")
Plan = TypeVar("Plan")
Form = TypeVar("Form", bound=Callable[..., Any])


def _described(form: Form, definition: Callable[..., Any], name: str, result: str, *around: Parameter) -> Form:
    """Give a form its definition's docstring and signature; its first and last parameters may be its own."""
    described = cast("Any", form)
    described.__name__, described.__qualname__, described.__doc__ = name.rpartition(".")[2], name, definition.__doc__
    parameters = [*around[:1], *inspect.signature(definition).parameters.values(), *around[1:]]
    described.__signature__ = inspect.Signature(parameters, return_annotation=result)
    return form


def _leave_out(name: str, definition: Callable[..., Any], ignored: Set[str], arguments: dict[str, Any]) -> None:
    """Take out those of distributed's arguments that mean nothing here; refuse what is no argument at all."""
    parameters = inspect.signature(definition).parameters
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    for argument in sorted(arguments.keys() - parameters.keys()):
        if argument in ignored:
            del arguments[argument]
        elif not takes_all:
            raise TypeError(f"{name}() got an unexpected argument {argument!r}")


def for_trio(
    definition: Callable[P, Plan],
    make: Callable[[Plan], A],
    name: str,
    blocking: str,
    ignored: frozenset[str] = frozenset(),
) -> Callable[P, AbstractAsyncContextManager[A]]:
    """The form for Trio: takes the definition's arguments, and opens the cluster that `make` makes of its plan.

    It ignores some of distributed's arguments.
    """

    def call(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[A]:
        require_trio(name, blocking)
        _leave_out(name, definition, ignored, kwargs)
        return opened(make(definition(*args, **kwargs)))

    result = f"AbstractAsyncContextManager[{getattr(make, '__name__', 'AsyncCluster')}]"
    return _described(call, definition, name, result)


def takes_arguments_of(
    definition: Callable[P, Plan], *, name: str, for_trio: str, ignored: frozenset[str] = frozenset()
) -> Callable[[Callable[[Any, Plan], None]], Callable[Concatenate[Any, P], None]]:
    """A decorator for `__init__`: takes the definition's arguments, and ignores some of distributed's."""
    parameters = inspect.signature(definition).parameters
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())

    def decorate(start: Callable[[Any, Plan], None]) -> Callable[Concatenate[Any, P], None]:
        def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
            if kwargs.pop("asynchronous", None):
                raise UsageError(f"{name} blocks; use {for_trio} in a Trio program")
            _leave_out(name, definition, ignored, kwargs)
            refuse_in_event_loop(f"{name}()", f"`{for_trio}`")
            start(self, definition(*args, **kwargs))

        own = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
        foreign = [] if takes_all else [Parameter("foreign", Parameter.VAR_KEYWORD, annotation="Any")]
        return _described(call, definition, f"{name}.__init__", "None", own, *foreign)

    return decorate


def awaited_in_loop(
    method: Callable[Concatenate[A, P], Awaitable[R]],
) -> Callable[Concatenate[Any, P], R]:
    """The form of an async method that blocks."""
    form: Callable[Concatenate[Any, P], R] = _form(method, trio.from_thread.run)
    return form


def called_in_loop(
    method: Callable[Concatenate[A, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """The form of a method for other threads than that of the cluster's loop."""
    form: Callable[Concatenate[Any, P], R] = _form(method, trio.from_thread.run_sync)
    return form


def _form(method: Callable[..., Any], run: Callable[..., Any]) -> Any:
    def make(name: str) -> Callable[..., Any]:
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            def act(cluster: AsyncCluster) -> Any:
                return method(cluster, *args, **kwargs)

            return self._run_in_loop(run, act)

        return described_by(method, call, name)

    return remade(make, method.__name__)
