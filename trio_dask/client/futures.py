"""Futures: handles on results that are, or will be, somewhere in the cluster."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Generator, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from trio_dask.client.core.key_state import KeyState, Status
from trio_dask.client.engine import Engine, loading
from trio_dask.client.task_errors import exception_of, no_value
from trio_dask.client.wait_signals import as_seconds, limit, refuse_in_event_loop
from trio_dask.ids import Key
from trio_dask.protocol.pickling import KeyReference
from trio_dask.unsupported_names import FUTURE, UnsupportedName

__all__ = ["AsyncFuture", "BaseFuture", "Future", "Timeout", "states_of"]

Timeout: TypeAlias = float | str | datetime.timedelta | None
"""Seconds, or a text with a unit such as "5 min"; None waits for ever."""


class BaseFuture(KeyReference):
    """What the futures of both clients have in common: nothing here waits, except `await`.

    The result is kept in the cluster as long as a future for it lives. A future can be an argument of other calls,
    anywhere inside any object. Pickled otherwise, it becomes a future of the client it arrives at.
    """

    __slots__ = ("__weakref__", "_engine", "_state", "key")

    def __init__(self, engine: Engine, state: KeyState) -> None:
        self._engine = engine
        self._state = state
        self.key: Key = state.key

    def __del__(self) -> None:
        try:
            self._engine.drop(self._state)
        except AttributeError:
            pass  # its making was interrupted, or it was released already

    if not TYPE_CHECKING:  # for a type checker they are simply not there
        bind_client = UnsupportedName(FUTURE)
        executor = UnsupportedName(FUTURE)
        substitute = UnsupportedName(FUTURE)

    @property
    def status(self) -> Status:
        """pending, finished, error, cancelled or lost."""
        return self._state.status

    @property
    def engine(self) -> Engine:
        """What drives the client that this future belongs to."""
        return self._engine

    @property
    def state(self) -> KeyState:
        """What that client knows of the key."""
        return self._state

    @property
    def client(self) -> Any:
        """The client that this future belongs to."""
        return self._engine.facade

    @property
    def type(self) -> type[Any] | str | None:
        """The type of the result, or its name where the type is not loaded here; None until the result exists."""
        name = self._state.type_name
        if not name:
            return None
        module, _, attribute = name.rpartition(".")
        found = getattr(sys.modules.get(module or "builtins"), attribute, None)
        return found if isinstance(found, type) else name

    def done(self) -> bool:
        """Whether it has finished, in whichever way: with a result, an error, or cancelled."""
        return self._state.status != "pending"

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._state.status == "cancelled"

    def cancel(self, reason: str = "", msg: str | None = None, *, force: bool = False) -> None:
        """Give the task up, and stop it if nobody else wants it; with `force`, even then."""
        self._engine.cancel([self._state], force=force, text=msg or reason)

    def retry(self) -> None:
        """Run the task again if it has erred."""
        self._engine.retry([self._state])

    def release(self) -> None:
        """Let go of the result now, rather than when this object is collected. Only `key` can be asked for then."""
        state = self._state
        self._state = _released(state)
        self._engine.drop(state)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn` with this future when it is done, or soon if it is.

        The calls of one blocking client come from one thread of their own, those of an `AsyncClient` from its loop.
        """
        self._engine.call_when_done(self._state, partial(fn, self))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result_async().__await__()

    async def _result_async(self) -> Any:
        reading = await self._engine.read_async([self._state], on_failure=True)
        return self._unpack(reading)

    def _unpack(self, reading: Any) -> Any:
        state = self._state
        frames = reading.frames.get(state)
        if frames is None:
            raise no_value(state, reading.reasons.get(state, ""))
        return self._engine.load(frames)

    def __reduce__(self) -> tuple[Callable[[Key], BaseFuture], tuple[Key]]:
        return _arrive, (self.key,)

    def __repr__(self) -> str:
        state = self._state
        kind = f", type: {state.type_name}" if state.type_name else ""
        return f"<{type(self).__name__}: {state.status}{kind}, key: {self.key}>"


