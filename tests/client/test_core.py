"""The client's core alone: a machine of random events against a scheduler with no decisions, and single properties."""

from collections import deque
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.client.cluster import FUNCTION, rows
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.fetch_queue import REQUEST_BYTES, FetchRequest
from trio_dask.client.core.key_state import Ended, Frames, KeyState
from trio_dask.client.core.outbox import Row
from trio_dask.errors import KeyConflict, ProtocolError
from trio_dask.ids import Key
from trio_dask.protocol import messages as m
from trio_dask.protocol.codec import FROM_CLIENT, TO_CLIENT, decode, encode

KEYS = ("a", "b")
HOLDERS = ("tcp://1:1", "tcp://2:2")


class Life(NamedTuple):
    """What the client has asked for: its state, and the call, which is different for every life of a key."""

    state: KeyState
    call: bytes


class SchedulerModel:
    """Does what the client says, in order; its tasks finish, fail and get lost when the machine says so."""

    def __init__(self) -> None:
        self.calls: dict[Key, bytes] = {}
        self.wanted: set[Key] = set()
        self.results: dict[Key, str] = {}
        self.outbox: list[m.Message] = []

    def handle(self, message: m.Message) -> None:
        match message:
            case m.Submit(_, keys, calls):
                for key, call in zip(keys, calls, strict=True):
                    assert key not in self.wanted, "submitted twice without a release"
                    self.wanted.add(key)
                    self.calls[key] = call
            case m.Release(keys):
                for key in keys:
                    self.wanted.discard(key)
                    self.calls.pop(key, None)
                    self.results.pop(key, None)
            case m.Cancel(keys):
                for key in keys:
                    if key in self.wanted:
                        self.wanted.discard(key)
                        self.calls.pop(key)
                        self.results.pop(key, None)
                        self.outbox.append(m.Dropped(key, "cancelled", ""))
            case m.Retry(keys):
                for key in keys:
                    if self.results.get(key) == "error":
                        del self.results[key]
                        self.outbox.append(m.KeyPending(key))
            case m.Want(keys):
                for key in keys:
                    if key in self.results:
                        self.tell(key, inline=False)
            case m.FetchFailed(key):
                if key in self.results:
                    self.tell(key, inline=False)
            case m.Query(request):
                self.outbox.append(m.Reply(request, {}))

    def finish(self, key: Key, *, inline: bool) -> None:
        self.results[key] = "finished"
        self.tell(key, inline=inline)

    def tell(self, key: Key, *, inline: bool) -> None:
        value = self.calls[key] if inline else None
        self.outbox.append(m.KeyReady(key, 8, "bytes", value, () if inline else HOLDERS))

    def fail(self, key: Key) -> None:
        self.results[key] = "error"
        self.outbox.append(m.KeyFailed(key, key, "exception", None, self.calls[key].decode(), {}))

    def lose(self, key: Key) -> None:
        del self.results[key]
        self.outbox.append(m.KeyPending(key))


