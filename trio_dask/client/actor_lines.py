"""Lines to the workers of actors: one data channel to each, on which calls and answers cross each other.

A call waits for nothing: the caller's thread puts it down, and the loop sends all that has gathered as one piece. No
scheduler is on the way. The answer settles a `KeyState` that no scheduler knows, so that whatever waits for futures
waits for answers too.

An actor may move. Then its former worker says so on the line, after all answers that it had to give; the calls without
an answer were not made, wait until the scheduler has said where the actor lives, and go there in their order. All calls
of an actor are on one line, or wait together, so that none overtakes another one.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import WeakSet

import trio

from trio_dask.client.core.key_state import Frames, KeyState
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.shared_state import SharedState
from trio_dask.client.worker_channels import CHANNEL_FAILURES, Channel, failure_text
from trio_dask.errors import TrioDaskError
from trio_dask.ids import Key, RunId
from trio_dask.protocol.messages import ActorAnswer, ActorCall, ActorMoved, KeyFailed, Message, OnDataPlane
from trio_dask.protocol.pickling import load_value

CLOSED: Final = "the client was closed"
ENDED: Final = "no call was left on it"
NO_DETAILS: Final[Mapping[str, str]] = {}


class BothWays(Channel, Protocol):
    """What this needs of `comm.data_channel.DataChannel`."""

    def go_both_ways(self) -> None: ...
    async def send(self, message: OnDataPlane, buffers: Frames = (), *, more: bool = False) -> None: ...
    async def flush(self) -> None: ...
    def receive_nowait(self) -> tuple[Message, Frames] | None: ...


class UnansweredCall(NamedTuple):
    """A call of an actor: what to send, and where its answer goes."""

    state: KeyState
    key: Key
    run: RunId
    name: str
    frames: Frames
    keeps: object
    """What has to live until the answer is there."""

    @property
    def actor(self) -> Actor:
        """Which actor it calls."""
        return self.key, self.run


Actor: TypeAlias = tuple[Key, RunId]
"""The key of an actor, and the run that made it: it keeps both wherever it goes."""


class Search:
    """Calls of an actor that wait until the scheduler has said where it lives."""

    def __init__(self, actor: Actor, former: str, why: str) -> None:
        self.actor = actor
        self.former = former
        """It is not at this address; empty if it may be anywhere."""
        self.why = why
        """If it lives nowhere else, this is what the calls fail with."""
        self.calls: list[UnansweredCall] = []

    def take_all(self) -> list[UnansweredCall]:
        """The calls, which do not wait for this any more."""
        calls, self.calls = self.calls, []
        return calls


class _Line:
    """The calls to one worker."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_open = False
        self.is_ending = False
        """It ends once no call waits for an answer; new ones come only for actors that have such calls."""
        self.outbox: list[UnansweredCall] = []
        self.pending: dict[int, UnansweredCall] = {}
        """Calls that were sent, by number."""
        self.last_number = 0
        self.is_woken = False
        self.woken = trio.Event()

    def wake(self) -> None:
        """In the loop."""
        self.woken.set()

    def take(self) -> list[tuple[int, UnansweredCall]]:
        """Everything to send now."""
        batch, self.outbox, self.is_woken = self.outbox, [], False
        numbered = list(enumerate(batch, self.last_number + 1))
        self.last_number += len(batch)
        self.pending.update(numbered)
        return numbered

    def take_all_of(self, actor: Actor) -> list[UnansweredCall]:
        """The calls of an actor that have no answer, in their order; they are not on this line any more."""
        sent = {number: call for number, call in self.pending.items() if call.actor == actor}
        for number in sent:
            del self.pending[number]
        unsent = [call for call in self.outbox if call.actor == actor]
        self.outbox = [call for call in self.outbox if call.actor != actor]
        return [*sent.values(), *unsent]


