"""Clients that come back: which session a hello opens, whatever happens between the answer and the session."""

from collections.abc import Mapping
from typing import Any

import pytest

from trio_dask.errors import ProtocolError
from trio_dask.ids import Incarnation, PeerId
from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Hello, Welcome
from trio_dask.scheduler.core import Admit, CallAgain, ClosePeer, CoreSettings, Resume, SchedulerCore, topic_handlers
from trio_dask.scheduler.core.invariants import check_empty
from trio_dask.scheduler.core.state import LogLine
from trio_dask.scheduler.core.topic_handlers import publish

FUNCTION = b"f" * 16


class Desk:
    """A scheduler core and who is greeted there."""

    def __init__(self) -> None:
        self.core = SchedulerCore(CoreSettings(validate=True), Incarnation("s1"))
        self.state = self.core._state
        self.now = 0.0

    def hello(self, **details: Any) -> Hello:
        return Hello(role="client", incarnation=Incarnation("me"), name="me", details={"grace_s": 20, **details})

    def greet(self, hello: Hello) -> tuple[Mapping[str, Any], list[PeerId]]:
        """What the client is told, and the peer whose connection is over by that."""
        answer = self.core.greet(hello, self.now)
        closed = [request.peer for request in self.core.requests if isinstance(request, ClosePeer)]
        self.core.requests.clear()
        assert isinstance(answer, Welcome)
        return answer.details, closed

    def enter(self, hello: Hello) -> PeerId:
        """The peer of the session that this hello opens."""
        outcome = self.core.begin_session(hello, self.now)
        assert isinstance(outcome, Admit | Resume)
        return outcome.peer

    def has_to_call_again(self, hello: Hello) -> bool:
        return isinstance(self.core.begin_session(hello, self.now), CallAgain)

    def join(self) -> PeerId:
        """A client that is here, and has submitted a task."""
        hello = self.hello()
        self.greet(hello)
        peer = self.enter(hello)
        self.core.handle(peer, m.Blob(FUNCTION, 1, b"f"), self.now)
        self.core.handle(peer, m.Submit(FUNCTION, ("k",), (b"call",), (), (), (), {}), self.now)
        self.settle()
        return peer

    def settle(self) -> dict[PeerId, list[m.Message]]:
        self.core.place(self.now)
        return self.core.drain()

    def back(self, received: int = 0) -> Hello:
        return self.hello(previous="me", scheduler="s1", received=received)

    def lose(self, peer: PeerId) -> None:
        self.core.end_session(peer, "cut", self.now, expected=False)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.core.next_deadline() <= self.now:
            self.core.tick(self.now)

    @property
    def tasks(self) -> list[str]:
        return list(self.state.tasks)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_client_that_is_back_goes_on_as_the_same_peer(desk: Desk) -> None:
    peer = desk.join()
    desk.lose(peer)
    hello = desk.back()
    assert desk.greet(hello) == ({"returned": True, "received": 2}, [])
    assert desk.enter(hello) == peer
    assert desk.tasks == ["k"]
    assert not desk.state.away_clients


def test_what_a_client_wants_stays_for_its_grace_and_no_longer(desk: Desk) -> None:
    desk.lose(desk.join())
    desk.pass_time(19.9)
    assert desk.tasks == ["k"]
    desk.pass_time(0.2)
    assert desk.tasks == []
    check_empty(desk.state)
    assert desk.greet(desk.back()) == ({"returned": False, "received": 0}, [])


def test_a_grace_is_as_long_as_was_asked_for_up_to_an_hour(desk: Desk) -> None:
    hello = desk.hello(grace_s=10**6)
    desk.greet(hello)
    desk.lose(desk.enter(hello))
    desk.pass_time(3599)
    assert desk.state.clients
    desk.pass_time(1)
    assert not desk.state.clients


def test_a_client_without_grace_is_gone_at_once(desk: Desk) -> None:
    hello = desk.hello(grace_s=0)
    desk.greet(hello)
    peer = desk.enter(hello)
    desk.core.handle(peer, m.Blob(FUNCTION, 1, b"f"), 0.0)
    for _ in range(100):
        desk.core.handle(peer, m.Query(1, "nthreads", ()), 0.0)
    assert all(isinstance(message, m.Reply) for message in desk.settle()[peer])
    desk.lose(peer)
    check_empty(desk.state)


def test_a_link_that_still_seems_alive_is_over_once_its_client_calls_again(desk: Desk) -> None:
    peer = desk.join()
    hello = desk.back()
    assert desk.greet(hello) == ({"returned": True, "received": 2}, [peer])
    desk.core.handle(peer, m.Release(("k",)), desk.now)  # from the old link: its client will say it again
    assert desk.tasks == ["k"]
    assert desk.enter(hello) == peer
    desk.core.handle(peer, m.Release(("k",)), desk.now)
    assert desk.tasks == []


def test_of_two_calls_the_last_one_counts(desk: Desk) -> None:
    peer = desk.join()
    desk.lose(peer)
    first, second = desk.back(), desk.back()
    desk.greet(first)
    desk.greet(second)
    assert desk.enter(second) == peer
    assert desk.has_to_call_again(first)
    assert desk.tasks == ["k"]


def test_a_session_that_begins_before_the_next_call_is_taken_over(desk: Desk) -> None:
    peer = desk.join()
    desk.lose(peer)
    for _ in range(2):
        hello = desk.back()
        desk.greet(hello)
        assert desk.enter(hello) == peer