class CoreMachine(RuleBasedStateMachine):
    """Messages are under way for as long as the machine likes, in either direction."""

    @initialize(budget=st.sampled_from((0, 20, 10_000)))
    def start(self, budget: int) -> None:
        self.core = ClientCore(inline_budget_bytes=budget)
        self.budget = budget
        self.scheduler = SchedulerModel()
        self.to_scheduler: deque[Any] = deque()
        self.to_client: deque[Any] = deque()
        self.lives: list[Life] = []
        self.calls = 0
        self.settled: list[tuple[Life, list[KeyState]]] = []
        self.reads: list[tuple[Life, list[tuple[Frames | None, str]]]] = []
        self.fetching: list[FetchRequest] = []
        self.over: list[KeyState] = []

    # ------------------------------------------------------------------------------------------ the user

    @rule(key=st.sampled_from(KEYS))
    def submit_anew_or_share(self, key: Key) -> None:
        known = self.core.states.get(key)
        if known is not None and known.status not in ("cancelled", "lost"):
            call = next(life.call for life in self.lives if life.state is known)
        else:
            self.calls += 1
            call = b"%d" % self.calls
        (state,) = self.core.submit(FUNCTION, [Row(key, call, token=call)], ())
        assert state.status not in ("cancelled", "lost")
        self.lives.append(Life(state, call))

    @rule(key=st.sampled_from(KEYS))
    def submit_a_conflict(self, key: Key) -> None:
        known = self.core.states.get(key)
        if known is not None and known.status not in ("cancelled", "lost"):
            with pytest.raises(KeyConflict):
                self.core.submit(FUNCTION, [Row(key, b"another", token=b"another")], ())

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        life = self.lives.pop(data.draw(st.integers(0, len(self.lives) - 1)))
        self.core.dereference([life.state])

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        life = data.draw(st.sampled_from(self.lives))
        self.core.cancel([life.state], False, "")
        assert life.state.status in ("cancelled", "lost")

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        self.core.retry([data.draw(st.sampled_from(self.lives)).state])

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        calls: list[KeyState] = []
        self.settled.append((data.draw(st.sampled_from(self.lives)), calls))
        self.core.wait(self.settled[-1][0].state, calls.append)

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        calls: list[tuple[Frames | None, str]] = []
        self.reads.append((data.draw(st.sampled_from(self.lives)), calls))
        self.core.read(self.reads[-1][0].state, lambda _, frames, reason: calls.append((frames, reason)))

    # ------------------------------------------------------------------------------------------ the world

    @rule(to_scheduler=st.integers(0, 10), to_client=st.integers(0, 10))
    def deliver(self, to_scheduler: int, to_client: int) -> None:
        self.collect()
        for _ in range(min(to_scheduler, len(self.to_scheduler))):
            self.scheduler.handle(self.to_scheduler.popleft())
        self.collect()
        for _ in range(min(to_client, len(self.to_client))):
            self.core.handle(self.to_client.popleft())

    @rule(key=st.sampled_from(KEYS), what=st.sampled_from(("inline", "held", "fail", "lose")))
    def happen(self, key: Key, what: str) -> None:
        self.deliver(5, 0)
        scheduler = self.scheduler
        if key in scheduler.wanted and key not in scheduler.results and what != "lose":
            if what == "fail":
                scheduler.fail(key)
            else:
                scheduler.finish(key, inline=what == "inline")
        elif scheduler.results.get(key) == "finished" and what == "lose":
            scheduler.lose(key)

    @rule(succeed=st.booleans())
    def carry_out_a_fetch(self, succeed: bool) -> None:
        self.fetching += self.core.next_fetches()
        if self.fetching:
            self.end_fetch(self.fetching.pop(0), succeed=succeed)

    def end_fetch(self, request: FetchRequest, *, succeed: bool) -> None:
        for state in request.states:
            value = self.scheduler.calls.get(state.key)
            finished = self.scheduler.results.get(state.key) == "finished"
            # A worker knows keys alone: what it has may belong to the life after the one that was asked for.
            if succeed and finished and value is not None and self.call_of(state) == value:
                self.core.fetched(request.address, state, (value,))
                continue
            self.core.fetch_failed(request.address, state, "gone")
        self.core.fetch_ended(request.address)

    def call_of(self, state: KeyState) -> bytes | None:
        return next((life.call for life in self.lives if life.state is state), None)

    def collect(self) -> None:
        self.to_scheduler += decode(encode(self.core.drain()), FROM_CLIENT)
        outbox, self.scheduler.outbox = self.scheduler.outbox, []
        self.to_client += decode(encode(outbox), TO_CLIENT)

    # ------------------------------------------------------------------------------------------ what always holds

    @invariant()
    def every_status_is_about_its_own_life(self) -> None:
        for life in getattr(self, "lives", ()):
            state = life.state
            if state.value is not None:
                assert state.status == "finished"
                assert state.value == life.call
            if isinstance(state.failure, m.KeyFailed):
                assert state.status == "error"
                assert state.failure.text.encode() == life.call
            assert (state.failure is None) == (state.status in ("pending", "finished"))

    @invariant()
    def what_is_over_stays_over(self) -> None:
        for state in getattr(self, "over", ()):
            assert state.status in ("cancelled", "lost")
        if hasattr(self, "over"):
            self.over = [life.state for life in self.lives if life.state.status in ("cancelled", "lost")]

    @invariant()
    def the_budget_is_kept(self) -> None:
        if hasattr(self, "core"):
            kept = [len(state.value) for state in self.core.states.values() if state.value is not None]
            assert sum(kept) == self.core._inline_bytes <= self.budget

    @invariant()
    def whoever_waits_is_called_once(self) -> None:
        for life, calls in getattr(self, "settled", ()):
            assert len(calls) <= 1
            if life.state.status != "pending" and life.state.waiters is None:
                assert len(calls) == 1
        for life, calls in getattr(self, "reads", ()):
            assert len(calls) <= 1
            for frames, _reason in calls:
                assert frames is None or tuple(frames) == (life.call,)

    def teardown(self) -> None:
        """Heal: everything is delivered, everything finishes; then nobody who still holds a future is left waiting."""
        if not hasattr(self, "core"):
            return
        self.run_dry()
        for life in self.lives:
            key = life.state.key
            if life.state.status == "pending":
                assert self.scheduler.calls.get(key) == life.call, "it waits for what nobody will compute"
                assert key not in self.scheduler.results, "it has not heard of its result"
        for key in self.scheduler.wanted - self.scheduler.results.keys():
            self.scheduler.finish(key, inline=False)
        self.run_dry()
        held = {id(life.state) for life in self.lives}
        for life, calls in self.reads:
            assert calls or id(life.state) not in held, "a reader was forgotten"
        assert all(life.state.status != "pending" for life in self.lives)
        self.core.dereference([life.state for life in self.lives])
        self.run_dry()
        assert not self.core.states
        assert not self.scheduler.wanted
        assert not self.core._fences
        assert not self.core._inline
        assert not self.core._inline_bytes

    def run_dry(self) -> None:
        for _ in range(200):
            self.collect()
            self.fetching += self.core.next_fetches()
            if not (self.to_scheduler or self.to_client or self.fetching):
                return
            while self.to_scheduler:
                self.scheduler.handle(self.to_scheduler.popleft())
            while self.to_client:
                self.core.handle(self.to_client.popleft())
            while self.fetching:
                self.end_fetch(self.fetching.pop(), succeed=True)
        raise AssertionError("it never comes to rest")


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_what_a_scheduler_may_not_say_is_refused() -> None:
    with pytest.raises(ProtocolError):
        ClientCore().handle(m.Leave("", False))


