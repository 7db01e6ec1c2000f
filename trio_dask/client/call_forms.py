"""A call that waits is defined once; its blocking form and its form for Trio are made from the definition.

A definition prepares the call, and returns what to wait for:

    def gather(client: BaseClient[Any], futures: Any) -> Waiting[Any]:
        \"""The results of futures.\"""
        ...
        return ForKeys(client.engine, states, waiter, finish, futures)

    class Client(...):       gather = blocking(definitions.gather)
    class AsyncClient(...):  gather = awaitable(definitions.gather)

A call that only asks the cluster is an async function of the engine, from which `in_loop` makes a definition. Both
forms have the signature and the docstring of the definition: for type checkers by their types, for `help` by their
attributes.
"""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import trio

from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.wait_signals import (
    SettleWaiter,
    ValueReader,
    as_seconds,
    limit,
    refuse_in_event_loop,
    require_trio,
    within,
)

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Form = TypeVar("Form", bound=Callable[..., Any])

Timeout: TypeAlias = float | str | datetime.timedelta | None
"""Seconds, or a text with a unit such as "5 min"; None waits for ever."""


class Waiting(Protocol[R_co]):
    """What a call waits for and what it returns then: `block` in this thread, `wait` in this Trio task."""

    def block(self) -> R_co: ...
    async def wait(self) -> R_co: ...


@dataclass(slots=True, eq=False)
class Done(Generic[R]):
    """Nothing to wait for."""

    value: R

    def block(self) -> R:
        return self.value

    async def wait(self) -> R:
        require_trio("awaiting this", "the blocking calls of Client")
        await trio.lowlevel.checkpoint()
        return self.value


@dataclass(slots=True, eq=False)
class ForKeys(Generic[R]):
    """Waits for keys: calls `waiter` for each, then `finish` with whether the time sufficed.

    `futures` are kept alive meanwhile: with its last future a task would be released. `refusal` says why a thread must
    not wait for these, if it must not.
    """

    engine: Engine
    states: Sequence[KeyState]
    waiter: SettleWaiter | ValueReader
    finish: Callable[[bool], R]
    futures: object
    timeout: Timeout = None
    refusal: str = ""

    def block(self) -> R:
        if self.refusal:
            raise TypeError(self.refusal)
        try:
            in_time = self.engine.wait_for(self.states, self.waiter, as_seconds(self.timeout))
        except BaseException:  # a traceback of Ctrl-C may be kept for long, and would keep the futures and their tasks
            del self
            raise
        return self.finish(in_time)

    async def wait(self) -> R:
        with limit(self.timeout) if self.timeout is not None else nullcontext() as scope:
            await self.engine.wait_for_async(self.states, self.waiter)
        # A timeout of 0 cancels even what has nothing left to wait for.
        return self.finish(scope is None or not scope.cancelled_caught or self.waiter.signal.is_set)


@dataclass(slots=True, eq=False)
class ForCall(Generic[R]):
    """The outcome of an async function in the engine's loop. Raises `TimeoutError`, and what the function raises."""

    engine: Engine
    function: Callable[[], Awaitable[R]]
    timeout: Timeout = None
    what: str = "it"

    def block(self) -> R:
        return self.engine.call(self.function, timeout_s=as_seconds(self.timeout))

    async def wait(self) -> R:
        with limit(self.timeout):
            return await self.engine.call_async(self.function)
        raise TimeoutError(f"{self.what} was not done {within(self.timeout)}")


async def awaited_by_sync(func: Callable[..., Awaitable[R]], /, *args: Any, **kwargs: Any) -> R:
    """What an async function returns. Raises `TypeError` for a function of another kind."""
    coroutine = func(*args, **kwargs)
    if not inspect.isawaitable(coroutine):
        raise TypeError(f"sync() takes an async function, and {func!r:.60} is none: call it without sync()")
    return await coroutine


class HasEngine(Protocol):
    """A client."""

    @property
    def engine(self) -> Engine: ...