def test_the_time_can_be_up_between_the_answer_and_the_session(desk: Desk) -> None:
    desk.lose(desk.join())
    hello = desk.back()
    assert desk.greet(hello)[0]["returned"]
    desk.pass_time(100)
    assert desk.has_to_call_again(hello)
    check_empty(desk.state)


def test_two_first_calls_of_one_client(desk: Desk) -> None:
    first, second = desk.hello(), desk.hello()
    desk.greet(first)
    desk.greet(second)
    peer = desk.enter(first)
    assert peer is not None
    assert desk.has_to_call_again(second)  # its client hears that, and calls back
    assert desk.greet(desk.back())[0] == {"returned": True, "received": 0}


def test_a_client_that_begins_anew_leaves_nothing_behind(desk: Desk) -> None:
    peer = desk.join()
    hello = desk.hello()
    assert desk.greet(hello) == ({"returned": False, "received": 0}, [peer])
    assert desk.tasks == []
    assert desk.enter(hello) != peer


@pytest.mark.parametrize("details", [{"previous": "other"}, {"scheduler": "s0"}, {"received": 7}])
def test_a_client_that_does_not_fit_begins_anew(desk: Desk, details: dict[str, str | int]) -> None:
    desk.lose(desk.join())
    hello = desk.hello(**{"previous": "me", "scheduler": "s1", "received": 0, **details})
    assert desk.greet(hello)[0] == {"returned": False, "received": 0}


@pytest.mark.parametrize("details", [{"received": -1}, {"received": "1"}, {"received": True}, {"received": 2**63}])
def test_odd_numbers_are_refused(desk: Desk, details: dict[str, int | str]) -> None:
    with pytest.raises(ProtocolError):
        desk.greet(desk.hello(**details))


@pytest.mark.parametrize("grace_s", [-1, "1", True, float("inf"), float("nan")])
def test_odd_graces_are_refused(desk: Desk, grace_s: Any) -> None:
    with pytest.raises(ProtocolError):
        desk.enter(desk.hello(grace_s=grace_s))


def test_what_was_not_confirmed_is_sent_again_and_values_are_left_out(desk: Desk) -> None:
    peer = desk.join()
    state = desk.state
    for number in range(5):
        state.send(peer, m.KeyReady(f"r{number}", 1, "int", b"v", ()))
        desk.settle()
    desk.core.handle(peer, m.Received(1), desk.now)
    desk.lose(peer)
    state.send(peer, m.KeyReady("away", 1, "int", b"v", ()))
    assert peer not in desk.settle()
    hello = desk.back(received=3)
    desk.greet(hello)
    state.send(peer, m.KeyReady("late", 1, "int", b"v", ()))
    desk.enter(hello)
    (messages,) = desk.settle().values()
    assert [(message.key, message.value) for message in messages if isinstance(message, m.KeyReady)] == [
        ("r3", None),
        ("r4", None),
        ("away", None),
        ("late", b"v"),
    ]


def test_more_than_was_sent_cannot_have_been_received(desk: Desk) -> None:
    peer = desk.join()
    with pytest.raises(ProtocolError):
        desk.core.handle(peer, m.Received(1), desk.now)


def test_a_client_that_confirms_nothing_is_kept_nothing_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_dask.scheduler.core.clients.MAX_UNCONFIRMED", 10)
    peer = desk.join()
    for _ in range(11):
        desk.state.send(peer, m.KeyPending("k"))
    desk.settle()
    assert not desk.state.clients[peer].unconfirmed
    desk.lose(peer)
    check_empty(desk.state)


@pytest.mark.parametrize("is_away", [False, True])
def test_a_client_that_does_not_read_misses_events_and_hears_how_many(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    """What the scheduler keeps for it has a limit, and it misses nothing as long as less than that is unread."""
    monkeypatch.setattr(topic_handlers, "LARGEST_UNREAD_BYTES", 5000)
    peer = desk.join()
    me = desk.state.clients[peer]
    desk.core.handle(peer, m.Subscribe("noise", True), desk.now)
    desk.settle()
    received = me.sent
    if is_away:
        desk.lose(peer)
    told: list[m.Message] = []
    for number in range(30):
        desk.core.log_event("noise", number, 10, desk.now)
        publish(desk.state, "noise", b"x" * 700, 700)
        told += desk.settle().get(peer, [])
    assert 5000 < me.unread_bytes < 6000
    lines = [request.text for request in desk.core.requests if isinstance(request, LogLine)]
    assert lines == ["Client me reads events more slowly than they come: it misses some"]
    missed, sent = me.missed, me.sent
    assert missed == 60 - (sent - received)
    if is_away:
        hello = desk.back(received=received + 2)
        desk.greet(hello)
        desk.enter(hello)
        assert me.unread_bytes < 6000 - 900
        told = desk.settle()[peer]
        assert len(told) == sent - received - 2
    assert all(isinstance(message, m.TopicEvent) for message in told)
    desk.core.handle(peer, m.Received(sent), desk.now)
    (last,) = desk.settle()[peer]
    assert isinstance(last, m.TopicEvent)
    text = f"{missed} events were lost, as this client read them more slowly than they came"
    assert (last.topic, last.payload) == ("warn", (text,))
    publish(desk.state, "noise", b"again", 5)
    assert [type(message) for message in desk.settle()[peer]] == [m.TopicEvent]
    desk.core.handle(peer, m.Received(sent + 2), desk.now)
    assert not me.unread_bytes
