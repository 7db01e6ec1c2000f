"""Lines to the workers of actors: one data channel to each, on which calls and answers cross each other.

A call waits for nothing: the caller's thread puts it down, and the loop sends all that has gathered as one piece. No
scheduler is on the way. The answer settles a `KeyState` that no scheduler knows, so that whatever waits for futures
waits for answers too.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakSet

import trio

from trio_dask.client.core.key_state import Frames, KeyState
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.shared_state import SharedState
from trio_dask.client.worker_channels import CHANNEL_FAILURES, Channel, failure_text
from trio_dask.ids import Key, RunId
from trio_dask.protocol.messages import ActorAnswer, ActorCall, KeyFailed, Message, OnDataPlane
from trio_dask.protocol.pickling import load_value

CLOSED: Final = "the client was closed"
NO_DETAILS: Final[Mapping[str, str]] = {}


class BothWays(Channel, Protocol):
    """What this needs of `comm.data_channel.DataChannel`."""

    def go_both_ways(self) -> None: ...
    async def send(self, message: OnDataPlane, buffers: Frames = (), *, more: bool = False) -> None: ...
    async def flush(self) -> None: ...
    def receive_nowait(self) -> tuple[Message, Frames] | None: ...


class Outgoing(NamedTuple):
    """A call of an actor: what to send, and where its answer goes."""

    state: KeyState
    key: Key
    run: RunId
    name: str
    frames: Frames
    keeps: object
    """What has to live until the answer is there."""


class _Line:
    """The calls to one worker."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.outbox: list[Outgoing] = []
        self.pending: dict[int, Outgoing] = {}
        """Calls that were sent, by number."""
        self.last_number = 0
        self.is_woken = False
        self.woken = trio.Event()

    def wake(self) -> None:
        """In the loop."""
        self.woken.set()

    def take(self) -> list[tuple[int, Outgoing]]:
        """Everything to send now."""
        batch, self.outbox, self.is_woken = self.outbox, [], False
        numbered = list(enumerate(batch, self.last_number + 1))
        self.last_number += len(batch)
        self.pending.update(numbered)
        return numbered


