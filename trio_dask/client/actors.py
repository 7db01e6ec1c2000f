"""Actors, as programs and tasks see them: a proxy for an object on a worker, and the answers to its calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Final, NoReturn

import trio

from trio_dask.client.actor_lines import UnansweredCall
from trio_dask.client.call_forms import Timeout, Waiting, blocking
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine, loading
from trio_dask.client.futures import BaseFuture, Future, result_of
from trio_dask.client.option_conflicts import parameters_of
from trio_dask.client.wait_signals import SettleWaiter, ThreadSignal, as_seconds
from trio_dask.errors import UsageError
from trio_dask.hooks import client_here, hooks
from trio_dask.ids import Key, RunId
from trio_dask.protocol.pickling import KeyReference, dump_value

AT_ONCE_S: Final = 0.005
"""A task waits this long for an answer before it gives its slot to others, which costs more than most calls."""

_ABSENT: Final = object()


def _answer(future: BaseFuture, timeout: Timeout = None) -> Waiting[Any]:
    """What the method returned, once it is there. What it raised is raised here as it was.

    Raises:
      TimeoutError: it was not there in time; the call goes on.
      ActorLost: the actor is lost, or the connection broke while it was called.
      RuntimeError: a blocking call in a thread that runs Trio or asyncio.
    """
    engine, state = future.engine, future.state
    if state.status == "pending" and hooks.tasks is not None and hooks.tasks.current_worker() is not None:
        signal = ThreadSignal()
        waiter = SettleWaiter(1, 1)
        waiter.signal = signal
        engine.watch([state], waiter, values=False)
        seconds = as_seconds(timeout)
        if not signal.wait(AT_ONCE_S if seconds is None else min(seconds, AT_ONCE_S)):
            engine.unwatch([state], waiter)
    return result_of(future, timeout)


class ActorFuture(Future):
    """The answer to a call of an actor, or what will be one.

    It can be waited for like a future, by `result(timeout)`, `await`, `as_completed`, `wait` and `gather`. It cannot be
    cancelled, pickled, or be an argument of a task.
    """

    __slots__ = ("_actor",)

    result = blocking(_answer, for_trio="`await`")

    def __init__(self, engine: Engine, state: KeyState, actor: Actor) -> None:
        self.engine = engine
        self.state = state
        self._actor = actor

    def __del__(self) -> None:
        """The scheduler does not know this state, so there is nothing to release."""

    def __repr__(self) -> str:
        return f"<ActorFuture: {self.state.status}, call: {self.state.key}>"

    @property
    def key(self) -> NoReturn:  # type: ignore[override] # it has none, on purpose
        """It is no key. Raises `UsageError`."""
        raise UsageError("the answer of an actor cannot be an argument of a task; give its result() instead")

    def cancel(self, reason: str = "", msg: str | None = None, *, force: bool = False) -> NoReturn:
        """Raises `UsageError`."""
        raise UsageError("a call of an actor cannot be cancelled")

    def retry(self) -> NoReturn:
        """Raises `UsageError`."""
        raise UsageError("a call of an actor cannot be made again by its future; call the method again")

    def release(self) -> None:
        """Nothing: the answer is here, and nothing in the cluster depends on it."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("the answer of an actor cannot be pickled; pickle its result() instead")


class Actor(KeyReference):
    """A proxy for an object on a worker, which `client.submit(Cls, ..., actor=True)` has made there.

    Its methods return an `ActorFuture` each. Its attributes are read at once, or under Trio by `await actor.x`; they
    are those that the class has or annotates. As an argument of a task it is a dependency, and the task gets a proxy.

    A proxy that a client got as a result keeps the actor alive, as a future does. One that came in another way, such as
    the argument of a task, does not.
    """

    __slots__ = ("__weakref__", "_address", "_cls", "_future", "_run", "key")

    def __init__(self, cls: type[Any], key: Key, run: RunId, address: str) -> None:
        engine = loading.get()
        self._cls = cls
        self._run = run
        self._address = address
        self._future: Any = None if engine is None else engine.future_type(engine, engine.adopt((key,))[0])
        self.key = key

    def __reduce__(self) -> tuple[type[Actor], tuple[type[Any], Key, RunId, str]]:
        return Actor, (self._cls, self.key, self._run, self._address)

    def __repr__(self) -> str:
        return f"<Actor: {self._cls.__name__}, key={self.key}>"

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *(name for name in dir(self._cls) if not name.startswith("_"))})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Actor.__slots__:
            raise AttributeError(name)
        found = getattr(self._cls, name, _ABSENT)
        if callable(found):
            return self._method(name, found)
        if found is _ABSENT and not any(name in vars(base).get("__annotations__", ()) for base in self._cls.__mro__):
            raise AttributeError(
                f"the class of the actor, {self._cls.__name__}, has no attribute {name!r}; one that only the object "
                f"has can be read if the class declares it, as `{name}: type`"
            )
        answer = self._send(name, None)
        return answer if trio.lowlevel.in_trio_run() else answer.result()

    def _method(self, name: str, function: Callable[..., Any]) -> Callable[..., ActorFuture]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> ActorFuture:
            if "separate_thread" in kwargs and "separate_thread" not in parameters_of(function, 0):
                kwargs.pop("separate_thread")  # of distributed: here every actor has a thread of its own
            return self._send(name, (args, kwargs))

        return call

    def _send(self, name: str, arguments: tuple[tuple[Any, ...], dict[str, Any]] | None) -> ActorFuture:
        frames = [] if arguments is None else dump_value(arguments)
        worker = None if hooks.tasks is None else hooks.tasks.current_worker()
        if self._future is not None:
            engine: Engine = self._future.engine
        else:
            engine = client_here().engine
        state = KeyState(Key(f"{self.key}.{name}"))
        answer = ActorFuture(engine, state, self)
        call = UnansweredCall(state, self.key, self._run, name, frames, answer)
        actor = None if self._future is None else self._future.state
        hosted = None if worker is None else worker.actors.find(self.key, self._run)
        if hosted is not None and not engine.lines.has_unanswered(self.key, self._run):
            hosted.call(name, frames, partial(_settle, engine, call, self._address, actor))
        else:
            engine.lines.call(self._address, call, actor)
        return answer


def _settle(engine: Engine, call: UnansweredCall, address: str, actor: KeyState | None, found: Any) -> None:
    outcome, text, frames = found
    if outcome == "elsewhere":
        engine.lines.forward(call, address, actor)
    else:
        engine.lines.settle(call.state, address, outcome, text, frames)


BaseActorFuture = ActorFuture
"""The name that distributed has for the base of what calls return."""
