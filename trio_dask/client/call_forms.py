"""A call that waits is defined once; its blocking form and its form for Trio are made from the definition.

A definition prepares the call, and returns what to wait for:

    def gather(client: BaseClient[Any], futures: Any) -> Waiting[Any]:
        \"""The results of futures.\"""
        ...
        return ForValues(client.engine, states, finish)

    class Client(...):       gather = blocking(definitions.gather)
    class AsyncClient(...):  gather = awaitable(definitions.gather)

What only asks the cluster is an async function of the engine, from which `in_loop` makes a definition. Both forms have
the signature and the docstring of the definition: for type checkers by their types, for `help` by their attributes.
"""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from types import FunctionType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import trio

from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.client.wait_signals import ValueReader, as_seconds, limit, refuse_in_event_loop, require_trio

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Form = TypeVar("Form", bound=Callable[..., Any])

Timeout: TypeAlias = float | str | datetime.timedelta | None
"""Seconds, or a text with a unit such as "5 min"; None waits for ever."""


class Waiting(Protocol[R_co]):
    """What a call waits for, and what it returns then."""

    def block(self) -> R_co:
        """Wait in this thread."""
        ...

    async def wait(self) -> R_co:
        """Wait in this Trio task."""
        ...


class Done(Generic[R]):
    """Nothing to wait for."""

    __slots__ = ("_value",)

    def __init__(self, value: R) -> None:
        self._value = value

    def block(self) -> R:
        return self._value

    async def wait(self) -> R:
        require_trio("awaiting this", "the blocking calls of Client")
        await trio.lowlevel.checkpoint()
        return self._value


class ForValues(Generic[R]):
    """The values of keys; `finish` gets what was read, or None if the time was up before.

    With `on_failure` the first key without a value ends the waiting. `futures` are kept alive meanwhile: with its last
    future a task would be released.
    """

    __slots__ = ("_engine", "_finish", "_futures", "_on_failure", "_states", "_timeout")

    def __init__(
        self,
        engine: Engine,
        states: Sequence[KeyState],
        finish: Callable[[ValueReader | None], R],
        *,
        futures: object,
        on_failure: bool = True,
        timeout: Timeout = None,
    ) -> None:
        self._engine = engine
        self._states = states
        self._finish = finish
        self._futures = futures
        self._on_failure = on_failure
        self._timeout = timeout

    def block(self) -> R:
        try:
            reading = self._engine.read(self._states, as_seconds(self._timeout), on_failure=self._on_failure)
        except BaseException:
            del self  # a traceback of Ctrl-C may be kept for long, and would keep the futures, and so their tasks
            raise
        return self._finish(reading)

    async def wait(self) -> R:
        reading: ValueReader | None = None
        with limit(self._timeout) if self._timeout is not None else nullcontext():
            reading = await self._engine.read_async(self._states, on_failure=self._on_failure)
        return self._finish(reading)


class ForStates(Generic[R]):
    """That `count` of these keys have settled; `finish` is told whether they have, or the time was up before.

    `refusal` says why a thread must not wait for them, if it must not. `futures` as for `ForValues`.
    """

    __slots__ = ("_count", "_engine", "_finish", "_futures", "_refusal", "_states", "_timeout")

    def __init__(
        self,
        engine: Engine,
        states: Sequence[KeyState],
        finish: Callable[[bool], R],
        *,
        futures: object,
        count: int = 1,
        timeout: Timeout = None,
        refusal: str = "",
    ) -> None:
        self._engine = engine
        self._states = states
        self._finish = finish
        self._futures = futures
        self._count = count
        self._timeout = timeout
        self._refusal = refusal

    def block(self) -> R:
        if self._refusal:
            raise TypeError(self._refusal)
        try:
            settled = self._engine.wait_settled(self._states, self._count, as_seconds(self._timeout))
        except BaseException:
            del self  # as in `ForValues`
            raise
        return self._finish(settled)

    async def wait(self) -> R:
        with limit(self._timeout) as scope:
            await self._engine.wait_settled_async(self._states, self._count)
        return self._finish(not scope.cancelled_caught)


class ForCall(Generic[R]):
    """The outcome of an async function in the engine's loop. Raises `TimeoutError`, and what the function raises."""

    __slots__ = ("_engine", "_function", "_timeout", "_what")

    def __init__(
        self, engine: Engine, function: Callable[[], Awaitable[R]], *, timeout: Timeout = None, what: str = "it"
    ) -> None:
        self._engine = engine
        self._function = function
        self._timeout = timeout
        self._what = what

    def block(self) -> R:
        return self._engine.call(self._function, timeout_s=as_seconds(self._timeout))

    async def wait(self) -> R:
        with limit(self._timeout):
            return await self._engine.call_async(self._function)
        raise TimeoutError(f"{self._what} was not done within {self._timeout} s")


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


def blocking(definition: Callable[P, Waiting[R]], *, waits_if: str = "") -> Callable[P, R]:
    """The form that blocks, and refuses to in a thread that runs an event loop.

    `waits_if` names a keyword of the call that is True by default; where it is not, the call does not block.
    """

    def make(name: str) -> Callable[P, R]:
        what = f"{name}()"

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not waits_if or kwargs.get(waits_if, True):
                refuse_in_event_loop(what)
            waiting = definition(*args, **kwargs)
            del args, kwargs
            try:
                return waiting.block()
            except BaseException:
                del waiting  # as in `ForValues`
                raise

        return described_by(definition, call, name)

    return remade(make, definition.__name__.removeprefix("_"))


def awaitable(definition: Callable[P, Waiting[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The form for Trio."""

    def make(name: str) -> Callable[P, Coroutine[Any, Any, R]]:
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return await definition(*args, **kwargs).wait()

        return described_by(definition, call, name)

    return remade(make, definition.__name__.removeprefix("_"))


def remade(make: Callable[[str], Form], name: str) -> Form:
    """The form, which can be made again under the name of another class."""
    form = make(name)
    form.make_form = make  # type: ignore[attr-defined]
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
    """Have a form say of itself what its definition says, as a function or method of this name."""
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