class ActorLines:
    """The lines of one client. `open_channel` connects to a worker."""

    def __init__(
        self, shared: SharedState, calls: LoopCalls, open_channel: Callable[[str], Awaitable[BothWays]]
    ) -> None:
        self._shared = shared
        self._calls = calls
        self._open = open_channel
        # Under the lock of the shared state:
        self._lines: dict[str, _Line] = {}
        self._watched: WeakSet[KeyState] = WeakSet()

    def call(self, address: str, call: Outgoing, actor: KeyState | None) -> None:
        """Send a call. From any thread.

        If the client knows the state of the `actor`, it hears from the scheduler when that is lost. If it has heard so
        already, the call fails at once: the worker may be silent, and would never answer.

        Raises what `check_open` raises.
        """
        with self._shared.lock:
            self._shared.check_open()
            if actor is not None and actor.status not in ("pending", "finished"):
                self._fail([call], _why_lost(actor))
                return
            if actor is not None and actor not in self._watched:
                self._watched.add(actor)
                self._shared.core.when_over(actor, self._actor_is_over)
            line = self._lines.get(address)
            is_new = line is None
            if line is None:
                line = self._lines[address] = _Line(address)
            line.outbox.append(call)
            is_woken, line.is_woken = line.is_woken, True
        if is_new:
            self._calls.start(self._serve, line)
        if not is_woken:
            self._calls.run_soon(line.wake)

    def settle(self, state: KeyState, address: str, outcome: str, text: str, frames: Frames) -> None:
        """The answer to a call. From any thread."""
        found = _found(state, address, outcome, text, frames)
        with self._shared.lock:
            self._shared.core.settle_call(state, found)

    def _actor_is_over(self, actor: KeyState) -> None:
        # The core calls this in the middle of something.
        self._watched.discard(actor)
        self._calls.run_soon(self._give_up, actor)

    def _give_up(self, actor: KeyState) -> None:
        """Fail the calls of an actor that is lost: its worker may be silent for long."""
        text = _why_lost(actor)
        with self._shared.lock:
            for line in self._lines.values():
                lost = [call for call in (*line.pending.values(), *line.outbox) if call.key == actor.key]
                line.outbox = [call for call in line.outbox if call.key != actor.key]
                for number in [number for number, call in line.pending.items() if call.key == actor.key]:
                    del line.pending[number]
                self._fail(lost, text)

    async def _serve(self, line: _Line) -> None:
        """Connect, and carry calls and answers until the connection or the client ends."""
        reason = CLOSED
        try:
            channel = await self._open(line.address)
            try:
                channel.go_both_ways()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_calls, line, channel)
                    reason = await self._take_answers(line, channel)
                    nursery.cancel_scope.cancel()
            finally:
                channel.abort()
        except CHANNEL_FAILURES as error:
            reason = failure_text(line.address, error)
        finally:
            with self._shared.lock:
                if self._lines.get(line.address) is line:
                    del self._lines[line.address]
                calls = [*line.pending.values(), *line.outbox]
                line.outbox = []
                self._fail(calls, f"the line to the actor's worker broke while it was called: {reason}")

    def _fail(self, calls: list[Outgoing], text: str) -> None:
        for call in calls:
            self._shared.core.settle_call(call.state, _failed(call.state, "actor", None, text))

    async def _send_calls(self, line: _Line, channel: BothWays) -> None:
        try:
            while True:
                await line.woken.wait()
                line.woken = trio.Event()
                await self._send_gathered(line, channel)
        except CHANNEL_FAILURES:
            channel.abort()  # whoever receives says why

    async def _send_gathered(self, line: _Line, channel: BothWays) -> None:
        with self._shared.lock:
            batch = line.take()
        for number, call in batch:
            sizes = tuple([memoryview(frame).nbytes for frame in call.frames])
            message = ActorCall(number, call.key, call.run, call.name, sizes)
            await channel.send(message, call.frames, more=number < line.last_number)
        await channel.flush()

    async def _take_answers(self, line: _Line, channel: BothWays) -> str:
        """Take answers until there will be no more; returns the reason."""
        while True:
            try:
                arrived: list[tuple[Message, Frames]] = [await channel.receive()]
                while (more := channel.receive_nowait()) is not None:
                    arrived.append(more)
            except CHANNEL_FAILURES as error:
                return failure_text(line.address, error)
            if refusal := self._settle_all(line, arrived):
                return refusal
            del arrived

    def _settle_all(self, line: _Line, arrived: list[tuple[Message, Frames]]) -> str:
        """Settle the calls with these answers; returns what is wrong with one of them."""
        settle = self._shared.core.settle_call
        with self._shared.lock:
            for answer, frames in arrived:
                if not isinstance(answer, ActorAnswer):
                    return f"a call of an actor was answered with a {type(answer).__name__}"
                call = line.pending.pop(answer.number, None)
                if call is not None:
                    settle(call.state, _found(call.state, line.address, answer.outcome, answer.text, frames))
        return ""


def _why_lost(actor: KeyState) -> str:
    return getattr(actor.failure, "text", "") or f"the actor {actor.key!r} is {actor.status}"


def _found(state: KeyState, address: str, outcome: str, text: str, frames: Frames) -> bytes | KeyFailed:
    """What an answer means for the state of its call: its pickled value, or its failure."""
    if outcome == "value" and frames:
        return bytes(frames[0]) if len(frames) == 1 else pickle.dumps(_Whole(frames), protocol=5)
    if outcome == "error":
        return _failed(state, "exception", bytes(frames[0]) if frames else None, text, {"worker": address})
    return _failed(state, "actor", None, text)


def _failed(
    state: KeyState, kind: str, error: bytes | None, text: str, details: Mapping[str, str] = NO_DETAILS
) -> KeyFailed:
    return KeyFailed(state.key, state.key, kind, error, text, details)


class _Whole:
    """A value with out-of-band buffers, as one pickle."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    def __reduce__(self) -> tuple[Any, ...]:
        return load_value, ([bytearray(frame) for frame in self._frames],)