def test_messages_about_keys_that_nobody_holds_are_ignored() -> None:
    core = ClientCore()
    for message in (
        m.KeyReady("x", 1, "int", b"v", ()),
        m.KeyFailed("x", "x", "exception", None, "", {}),
        m.KeyPending("x"),
        m.Dropped("x", "lost", ""),
        m.Reply(7, None),
    ):
        core.handle(message)
    assert not core.states
    assert not core.drain()


def test_what_was_cancelled_stays_so_whatever_was_under_way() -> None:
    core = ClientCore()
    (state,) = core.submit(FUNCTION, rows(1), ())
    core.cancel([state], False, "enough")
    core.handle(m.KeyReady("k0", 1, "int", b"v", ()))
    core.handle(m.KeyFailed("k0", "k0", "exception", None, "", {}))
    core.handle(m.KeyPending("k0"))
    assert state.status == "cancelled"
    assert state.failure == m.Dropped("k0", "cancelled", "enough")


def test_the_end_reaches_everybody_once() -> None:
    core = ClientCore()
    pending, finished = core.submit(FUNCTION, rows(2), ())
    core.handle(m.KeyReady("k1", 1, "int", None, HOLDERS))
    heard: list[object] = []
    core.wait(pending, heard.append)
    core.read(finished, lambda state, frames, reason: heard.append((state, frames)))
    core.request(m.Restart, lambda payload, ended: heard.append(ended))
    ended = Ended(lost=True, text="gone")
    core.end_session(ended)
    core.end_session(Ended(lost=False, text="closed"))
    assert heard == [pending, (finished, None), ended]
    assert {pending.status, finished.status} == {"lost"}
    assert not core.drain()
    assert not core.next_fetches()


def test_fetches_spread_over_holders_and_stay_within_bounds() -> None:
    core = ClientCore()
    states = core.submit(FUNCTION, rows(5000), ())
    for state in states:
        core.handle(m.KeyReady(state.key, 100_000, "bytes", None, HOLDERS))
        core.read(state, lambda *_: None)
    requests = core.next_fetches()
    assert [request.address for request in requests] == [HOLDERS[0]] * 2 + [HOLDERS[1]] * 2
    assert all(sum(state.nbytes for state in request.states) <= REQUEST_BYTES for request in requests)
    assert core.next_fetches() == []
    for request in requests:
        for state in request.states:
            core.fetched(request.address, state, (b"v",))
        core.fetch_ended(request.address)
    assert len(core.next_fetches()) == 4


def test_what_nobody_reads_any_more_is_not_fetched() -> None:
    core = ClientCore()
    (state,) = core.submit(FUNCTION, rows(1), ())
    reader = lambda *_: None  # noqa: E731 - the same object is given twice
    core.read(state, reader)
    core.handle(m.KeyReady("k0", 100_000, "bytes", None, HOLDERS))
    core.abandon(state, reader)
    assert core.next_fetches() == []
    core.read(state, reader)
    assert len(core.next_fetches()) == 1


