"""Futures: handles on results that are, or will be, somewhere in the cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from trio_dask.client.call_forms import CallForms, Done, ForKeys, Timeout, Waiting, awaitable, blocking
from trio_dask.client.core.key_state import KeyState, Status
from trio_dask.client.engine import Engine, loading
from trio_dask.client.import_hook import DASK, when_imported
from trio_dask.client.task_errors import exception_of, no_value
from trio_dask.client.wait_signals import SettleWaiter, ValueReader, within
from trio_dask.hooks import client_here
from trio_dask.ids import Key
from trio_dask.protocol.messages import Dropped
from trio_dask.protocol.pickling import KeyReference
from trio_dask.unsupported_names import FUTURE, UnsupportedName

_T = TypeVar("_T")


class _KeySlot:
    """In the place of `dask._task_spec.TaskRef`, which has the same slot, until dask is imported."""

    __slots__ = ("key",)


class BaseFuture(CallForms, KeyReference, _KeySlot):
    """What the futures of both clients have in common: nothing here waits, except `await`.

    The result is kept in the cluster as long as a future for it lives. A future can be an argument of other calls,
    anywhere inside any object. Pickled otherwise, it becomes a future of the client that unpickles it.
    """

    __slots__ = ("__weakref__", "engine", "state")

    # Those of `TaskRef` compare keys: futures would change their hash when dask is imported.
    __eq__ = object.__eq__
    __hash__ = object.__hash__
    __str__ = object.__str__

    def __init__(self, engine: Engine, state: KeyState) -> None:
        self.engine = engine
        """What drives the client that this future belongs to."""
        self.state = state
        """What that client knows of the key."""
        self.key: Key = state.key

    def __del__(self) -> None:
        try:
            self.engine.drop(self.state)
        except AttributeError:
            pass  # `__init__` was interrupted

    if not TYPE_CHECKING:  # for type checkers these names do not exist
        bind_client = UnsupportedName(FUTURE)
        executor = UnsupportedName(FUTURE)

    @property
    def status(self) -> Status:
        """pending, finished, error, cancelled or lost."""
        return self.state.status

    @property
    def client(self) -> Any:
        """The client that this future belongs to."""
        return self.engine.client

    @property
    def type(self) -> type[Any] | str | None:
        """The type of the result, or its name where the type is not loaded here; None until the result exists."""
        name = self.state.type_name
        if not name:
            return None
        module, _, attribute = name.rpartition(".")
        found = getattr(sys.modules.get(module or "builtins"), attribute, None)
        return found if isinstance(found, type) else name

    def done(self) -> bool:
        """Whether it has ended: with a result, with an error, or cancelled."""
        return self.state.status != "pending"

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.state.status == "cancelled"

    def cancel(self, reason: str = "", msg: str | None = None, *, force: bool = False) -> None:
        """Give up the task, and stop it unless another client wants it; with `force`, even then."""
        self.engine.cancel([self.state], force=force, text=msg or reason)

    def retry(self) -> None:
        """Run the task again if it has erred."""
        self.engine.retry([self.state])

    def release(self) -> None:
        """Release the result now, not when this object is collected. After that, only `key` can be asked for."""
        state = self.state
        self.state = _released(state)
        self.engine.drop(state)

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn` with this future when it is done, or soon if it is.

        The calls of one blocking client come from one thread of their own, those of an `AsyncClient` from its loop.
        """
        self.engine.call_when_done(self.state, partial(fn, self))

    def __await__(self) -> Generator[Any, None, Any]:
        return result_of(self).wait().__await__()

    def __reduce__(self) -> tuple[Callable[[Key], BaseFuture], tuple[Key]]:
        return _unpickle_future, (self.key,)

    def __dask_tokenize__(self) -> tuple[str, Key]:
        return ("trio_dask.Future", self.key)

    def __repr__(self) -> str:
        state = self.state
        kind = f", type: {state.type_name}" if state.type_name else ""
        return f"<{type(self).__name__}: {state.status}{kind}, key: {self.key}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from trio_dask.html_cards import card

        state = self.state
        rows = {"status": state.status, "key": self.key}
        if state.type_name:
            rows["type"] = state.type_name
        return card(type(self).__name__, rows)


def result_of(future: BaseFuture, timeout: Timeout = None) -> Waiting[Any]:
    """The result, once it is there. What the task raised is raised here as it was.

    Raises:
      TimeoutError: it was not there in time; the task goes on.
      FutureCancelledError: the task was cancelled.
      SchedulerLost: the scheduler is gone.
      RuntimeError: a blocking call in a thread that runs Trio or asyncio.
    """
    engine, state = future.engine, future.state
    value = state.value
    if value is not None and state.status == "finished":
        return Done(engine.load((value,)))

    reader = ValueReader(1, stops_early=True)

    def finish(in_time: bool) -> Any:
        if not in_time:
            raise engine.too_late(f"{state.key!r} gave no result {within(timeout)}; it is {state.status}", [state])
        frames = reader.frames.get(state)
        if frames is None:
            raise no_value(state, reader.reasons.get(state, ""))
        return engine.load(frames)

    return ForKeys(engine, (state,), reader, finish, future, timeout)


def _exception(future: BaseFuture, timeout: Timeout = None) -> Waiting[BaseException | None]:
    """What the task raised, or None, once it is done.

    Raises:
      TimeoutError: it was not done in time.
      RuntimeError: a blocking call in a thread that runs Trio or asyncio.
    """
    return _once_done(future, timeout, exception_of)


def _traceback(future: BaseFuture, timeout: Timeout = None) -> Waiting[TracebackType | None]:
    """The traceback of what the task raised, or None, once it is done. Raises as `exception` does."""
    return _once_done(future, timeout, lambda state: getattr(exception_of(state), "__traceback__", None))


def _once_done(future: BaseFuture, timeout: Timeout, found: Callable[[KeyState], _T]) -> Waiting[_T]:
    engine, state = future.engine, future.state

    def finish(in_time: bool) -> _T:
        if not in_time:
            raise engine.too_late(f"{state.key!r} was not done {within(timeout)}", [state])
        return found(state)

    return ForKeys(engine, (state,), SettleWaiter(1, 1), finish, future, timeout)


def _be_task_refs(task_spec: Any) -> None:
    """dask knows futures by their being `TaskRef`s: that class takes the place of one which is laid out alike."""
    BaseFuture.__bases__ = (CallForms, KeyReference, task_spec.TaskRef)


when_imported(DASK, _be_task_refs)


class Future(BaseFuture):
    """A future of the blocking `Client`. It can also be awaited under Trio."""

    __slots__ = ()

    result = blocking(result_of)
    exception = blocking(_exception)
    traceback = blocking(_traceback)


class AsyncFuture(BaseFuture):
    """A future of an `AsyncClient`: await it, as often as you like."""

    __slots__ = ()

    result = awaitable(result_of)
    exception = awaitable(_exception)
    traceback = awaitable(_traceback)


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
    gone.failure = Dropped(state.key, "cancelled", f"{state.key!r} was released here: only its key can be asked for")
    return gone


def _unpickle_future(key: Key) -> BaseFuture:
    """A pickled future becomes one of the client that unpickles it, else of the client that is current here."""
    engine = loading.get()
    if engine is None:
        engine = client_here().engine
    (state,) = engine.adopt([key])
    found: BaseFuture = engine.future_type(engine, state)
    return found