def in_loop(
    operation: Callable[Concatenate[Engine, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[HasEngine, P], Waiting[R]]:
    """The definition of a call that does nothing but await this, in the loop of its client's engine."""

    def definition(client: HasEngine, /, *args: P.args, **kwargs: P.kwargs) -> Waiting[R]:
        engine = client.engine
        return ForCall(engine, partial(operation, engine, *args, **kwargs))

    return described_by(operation, definition, operation.__name__)


COORDINATION: Final = frozenset({"Event", "Lock", "MultiLock", "Queue", "Semaphore", "Variable"})
"""Each of these has a form for Trio of its own, which users make."""


def blocking(definition: Callable[P, Waiting[R]], *, waits_if: str = "", for_trio: str = "") -> Callable[P, R]:
    """The form that blocks, and refuses to in a thread that runs an event loop.

    `waits_if` names a keyword of the call that is True by default; where it is not, the call does not block.
    `for_trio` is what to use under Trio, if it is not the same call of an `AsyncClient` or an `AsyncLock`.
    """

    def make(name: str) -> Callable[P, R]:
        what, owner = f"{name}()", name.partition(".")[0]
        default = f"`Async{owner}`" if owner in COORDINATION else "`async with AsyncClient(...)`"
        instead = for_trio or default

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not waits_if or kwargs.get(waits_if, True):
                refuse_in_event_loop(what, instead)
            waiting = definition(*args, **kwargs)
            del args, kwargs
            try:
                return waiting.block()
            except BaseException:  # as in `ForKeys`
                del waiting
                raise

        return described_by(definition, call, name)

    return remade(make, definition.__name__.removeprefix("_"))


def awaitable(definition: Callable[P, Waiting[R]], *, waits_if: str = "") -> Callable[P, Coroutine[Any, Any, R]]:
    """The form for Trio.

    `waits_if` is as in `blocking`; where it is not True, the call gives its value at once, and nothing to await.
    """

    def make(name: str) -> Callable[P, Coroutine[Any, Any, R]]:
        def call_or_value(*args: P.args, **kwargs: P.kwargs) -> Any:
            waiting = definition(*args, **kwargs)
            return waiting.wait() if kwargs.get(waits_if, True) else waiting.block()

        if waits_if:
            return described_by(definition, call_or_value, name)

        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return await definition(*args, **kwargs).wait()

        return described_by(definition, call, name)

    return remade(make, definition.__name__.removeprefix("_"))


def awaitable_in_trio(definition: Callable[P, Waiting[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The form for Trio, which blocks where no Trio runs: in a plain task of a program that runs under Trio."""

    def make(name: str) -> Callable[P, Coroutine[Any, Any, R]]:
        what = f"{name}()"

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            if not trio.lowlevel.in_trio_run():
                refuse_in_event_loop(what)
                return definition(*args, **kwargs).block()
            return definition(*args, **kwargs).wait()

        return described_by(definition, call, name)

    return remade(make, definition.__name__.removeprefix("_"))


def remade(make: Callable[[str], Form], name: str) -> Form:
    """The form, which can be made again under the name of another class."""
    form = make(name)
    form.make_form = make  # type: ignore[attr-defined] # read back by `CallForms`
    return form


class CallForms:
    """Base of classes that have such calls, or inherit them: each class has them under its own name."""

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        members: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            members.update(vars(base))
        for attribute, member in members.items():
            if isinstance(member, FunctionType) and (make := getattr(member, "make_form", None)) is not None:
                form = remade(make, f"{cls.__qualname__}.{attribute}")
                form.__module__ = cls.__module__
                setattr(cls, attribute, form)


def described_by(definition: Callable[..., Any], form: Form, name: str) -> Form:
    """Give a form its definition's docstring and signature, as a function or method of this name."""
    described = cast("Any", form)
    signature = inspect.signature(definition)
    parameters = list(signature.parameters.values())
    result = signature.return_annotation
    if isinstance(result, str) and result.startswith("Waiting["):
        result = result.removeprefix("Waiting[").removesuffix("]")
    if "." in name:
        parameters[0] = parameters[0].replace(name="self", annotation=inspect.Parameter.empty)
    described.__doc__ = definition.__doc__
    described.__name__ = name.rpartition(".")[2]
    described.__qualname__ = name
    described.__module__ = definition.__module__
    described.__wrapped__ = definition
    described.__signature__ = signature.replace(parameters=parameters, return_annotation=result)
    return form
