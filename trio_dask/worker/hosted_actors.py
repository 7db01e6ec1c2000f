"""The actors that live on this worker: the object of each, and the thread in which its code runs.

Nothing of an actor runs at the same time as anything else of it. A plain method runs to its end, in the actor's thread.
With the first call of an `async def` method the actor gets a second thread, with a Trio loop: there `async def` methods
run, each lets others in where it awaits, and plain methods hold the loop up while they run in the first thread.

An actor that may move to another worker *rests* meanwhile: it makes no call, and keeps those that come, until it hears
whether it goes on here. An actor that comes from another worker begins by resting.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum, auto
from queue import SimpleQueue
from typing import Any, Final, Literal, NamedTuple, Protocol
from weakref import WeakValueDictionary

import trio

from trio_dask.hooks import hooks
from trio_dask.ids import Key, RunId
from trio_dask.plugins.hooks_of_users import is_cancellation
from trio_dask.protocol.error_text import mention_trio
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.messages import Run
from trio_dask.protocol.pickling import describe_exception, dump_value
from trio_dask.worker.result_store import Frames, load_frames
from trio_dask.worker.task_context import TaskContext, enter

FOLLOW_S: Final = 5.0
"""How long a worker that leaves waits for the callers of actors that have moved."""


class Answer(NamedTuple):
    """The fields of an `ActorAnswer`, and what follows it; or (`elsewhere`) an `ActorMoved`."""

    outcome: Literal["value", "error", "gone", "elsewhere"]
    text: str
    frames: Frames


class _Call(NamedTuple):
    name: str
    frames: Frames
    """The pickled arguments; none to read an attribute."""
    reply: Callable[[Answer], object]


def _ignore(_: Answer) -> None:
    """Nobody waits for this answer."""


_WAKE: Final = _Call("", [], _ignore)
"""Wakes the actor's thread, which looks whether the actor is to rest."""

_NOTHING: Final = _Call("", [], _ignore)
"""Stands for no call."""

_ELSEWHERE: Final = Answer("elsewhere", "", [])


class _Phase(Enum):
    """What an actor does with calls. Each is answered in any case."""

    LIVES = auto()
    """It makes them."""
    RESTS = auto()
    """It keeps them, until it hears whether it goes on here."""
    CLOSED = auto()
    """It makes those that have come, and refuses later ones: it was released."""
    ELSEWHERE = auto()
    """It makes none, and says of all of them that it is not here."""


Offer = Callable[["Frames | str"], object]
"""Takes the pickled object of an actor, or why it cannot be pickled; called in the actor's thread."""