def test_a_fetch_that_hangs_is_not_waited_for_once_the_key_is_elsewhere() -> None:
    core = ClientCore()
    (state,) = core.submit(FUNCTION, rows(1), ())
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS[:1]))
    outcomes = []
    core.read(state, lambda _, frames, reason: outcomes.append(frames))
    assert [request.address for request in core.next_fetches()] == [HOLDERS[0]]
    core.handle(m.KeyPending("k0"))
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS[1:]))
    assert [request.address for request in core.next_fetches()] == [HOLDERS[1]]
    core.fetched(HOLDERS[1], state, (b"new",))
    core.fetch_failed(HOLDERS[0], state, "it woke up too late")
    core.fetched(HOLDERS[0], state, (b"late",))
    assert outcomes == [(b"new",)]


def test_a_key_that_no_holder_delivers_is_given_up() -> None:
    core = ClientCore()
    (state,) = core.submit(FUNCTION, rows(1), ())
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS))
    outcomes = []
    core.read(state, lambda _, frames, reason: outcomes.append((frames, reason)))
    for _ in range(20):
        for request in core.next_fetches():
            core.fetch_failed(request.address, state, "no way")
            core.fetch_ended(request.address)
        core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS))
    assert outcomes == [(None, "no way")]
    assert [message for message in core.drain() if isinstance(message, m.FetchFailed)]


def test_a_fetch_from_a_worker_that_no_longer_counts_as_a_holder_is_not_waited_for() -> None:
    core = ClientCore()
    (state,) = core.submit(FUNCTION, rows(1), ())
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS))
    outcomes = []
    core.read(state, lambda _, frames, reason: outcomes.append(frames))
    (asked,) = core.next_fetches()
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS))
    assert core.next_fetches() == []
    (other,) = set(HOLDERS) - {asked.address}
    core.handle(m.KeyReady("k0", 1, "int", None, (other,)))
    assert [request.address for request in core.next_fetches()] == [other]
    core.fetched(other, state, (b"value",))
    assert outcomes == [(b"value",)]


def test_who_is_silent_is_not_said_to_have_lost_the_value() -> None:
    core = ClientCore()
    (state,) = core.submit(FUNCTION, rows(1), ())
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS[:1]))
    outcomes = []
    core.read(state, lambda _, frames, reason: outcomes.append((frames, reason)))
    core.next_fetches()
    core.drain()
    core.fetch_failed(HOLDERS[0], state, "no answer", is_silent=True)
    core.fetch_ended(HOLDERS[0])
    assert core.drain() == [m.Want(("k0",))]
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS[:1]))
    assert len(core.next_fetches()) == 1
    core.fetched(HOLDERS[0], state, (b"value",))
    assert outcomes == [((b"value",), "")]


def test_a_result_that_nobody_here_wants_is_released_once_more() -> None:
    """A worker that returns tells again what was scattered, and the scheduler takes it to be wanted in our name."""
    core = ClientCore()
    core.handle(m.KeyReady("scattered", 1, "int", None, HOLDERS))
    assert core.drain() == [m.Release(("scattered",))]
    (state,) = core.submit(FUNCTION, rows(1), ())
    core.cancel([state], False, "enough")
    core.drain()
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS))
    assert core.drain() == [m.Release(("k0",))]


def test_what_is_said_of_a_former_life_releases_nothing_of_the_next() -> None:
    core = ClientCore()
    core.dereference(core.submit(FUNCTION, rows(1), ()))
    (state,) = core.submit(FUNCTION, rows(1), ())
    core.drain()
    core.handle(m.KeyReady("k0", 1, "int", None, HOLDERS))
    assert state.status == "pending"
    assert not core.drain()


def test_only_of_keys_that_pend_it_is_said_why_they_wait() -> None:
    core = ClientCore()
    a, b, c, d = core.submit(FUNCTION, rows(4), ())
    no_gpu, nobody = "no worker offers GPU=3", "no worker is called 'nobody'"
    core.handle(m.Stuck("3 tasks wait", False, ((no_gpu, (a.key, b.key)), (nobody, (c.key,)))))
    assert core.stuck.why([a]) == f"1 task waits: {no_gpu}"
    assert core.stuck.why([a, b, c, d]) == f"2 tasks wait: {no_gpu}; 1 task waits: {nobody}"
    assert core.stuck.why([d]) == ""
    core.handle(m.Dropped(a.key, "cancelled", ""))
    assert core.stuck.why([a]) == ""
    core.handle(m.Stuck("3 tasks wait", True, (("no worker is connected", None),)))
    assert core.stuck.why([a, b, c, d]) == "3 tasks wait: no worker is connected"
    core.handle(m.Stuck("", False, ()))
    assert core.stuck.why([a, b, c, d]) == ""
