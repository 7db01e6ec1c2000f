"""Both cores on a link that is cut at any byte, in either direction, and taken up again: an interruption is a delay."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_dask.client.core import client as client_core
from trio_dask.client.core import outbox, resend_buffer
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.fetch_queue import FetchRequest
from trio_dask.client.core.key_state import Ended, Frames, KeyState
from trio_dask.client.core.outbox import Row
from trio_dask.ids import Incarnation, Key, PeerId, RunId
from trio_dask.protocol import messages as m
from trio_dask.protocol.codec import FROM_CLIENT, TO_CLIENT, decode, encode
from trio_dask.protocol.frames import FrameDecoder, Kind, encode_frame
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.scheduler.core import Admit, CoreSettings, Resume, SchedulerCore, clients
from trio_dask.scheduler.core.invariants import check_empty

ME = Incarnation("me")
WORKER = PeerId(1)
ADDRESS = "tcp://w:1"
FUNCTIONS = ((b"f" * 16, b"a function of some bytes"), (b"g" * 16, b""))
INPUTS = {"a": (), "b": ("a",), "c": ("a", "b"), "x": (), "y": ()}
RENEWED = ("x", "y")
"""Keys that are given to another call each time."""


class Life(NamedTuple):
    """A future, and the call that it stands for."""

    state: KeyState
    call: bytes
    calls: list[KeyState]


class Wire:
    """Bytes under way, in both directions."""

    def __init__(self) -> None:
        self.up, self.down = bytearray(), bytearray()
        self.up_decoder, self.down_decoder = FrameDecoder(), FrameDecoder()


def lean(message: m.Message) -> m.Message:
    """A value that rides along is not kept for a client that is away."""
    return message._replace(value=None) if isinstance(message, m.KeyReady) else message


def frame(messages: Sequence[m.Message]) -> bytes:
    return encode_frame(Kind.RECORDS, encode(messages)) if messages else b""


def received(decoder: FrameDecoder, waiting: bytearray, count: int, allowed: Any) -> list[Any]:
    """The messages that the next `count` bytes complete."""
    data = bytes(waiting[:count])
    del waiting[:count]
    return [message for found in decoder.feed(data) for message in decode(found.payload, allowed)]


class CutLinks(RuleBasedStateMachine):
    @initialize(budget=st.sampled_from((0, 30, 10_000)))
    def start(self, budget: int) -> None:
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(clients, "CONFIRM_WEIGHT", 3)
        self.patches.setattr(resend_buffer, "ACK_EVERY", 4)
        self.patches.setattr(outbox, "BLOB_PIECE_BYTES", 5)
        self.patches.setattr(client_core, "BLOB_BUDGET_BYTES", 10)
        self.now = 0.0
        self.peer = PeerId(2)
        self.scheduler = SchedulerCore(
            CoreSettings(validate=True, free_delay_s=0.0, allowed_failures=1000), Incarnation("s1")
        )
        worker = Hello(
            role="worker", incarnation=Incarnation("w"), name="w", details={"address": ADDRESS, "nthreads": 2}
        )
        for hello, peer in ((worker, WORKER), (self.hello(), self.peer)):
            self.scheduler.greet(hello, 0.0)
            assert self.scheduler.begin_session(hello, 0.0) == Admit(peer)
        self.said_down: list[m.Message] = []
        self.heard_down: list[m.Message] = []
        self.said_up: list[m.Message] = []
        self.heard_up: list[m.Message] = []
        self.send = self.scheduler._state.send
        self.patches.setattr(self.scheduler._state, "send", self.record)
        self.client = ClientCore(inline_budget_bytes=budget)
        self.client.connected("s1", None)
        self.wire: Wire | None = Wire()
        self.heard_by_scheduler = True
        self.runs: dict[RunId, m.Run] = {}
        self.stored: dict[Key, bytes] = {}
        self.versions: Counter[Key] = Counter()
        self.lives: list[Life] = []
        self.cancelled: set[Key] = set()
        self.reads: list[tuple[Life, list[tuple[Frames | None, str]]]] = []
        self.fetching: list[FetchRequest] = []

    def hello(self, **details: Any) -> Hello:
        return Hello(role="client", incarnation=ME, name="me", details={"grace_s": 30.0, **details})

    def record(self, peer: PeerId, message: m.Message) -> None:
        """Everything that the scheduler says to the client passes here, once."""
        if peer == self.peer:
            self.said_down += map(lean, decode(encode([message]), TO_CLIENT))
        self.send(peer, message)

    # ------------------------------------------------------------------------------------------ the user

    @rule(key=st.sampled_from(sorted(INPUTS)), function=st.sampled_from(FUNCTIONS))
    def submit(self, key: Key, function: tuple[bytes, bytes]) -> None:
        for needed in INPUTS[key]:
            if self.life(needed) is None:
                self.submit(needed, function)
        known = self.life(key)
        if known is None and key in RENEWED:
            self.versions[key] += 1
        call = b"%s#%d" % (key.encode(), self.versions[key])
        row = Row(key, call, INPUTS[key], token=call if key in RENEWED else b"")
        (state,) = self.client.submit(function, [row], ())
        life = Life(state, call, [])
        self.client.wait(state, life.calls.append)
        self.lives.append(life)

    def life(self, key: Key) -> Life | None:
        return next((life for life in self.lives if life.state is self.client.states.get(key)), None)

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        life = self.lives.pop(data.draw(st.integers(0, len(self.lives) - 1)))
        self.client.dereference([life.state])

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        state = data.draw(st.sampled_from(self.lives)).state
        if self.client.states.get(state.key) is state:
            self.cancelled.add(state.key)
        self.client.cancel([state], False, "")

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        self.client.retry([data.draw(st.sampled_from(self.lives)).state])

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        life = data.draw(st.sampled_from(self.lives))
        found: list[tuple[Frames | None, str]] = []
        self.reads.append((life, found))
        self.client.read(life.state, lambda _, frames, reason: found.append((frames, reason)))

    # ------------------------------------------------------------------------------------------ the wire

    @rule(up=st.integers(0, 400), down=st.integers(0, 400))
    def deliver(self, up: int, down: int) -> None:
        self.pump()
        if self.wire is None:
            return
        for message in received(self.wire.up_decoder, self.wire.up, up, FROM_CLIENT):
            self.heard_up.append(message)
            self.scheduler.handle(self.peer, message, self.now)
        self.pump()
        for message in received(self.wire.down_decoder, self.wire.down, down, TO_CLIENT):
            self.heard_down.append(lean(message))
            self.client.handle(message)
        self.pump()

    def pump(self) -> None:
        """What is to be sent is sent, and lost where there is no wire."""
        self.scheduler.place(self.now)
        for peer, messages in self.scheduler.drain().items():
            if peer == WORKER:
                self.work(messages)
            elif self.wire is not None:
                self.wire.down += frame(messages)
        if self.wire is not None:
            said = self.client.drain()
            self.said_up += said
            self.wire.up += frame(said)
        self.fetching += self.client.next_fetches()

    @precondition(lambda self: self.wire is not None)
    @rule(noticed=st.booleans())
    def cut(self, noticed: bool) -> None:
        """All that is under way is lost. Perhaps only the client notices."""
        self.wire = None
        self.heard_by_scheduler = not noticed
        if noticed:
            self.scheduler.end_session(self.peer, "cut", self.now, expected=False)

    @precondition(lambda self: self.wire is None)
    @rule(seconds=st.floats(0, 5), abandoned=st.booleans(), meanwhile=st.booleans())
    def dial(self, seconds: float, *, abandoned: bool, meanwhile: bool) -> None:
        """The client is back after a while. Perhaps it has called once before, and not waited for the session."""
        self.now += seconds
        self.scheduler.tick(self.now)
        for _ in range(2 if abandoned else 1):
            hello = self.hello(previous=ME, scheduler="s1", received=self.client.received)
            answer = self.scheduler.greet(hello, self.now)
            assert isinstance(answer, Welcome)
            assert answer.details["returned"]
            handled = answer.details["received"]
            self.pump()
        del self.said_up[handled:]
        if meanwhile and self.runs:
            self.finish_run(next(iter(self.runs)), "inline", pump=False)
        assert self.scheduler.begin_session(hello, self.now) == Resume(self.peer)
        self.client.connected("s1", handled)
        self.wire = Wire()
        self.pump()

    # ------------------------------------------------------------------------------------------ the worker

    def work(self, messages: Sequence[m.Message]) -> None:
        for message in messages:
            match message:
                case m.Run(run):
                    self.runs[run] = message
                case m.CancelRuns(runs):
                    for run in runs:
                        self.runs.pop(run, None)
                case m.Free(keys):
                    for key in keys:
                        self.stored.pop(key, None)
                case m.ReturnRuns(runs):
                    back = tuple(run for run in runs if self.runs.pop(run, None) is not None)
                    self.scheduler.handle(WORKER, m.RunsReturned(back), self.now)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), how=st.sampled_from(("inline", "held", "fail")))
    def finish(self, data: st.DataObject, how: str) -> None:
        self.finish_run(data.draw(st.sampled_from(list(self.runs))), how)

    def finish_run(self, number: RunId, how: str, *, pump: bool = True) -> None:
        run = self.runs.pop(number)
        if any(key not in self.stored for key, _ in run.dependencies):
            self.scheduler.handle(WORKER, m.RunsReturned((number,)), self.now)
        elif how == "fail":
            self.scheduler.handle(WORKER, m.RunFailed(number, "exception", None, run.call.decode(), 0.1), self.now)
        else:
            self.stored[run.key] = run.call
            value = run.call if how == "inline" else None
            self.scheduler.handle(WORKER, m.RunFinished(number, 8, "bytes", 0.1, value), self.now)
        if pump:
            self.pump()

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.stored)))
        del self.stored[key]
        self.scheduler.handle(WORKER, m.Lost((key,)), self.now)
        self.pump()

    @precondition(lambda self: self.fetching)
    @rule()
    def fetch(self) -> None:
        request = self.fetching.pop(0)
        for state in request.states:
            life = next((life for life in self.lives if life.state is state), None)
            if life is not None and self.stored.get(state.key) == life.call:
                self.client.fetched(request.address, state, (life.call,))
            else:
                self.client.fetch_failed(request.address, state, "not there")
        self.client.fetch_ended(request.address)

    # ------------------------------------------------------------------------------------------ what must hold

    @invariant()
    def what_is_known_is_about_the_right_call(self) -> None:
        for life in getattr(self, "lives", ()):
            self.check(life)

    def check(self, life: Life) -> None:
        state, key = life.state, life.state.key
        assert len(life.calls) <= 1
        assert state.status != "lost"
        needed = (key, *INPUTS[key])
        if state.value is not None:
            assert state.value == life.call
        if state.status == "cancelled":
            assert self.cancelled.intersection(needed)
        elif state.status == "error":
            failure = state.failure
            assert isinstance(failure, m.KeyFailed)
            if failure.kind == "refused":
                assert self.cancelled.intersection(needed)
            else:
                assert failure.kind == "exception"
                right = life.call if failure.blamed == key else b"%s#0" % failure.blamed.encode()
                assert failure.text.encode() == right
        for other, found in self.reads:
            assert len(found) <= 1
            if other is life and found and found[0][0] is not None:
                assert tuple(found[0][0]) == (life.call,)

    def teardown(self) -> None:
        """Heal: with a link and a worker that works, everything settles, once; then nothing is left of it anywhere."""
        if not hasattr(self, "client"):
            return
        try:
            if self.wire is None:
                self.dial(1.0, abandoned=False, meanwhile=False)
            self.run_dry()
            assert self.heard_up == self.said_up
            assert self.heard_down == self.said_down
            for life in self.lives:
                self.check(life)
                assert len(life.calls) == 1, f"{life.state} never settled"
                assert life.state.status != "pending"
            for life, found in self.reads:
                held = any(other.state is life.state for other in self.lives)
                assert found or not held, "a reader was forgotten"
            self.client.dereference([life.state for life in self.lives])
            self.run_dry()
            assert not self.client.states
            assert not self.client._fences
            assert len(self.client._resend._kept) < 3
            state = self.scheduler._state
            assert not state.tasks
            assert sum(map(len, state.clients[self.peer].unconfirmed)) < 5
            self.client.end_session(Ended(lost=False, text="closed"))
            self.scheduler.end_session(self.peer, "closed", self.now, expected=True)
            self.pump()
            check_empty(state)
            assert not state.away_clients
            assert not state.incarnations
        finally:
            self.patches.undo()

    def run_dry(self) -> None:
        for _ in range(300):
            self.deliver(10**6, 10**6)
            if self.runs:
                self.finish_run(next(iter(self.runs)), "inline")
            elif self.fetching:
                self.fetch()
            elif self.wire is not None and not (self.wire.up or self.wire.down):
                return
        raise AssertionError("it never comes to rest")


TestCutLinks = CutLinks.TestCase
TestCutLinks.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