class HostedActor:
    """One actor: this object, or (`state`) the pickled one of an actor that comes from another worker.

    Any thread may call any method.
    """

    def __init__(
        self, context: TaskContext, value: Any, *, state: Frames | None = None, made: Callable[[str], object] = len
    ) -> None:
        self.run = context.run
        self._value = value
        self._state = state
        self._made = made
        """Hears that the object was made from its state, or why it could not be; in the actor's thread."""
        self._phase = _Phase.LIVES if state is None else _Phase.RESTS
        """Changed under the lock."""
        self._offer: Offer | None = None
        """A living actor is to rest once its call has ended, and this gets the pickled object."""
        self._verdicts: SimpleQueue[bool] = SimpleQueue()
        """Whether the actor goes on here; one for each rest."""
        self._kept: deque[_Call | None] = deque()
        """Calls that came before those in the queue, and have not been made."""
        self._under_way = 0
        """`async def` calls that have begun and not ended."""
        # Its code may ask for its worker, and has no slot to give back.
        self._context = TaskContext(context.run, context.worker, context.slots, None)
        self._lock = threading.Lock()
        """Held while a call is taken, so that none is taken after the last one."""
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._token: trio.lowlevel.TrioToken | None = None
        """Of the loop, once there is one: then that takes the calls."""
        self._woken = trio.Event()
        self._held: SimpleQueue[_Call | None] = SimpleQueue()
        """Plain calls, which the loop hands to the first thread."""
        self._held_ended: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"actor-{context.run.key:.40}", daemon=True)
        self._thread.start()

    def call(self, name: str, frames: Frames, reply: Callable[[Answer], object]) -> None:
        """Call a method, or read an attribute, after the calls that came before; `reply` is called in any thread.

        A method that calls another one of its own actor does so at once, in its thread, or it would wait for itself.
        """
        call = _Call(name, frames, reply)
        if threading.current_thread() is self._thread:
            reply(self._compute(call))
            return
        with self._lock:
            phase = self._phase
            if phase is _Phase.ELSEWHERE:
                reply(_ELSEWHERE)
            elif phase is not _Phase.CLOSED:
                self._put(call)
        if phase is _Phase.CLOSED:
            reply(self._gone())

    def close(self) -> None:
        """Take no more calls. Those that came before still run; `async def` methods that wait are cancelled."""
        with self._lock:
            self._offer = None
            before = self._phase
            if before in (_Phase.LIVES, _Phase.RESTS):
                self._phase = _Phase.CLOSED
                self._put(None)
            if before is _Phase.RESTS:
                self._verdicts.put(True)

    # ------------------------------------------------------------------------------------------ moving

    @property
    def kind(self) -> type[Any]:
        """The class of the object."""
        return kind_of(self._value)

    @property
    def may_move(self) -> bool:
        """Whether its class, or the object itself, says `movable = True`. No code of the user runs for that."""
        return inspect.getattr_static(self._value, "movable", False) is True

    def rest(self, offer: Offer) -> None:
        """Rest once the call that runs has ended, and give `offer` the pickled object.

        While `async def` calls are under way others may be what they wait for, so it rests when none is.
        """
        with self._lock:
            if self._phase is _Phase.LIVES:
                self._offer = offer
                self._put(_WAKE)

    def stay(self) -> None:
        """Go on here, if it rests or is to rest."""
        with self._lock:
            self._offer = None
            if self._phase is _Phase.RESTS:
                self._phase = _Phase.LIVES
                self._verdicts.put(True)

    def leave(self) -> bool:
        """Make no call any more, as the actor lives elsewhere; False, and nothing happens, if it does not rest.

        All calls that came are answered so before this returns.
        """
        with self._lock:
            if self._phase is not _Phase.RESTS:
                return False
            self._phase = _Phase.ELSEWHERE
            while not self._calls.empty():
                self._kept.append(self._calls.get_nowait())
            for call in self._kept:
                if call is not None:
                    call.reply(_ELSEWHERE)
            self._kept.clear()
            self._verdicts.put(False)
            return True

    def _rest_if_asked(self, call: _Call | None) -> bool:
        """In the first thread, before this call: rest if that was asked. Whether the actor goes on here."""
        with self._lock:
            self._kept.appendleft(call)
            offer, self._offer = self._offer, None
            if offer is None:
                return True
            self._phase = _Phase.RESTS
        try:
            state: Frames | str = dump_value(self._value)
        except BaseException as error:  # pickling runs the user's code
            state = f"it cannot be pickled: {describe_exception(error)[1]}"
        offer(state)
        del state
        return self._verdicts.get()

    def _make(self) -> bool:
        """In the first thread, for an actor that comes from elsewhere: make the object, and wait for the verdict."""
        try:
            self._value = load_frames(self._state or [])
        except BaseException as error:  # unpickling runs the user's code
            with self._lock:
                self._phase = _Phase.ELSEWHERE
            self._made(describe_exception(error)[1])
            return False
        finally:
            self._state = None
        self._made("")
        return self._verdicts.get()

    def _put(self, call: _Call | None) -> None:
        self._calls.put(call)
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._woken.set()

    def _gone(self) -> Answer:
        return Answer("gone", f"the actor {self.run.key!r} is not there any more: it was released", [])

    # ------------------------------------------------------------------------------------------ plain methods

    def _serve(self) -> None:
        enter(self._context)
        if self._state is not None and not self._make():
            return
        while (call := self._next()) is not None:
            if self._is_async(call):
                threading.Thread(
                    target=self._run_loop, args=(call,), name=f"{self._thread.name}-loop", daemon=True
                ).start()
                del call
                self._serve_loop()
                return
            call.reply(self._compute(call))
            del call

    def _next(self) -> _Call | None:
        """The next call to make; None after the last one, or if the actor lives elsewhere."""
        while True:
            call = self._kept.popleft() if self._kept else self._calls.get()
            if self._offer is not None:
                if not self._rest_if_asked(call):
                    return None
            elif call is not _WAKE:
                return call

    def _serve_loop(self) -> None:
        while (call := self._held.get()) is not None:
            if call is _WAKE:
                self._rest_if_asked(call)
            else:
                call.reply(self._compute(call))
            del call
            self._held_ended.put(None)

    def _compute(self, call: _Call) -> Answer:
        try:
            value = getattr(self._value, call.name)
            if call.frames:
                args, kwargs = load_frames(call.frames)
                value = value(*args, **kwargs)
            return Answer("value", "", dump_value(value))
        except BaseException as error:  # whatever the user's code raises is the answer
            return _described(error)

    # ------------------------------------------------------------------------------------------ `async def` methods

    def _is_async(self, call: _Call) -> bool:
        return bool(call.frames) and inspect.iscoroutinefunction(getattr(kind_of(self._value), call.name, None))

    def _run_loop(self, first: _Call) -> None:
        enter(self._context)
        try:
            trio.run(self._take_calls, first)
        finally:
            self._held.put(None)

    async def _take_calls(self, first: _Call) -> None:
        self._token = trio.lowlevel.current_trio_token()  # before the queue is looked at
        async with trio.open_nursery() as nursery:
            self._under_way += 1
            await nursery.start(self._answer, first)
            while await self._begin_gathered(nursery):
                await self._woken.wait()
            nursery.cancel_scope.cancel()

    async def _begin_gathered(self, nursery: trio.Nursery) -> bool:
        """Begin the calls that are there, in their order; False after the last one of all."""
        self._woken = trio.Event()
        while True:
            if self._offer is not None and not self._under_way:
                self._hold(_WAKE)
                if self._phase is _Phase.ELSEWHERE:
                    return False
            call = self._take()
            if call is _NOTHING:
                return True
            if call is None:
                return False
            if call is _WAKE:
                continue
            if self._is_async(call):
                self._under_way += 1
                await nursery.start(self._answer, call)  # it returns when the call has begun
            else:
                self._hold(call)

    def _take(self) -> _Call | None:
        """The next call, None after the last one of all, `_NOTHING` if none has come."""
        if self._kept:
            return self._kept.popleft()
        return _NOTHING if self._calls.empty() else self._calls.get_nowait()

    def _hold(self, call: _Call) -> None:
        """Have the first thread make this call, or rest; the loop stands still meanwhile."""
        self._held.put(call)
        self._held_ended.get()

    async def _answer(self, call: _Call, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        answer = self._gone()
        try:
            args, kwargs = load_frames(call.frames)
            value = await getattr(self._value, call.name)(*args, **kwargs)
            answer = Answer("value", "", dump_value(value))
        except trio.Cancelled:
            raise
        except BaseException as error:  # whatever the user's code raises is the answer
            if is_cancellation(error):
                raise
            mention_trio(error)
            answer = _described(error)
        finally:
            call.reply(answer)
            self._under_way -= 1
            if self._offer is not None:
                self._woken.set()


class Caller(Protocol):
    """A channel on which calls come."""

    @property
    def was_told(self) -> bool: ...
    def tell_moved(self, key: Key, run: RunId) -> None: ...


class HostedActors:
    """All actors of one worker. Slots add them; the worker's own thread drops them."""

    def __init__(self) -> None:
        self.address = ""
        """Of this worker, as its last session had it."""
        self._actors: dict[Key, HostedActor] = {}
        self._released: WeakValueDictionary[Key, HostedActor] = WeakValueDictionary()
        """Those that may still have calls to make, which came before."""
        self._callers: dict[Caller, None] = {}
        """For the worker's own thread, like the next two."""
        self._silent: dict[object, None] = {}
        """Channels that have brought nothing yet."""
        self._changed = trio.Event()
        """One of them has ended, or spoken."""
        self.have_moved = False
        """Whether an actor has moved away from here."""

    def host(self, context: TaskContext, value: Any) -> Any:
        """Keep what a task has made; returns the proxy that is the task's result."""
        self.drop((context.run.key,))
        actor = self._actors[context.run.key] = HostedActor(context, value)
        return self.proxy_of(actor)

    def add(self, actor: HostedActor) -> None:
        """Take in an actor that was made from its state."""
        self.drop((actor.run.key,))
        self._actors[actor.run.key] = actor

    def proxy_of(self, actor: HostedActor) -> Any:
        """A proxy of an actor that lives here, or is about to."""
        assert hooks.actor is not None, "trio_dask sets it"
        return hooks.actor(actor.kind, actor.run.key, actor.run.run, self.address)

    def find(self, key: Key, run: int) -> HostedActor | None:
        """The actor that this run has made, if it is here or was released a moment ago."""
        for table in (self._actors, self._released):
            found = table.get(key)
            if found is not None and found.run.run == run:
                return found
        return None

    def present(self, key: Key) -> HostedActor | None:
        """The actor that is the result of `key`."""
        return self._actors.get(key)

    def settle(self, key: Key, *, here: bool) -> None:
        """An actor that rests, or is to, lives here and goes on, or elsewhere."""
        actor = self._actors.get(key)
        if actor is None:
            return
        if here:
            actor.stay()
        elif actor.leave():
            self.have_moved = True
            del self._actors[key]  # not before: calls come in order
            for caller in self._callers:
                caller.tell_moved(key, actor.run.run)

    def drop(self, keys: Iterable[Key]) -> None:
        """These results were released; an actor that rests lives elsewhere."""
        for key in keys:
            self.settle(key, here=False)
            actor = self._actors.pop(key, None)
            if actor is not None:
                self._released[key] = actor
                actor.close()

    def begin_calls(self, caller: Caller) -> None:
        """A channel brings calls. In the worker's own thread."""
        self._callers[caller] = None

    def end_calls(self, caller: Caller) -> None:
        """It brings no more."""
        self._callers.pop(caller, None)
        self._note_change()

    def channel_began(self, channel: object) -> None:
        """A channel is there, and its first request is on its way."""
        self._silent[channel] = None

    def channel_spoke(self, channel: object) -> None:
        """The first request has come, or the channel has ended."""
        if self._silent.pop(channel, self) is None:
            self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for_callers(self) -> None:
        """Return once all callers that were told that an actor has moved have read it, and so ended their channels.

        Nor may a channel be left that has brought nothing yet: a call on its way to a worker that has ended would be
        lost. After `FOLLOW_S` this returns in any case.
        """
        with trio.move_on_after(FOLLOW_S):
            while self._silent or any(caller.was_told for caller in self._callers):
                await self._changed.wait()

    def drop_unwanted(self, run: Run) -> None:
        """The result of this run is not wanted any more."""
        if self.find(run.key, run.run) is not None:
            self.drop((run.key,))

    def close(self) -> None:
        """The worker ends."""
        self.drop(list(self._actors))


def _described(error: BaseException) -> Answer:
    description, text = describe_exception(error)
    return Answer("error", text, [] if description is None else [description])