class ActorLines:
    """The lines of one client. `open_channel` connects to a worker; `find_home` asks the scheduler for an actor's."""

    def __init__(
        self,
        shared: SharedState,
        calls: LoopCalls,
        open_channel: Callable[[str], Awaitable[BothWays]],
        find_home: Callable[[Key], Awaitable[str]],
    ) -> None:
        self._shared = shared
        self._calls = calls
        self._open = open_channel
        self._find_home = find_home
        # Under the lock of the shared state:
        self._lines: dict[str, _Line] = {}
        self._busy: dict[Actor, tuple[_Line, int]] = {}
        """On which line an actor has calls without an answer, and how many."""
        self._searches: dict[Actor, Search] = {}
        self._homes: dict[Actor, str] = {}
        """Where actors live that have moved; empty if that is not known yet."""
        self._back: set[Actor] = set()
        """Those that are at a worker which had said that they are not, by the word of the scheduler: they have come
        back. If the worker says so again, what it has is another actor of the same key."""
        self._watched: WeakSet[KeyState] = WeakSet()

    def call(self, address: str, call: UnansweredCall, actor: KeyState | None) -> None:
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
            self._watch(actor)
            self._put(call, address)

    def has_unanswered(self, key: Key, run: RunId) -> bool:
        """Whether calls of this actor are on their way: the next one must go the same way, or would overtake them."""
        return (key, run) in self._busy or (key, run) in self._searches

    def forward(self, call: UnansweredCall, former: str, actor: KeyState | None) -> None:
        """Make a call where its actor lives now; it was not made at this address, where the actor was. Any thread."""
        with self._shared.lock:
            self._watch(actor)
            if self._homes.get(call.actor, former) == former and not self.has_unanswered(call.key, call.run):
                self._homes[call.actor] = ""
            self._put(call, former)

    def _watch(self, actor: KeyState | None) -> None:
        if actor is not None and actor not in self._watched:
            self._watched.add(actor)
            self._shared.core.when_over(actor, self._actor_is_over)

    def _put(self, call: UnansweredCall, address: str) -> None:
        """Put a call behind the others of its actor, or on the line to where that lives; by the proxy, at `address`."""
        search = self._searches.get(call.actor)
        if search is not None:
            search.calls.append(call)
            return
        line, count = self._busy.get(call.actor, (None, 0))
        if line is None:
            home = self._homes.get(call.actor, address)
            if not home:
                self._search(call.actor, "", f"the actor {call.key!r} is not on its worker any more", [call])
                return
            line = self._lines.get(home)
            if line is None:
                line = _Line(home)
                if not self._start(self._serve, line):
                    self._fail([call], CLOSED)
                    return
                self._lines[home] = line
        self._busy[call.actor] = line, count + 1
        line.outbox.append(call)
        if not line.is_woken:
            line.is_woken = True
            self._calls.run_soon(line.wake)

    def _settled(self, call: UnansweredCall) -> None:
        """A call on a line has its answer."""
        self._back.discard(call.actor)
        line, count = self._busy.pop(call.actor)
        if count > 1:
            self._busy[call.actor] = line, count - 1

    # ------------------------------------------------------------------------------------------ actors that have moved

    def _moved(self, line: _Line, moved: ActorMoved) -> None:
        """An actor is not at the end of this line. No call of it that is on the line was made, or will be."""
        actor = moved.key, moved.run
        calls = line.take_all_of(actor)
        line.is_ending = True
        if self._lines.get(line.address) is line:
            del self._lines[line.address]
        if calls:
            del self._busy[actor]
            self._search(actor, line.address, f"the actor {moved.key!r} is not on its worker any more", calls)
        elif self._homes.get(actor, line.address) == line.address and not self.has_unanswered(*actor):
            self._homes[actor] = ""

    def _search(self, actor: Actor, former: str, why: str, calls: list[UnansweredCall]) -> None:
        search = Search(actor, former, why)
        search.calls = calls
        if self._start(self._find, search):
            self._searches[actor] = search
        else:
            self._fail(calls, CLOSED)

    def _start(self, function: Callable[[Any], Awaitable[object]], subject: object) -> bool:
        """Run this in the loop; False if the client was closed."""
        try:
            self._calls.start(function, subject)
        except (TrioDaskError, RuntimeError):
            return False
        return True

    async def _find(self, search: Search) -> None:
        """Ask the scheduler where an actor lives."""
        home, why = "", CLOSED
        try:
            home = await self._find_home(search.actor[0])
            why = search.why
        except (TrioDaskError, RuntimeError) as error:
            why = str(error)
        finally:
            self._found(search, home, why)

    def _found(self, search: Search, home: str, why: str) -> None:
        """The actor lives at `home`: make the calls there; or (empty, or where it is not, twice) nowhere: fail them."""
        with self._shared.lock:
            if self._searches.get(search.actor) is search:
                del self._searches[search.actor]
            is_back = home == search.former
            if not home or (is_back and search.actor in self._back):
                self._back.discard(search.actor)
                self._homes.pop(search.actor, None)
                self._fail(search.calls, why)
                return
            if is_back:
                self._back.add(search.actor)
            self._homes[search.actor] = home
            for call in search.calls:
                self._put(call, home)

    def settle(self, state: KeyState, address: str, outcome: str, text: str, frames: Frames) -> None:
        """The answer to a call. From any thread."""
        with self._shared.lock:
            self._shared.core.settle_call(state, _settlement(state, address, outcome, text, frames))

    def _actor_is_over(self, actor: KeyState) -> None:
        # The core calls this in the middle of something.
        self._watched.discard(actor)
        self._calls.run_soon(self._give_up, actor)

    def _give_up(self, actor: KeyState) -> None:
        """Fail the calls of an actor that is lost: its worker may be silent for long."""
        text = _why_lost(actor)
        with self._shared.lock:
            for lost in [lost for lost in self._busy if lost[0] == actor.key]:
                line, _ = self._busy.pop(lost)
                self._fail(line.take_all_of(lost), text)
            for lost in [lost for lost in self._searches if lost[0] == actor.key]:
                self._fail(self._searches.pop(lost).take_all(), text)
            for lost in [lost for lost in self._homes if lost[0] == actor.key]:
                del self._homes[lost]
            self._back = {lost for lost in self._back if lost[0] != actor.key}

    async def _serve(self, line: _Line) -> None:
        """Connect, and carry calls and answers until the connection or the client ends."""
        reason = CLOSED
        try:
            channel = await self._open(line.address)
            try:
                line.is_open = True
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
                self._over(line, reason)

    def _over(self, line: _Line, reason: str) -> None:
        """A line is over. If it never began, its calls were not made, and perhaps the actors are elsewhere by now."""
        why = f"the connection to the actor's worker broke while it was called: {reason}"
        for actor in [actor for actor, (other, _) in self._busy.items() if other is line]:
            del self._busy[actor]
            calls = line.take_all_of(actor)
            if line.is_open or reason == CLOSED:
                self._fail(calls, why)
            else:
                self._search(actor, line.address, why, calls)

    def _fail(self, calls: list[UnansweredCall], text: str) -> None:
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
            if line.is_ending and not line.pending and not line.outbox:
                return ENDED
            del arrived

    def _settle_all(self, line: _Line, arrived: list[tuple[Message, Frames]]) -> str:
        """Settle the calls with these answers; returns what is wrong with one of them."""
        settle = self._shared.core.settle_call
        with self._shared.lock:
            for answer, frames in arrived:
                if isinstance(answer, ActorMoved):
                    self._moved(line, answer)
                    continue
                if not isinstance(answer, ActorAnswer):
                    return f"a call of an actor was answered with a {type(answer).__name__}"
                call = line.pending.pop(answer.number, None)
                if call is not None:
                    self._settled(call)
                    settle(call.state, _settlement(call.state, line.address, answer.outcome, answer.text, frames))
        return ""


def _why_lost(actor: KeyState) -> str:
    return getattr(actor.failure, "text", "") or f"the actor {actor.key!r} is {actor.status}"


def _settlement(state: KeyState, address: str, outcome: str, text: str, frames: Frames) -> bytes | KeyFailed:
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