class Future(BaseFuture):
    """A future of the blocking `Client`. It can also be awaited under Trio."""

    __slots__ = ()

    def result(self, timeout: Timeout = None) -> Any:
        """Block until the result is here, and return it.

        Raises:
          TimeoutError: it was not there in time; the task goes on.
          FutureCancelledError: the task was cancelled.
          SchedulerLost: the scheduler is gone.
          RuntimeError: this thread runs Trio or asyncio.

        Whatever the task raised is raised as it was.
        """
        refuse_in_event_loop("Future.result()")
        state = self._state
        value = state.value
        if value is not None and state.status == "finished":
            return self._engine.load((value,))
        try:
            reading = self._engine.read([state], as_seconds(timeout), on_failure=True)
        except BaseException:
            del self  # a traceback of Ctrl-C may be kept for long, and would keep this future, and so its task
            raise
        if reading is None:
            text = f"{self.key!r} gave no result within {timeout} s; it is {state.status}"
            raise self._engine.too_late(text, [state])
        return self._unpack(reading)

    def exception(self, timeout: Timeout = None) -> BaseException | None:
        """Block until the task is done; return what it raised, or None.

        Raises:
          TimeoutError: it was not done in time.
          RuntimeError: this thread runs Trio or asyncio.
        """
        refuse_in_event_loop("Future.exception()")
        try:
            settled = self._engine.settle([self._state], 1, as_seconds(timeout))
        except BaseException:
            del self  # as in `result`
            raise
        if not settled:
            raise self._engine.too_late(f"{self.key!r} was not done within {timeout} s", [self._state])
        return exception_of(self._state)

    def traceback(self, timeout: Timeout = None) -> TracebackType | None:
        """Block until the task is done; return the traceback of what it raised, or None. Raises as `exception` does."""
        error = self.exception(timeout)
        return None if error is None else error.__traceback__


class AsyncFuture(BaseFuture):
    """A future of an `AsyncClient`: await it, as often as you like."""

    __slots__ = ()

    async def result(self, timeout: Timeout = None) -> Any:
        """The result, as with `await future`.

        Raises:
          TimeoutError: it was not there in time; the task goes on.
          FutureCancelledError: the task was cancelled.
          SchedulerLost: the scheduler is gone.

        Whatever the task raised is raised as it was.
        """
        with limit(timeout) as scope:
            return await self._result_async()
        assert scope.cancelled_caught
        text = f"{self.key!r} gave no result within {timeout} s; it is {self.status}"
        raise self._engine.too_late(text, [self._state])

    async def exception(self, timeout: Timeout = None) -> BaseException | None:
        """What the task raised, or None, once it is done. Raises `TimeoutError` if that is not in time."""
        with limit(timeout) as scope:
            await self._engine.settle_async([self._state], 1)
        if scope.cancelled_caught:
            raise self._engine.too_late(f"{self.key!r} was not done within {timeout} s", [self._state])
        return exception_of(self._state)

    async def traceback(self, timeout: Timeout = None) -> TracebackType | None:
        """The traceback of what the task raised, or None. Raises as `exception` does."""
        error = await self.exception(timeout)
        return None if error is None else error.__traceback__


def states_of(futures: Iterable[Any]) -> list[KeyState]:
    """The states behind futures.

    Raises `TypeError` for what is no future.
    """
    states: list[KeyState] = []
    for future in futures:
        if not isinstance(future, BaseFuture):
            raise TypeError(f"expected a future, got {type(future).__name__}")
        states.append(future.state)
    return states


def _released(state: KeyState) -> KeyState:
    gone = KeyState(state.key)
    gone.status = "cancelled"
    return gone


def _arrive(key: Key) -> BaseFuture:
    """A pickled future becomes one of the client that unpickles it, else of the client that is current here."""
    engine = loading.get()
    if engine is None:
        from trio_dask.client.current_client import find_client  # it knows the clients, which are made of futures

        engine = find_client(None, None).engine
    (state,) = engine.adopt([key])
    found: BaseFuture = engine.future_type(engine, state)
    return found
