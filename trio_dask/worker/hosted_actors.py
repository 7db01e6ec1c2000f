"""The actors that live on this worker: the object of each, and the thread in which its code runs.

Nothing of an actor runs at the same time as anything else of it. A plain method runs to its end, in the actor's thread.
With the first call of an `async def` method the actor gets a second thread, with a Trio loop: there `async def` methods
run, each lets others in where it awaits, and plain methods hold the loop up while they run in the first thread.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

import trio

from trio_dask.hooks import hooks
from trio_dask.ids import Key
from trio_dask.protocol.introspection import kind_of
from trio_dask.protocol.messages import Run
from trio_dask.protocol.pickling import dump_value
from trio_dask.worker.error_text import describe_failure, mention_trio
from trio_dask.worker.result_store import Frames, load_frames
from trio_dask.worker.task_context import TaskContext, enter


class Answer(NamedTuple):
    """The fields of an `ActorAnswer`, and what follows it."""

    outcome: Literal["value", "error", "gone"]
    text: str
    frames: Frames


class _Call(NamedTuple):
    name: str
    frames: Frames
    """The pickled arguments; none to read an attribute."""
    reply: Callable[[Answer], object]


class HostedActor:
    """One actor. Any thread may call any method."""

    def __init__(self, context: TaskContext, value: Any) -> None:
        self.run = context.run
        self._value = value
        self._context = TaskContext(context.run, context.worker, context.slots, 0)
        self._context.slot = None  # its code may ask for its worker, and has no slot to give back
        self._lock = threading.Lock()
        """Held while a call is taken, so that none is taken after the last one."""
        self._is_closed = False
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
            if not self._is_closed:
                self._put(call)
                return
        reply(self._gone())

    def close(self) -> None:
        """Take no more calls. Those that came before still run; `async def` methods that wait are cancelled."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._put(None)

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
        while (call := self._calls.get()) is not None:
            if self._is_async(call):
                threading.Thread(
                    target=self._run_loop, args=(call,), name=f"{self._thread.name}-loop", daemon=True
                ).start()
                del call
                self._serve_loop()
                return
            call.reply(self._compute(call))
            del call

    def _serve_loop(self) -> None:
        while (call := self._held.get()) is not None:
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
            await nursery.start(self._answer, first)
            while await self._begin_gathered(nursery):
                await self._woken.wait()
            nursery.cancel_scope.cancel()

    async def _begin_gathered(self, nursery: trio.Nursery) -> bool:
        """Begin the calls that are there, in their order; False after the last one of all."""
        self._woken = trio.Event()
        while not self._calls.empty():
            call = self._calls.get_nowait()
            if call is None:
                return False
            if self._is_async(call):
                await nursery.start(self._answer, call)  # it returns when the call has begun
            else:
                self._held.put(call)
                self._held_ended.get()
        return True

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
            mention_trio(error)
            answer = _described(error)
        finally:
            call.reply(answer)


class HostedActors:
    """All actors of one worker. Slots add them; the worker's own thread drops them."""

    def __init__(self) -> None:
        self.address = ""
        """Of this worker, as its last session had it."""
        self._actors: dict[Key, HostedActor] = {}

    def host(self, context: TaskContext, value: Any) -> Any:
        """Keep what a task has made; returns the proxy that is the task's result."""
        assert hooks.actor is not None, "trio_dask sets it"
        run = context.run
        self.drop((run.key,))
        self._actors[run.key] = HostedActor(context, value)
        return hooks.actor(kind_of(value), run.key, run.run, self.address)

    def find(self, key: Key, run: int) -> HostedActor | None:
        """The actor that this run has made."""
        found = self._actors.get(key)
        return found if found is not None and found.run.run == run else None

    def drop(self, keys: Iterable[Key]) -> None:
        """These results were released."""
        for key in keys:
            actor = self._actors.pop(key, None)
            if actor is not None:
                actor.close()

    def drop_unwanted(self, run: Run) -> None:
        """The result of this run is not wanted any more."""
        if self.find(run.key, run.run) is not None:
            self.drop((run.key,))

    def close(self) -> None:
        """The worker ends."""
        self.drop(list(self._actors))


def _described(error: BaseException) -> Answer:
    description, text = describe_failure(error)
    return Answer("error", text, [] if description is None else [description])
