"""Clients that come back: which session a hello opens, whatever happens between the answer and the session."""

import pytest

from trio_dask.errors import ProtocolError
from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler.core import CallAgain, ClosePeer, CoreSettings, SchedulerCore
from trio_dask.scheduler.core.invariants import check_empty

FUNCTION = b"f" * 16


class Desk:
    """A scheduler core and who is greeted there."""

    def __init__(self) -> None:
        self.core = SchedulerCore(CoreSettings(validate=True), "s1")
        self.state = self.core._state
        self.now = 0.0

    def hello(self, **details):
        return Hello(role="client", incarnation="me", name="me", details={"grace_s": 20, **details})

    def greet(self, hello):
        """What the client is told, and the peer whose connection is over by that."""
        answer = self.core.greet(hello, self.now)
        closed = [request.peer for request in self.core.requests if isinstance(request, ClosePeer)]
        self.core.requests.clear()
        return answer.details, closed

    def enter(self, hello):
        """The peer of the session that this hello opens; None if its client has to call again."""
        outcome = self.core.begin_session(hello, self.now)
        return None if isinstance(outcome, CallAgain) else outcome.peer

    def join(self):
        """A client that is here, and has submitted a task."""
        hello = self.hello()
        self.greet(hello)
        peer = self.enter(hello)
        self.core.handle(peer, m.Blob(FUNCTION, 1, b"f"), self.now)
        self.core.handle(peer, m.Submit(FUNCTION, ("k",), (b"call",), (), (), (), {}), self.now)
        self.settle()
        return peer

    def settle(self):
        self.core.place(self.now)
        return self.core.drain()

    def back(self, received=0):
        return self.hello(previous="me", scheduler="s1", received=received)

    def lose(self, peer) -> None:
        self.core.end_session(peer, "cut", self.now, expected=False)

    def pass_time(self, seconds) -> None:
        self.now += seconds
        if self.core.next_deadline() <= self.now:
            self.core.tick(self.now)

    @property
    def tasks(self):
        return list(self.state.tasks)


@pytest.fixture
def desk():
    return Desk()


def test_a_client_that_is_back_goes_on_as_the_same_peer(desk) -> None:
    peer = desk.join()
    desk.lose(peer)
    hello = desk.back()
    assert desk.greet(hello) == ({"returned": True, "received": 2}, [])
    assert desk.enter(hello) == peer
    assert desk.tasks == ["k"]
    assert not desk.state.away_clients


def test_what_a_client_wants_stays_for_its_grace_and_no_longer(desk) -> None:
    desk.lose(desk.join())
    desk.pass_time(19.9)
    assert desk.tasks == ["k"]
    desk.pass_time(0.2)
    assert desk.tasks == []
    check_empty(desk.state)
    assert desk.greet(desk.back()) == ({"returned": False, "received": 0}, [])


def test_a_grace_is_as_long_as_was_asked_for_up_to_an_hour(desk) -> None:
    hello = desk.hello(grace_s=10**6)
    desk.greet(hello)
    desk.lose(desk.enter(hello))
    desk.pass_time(3599)
    assert desk.state.clients
    desk.pass_time(1)
    assert not desk.state.clients


def test_a_client_without_grace_is_gone_at_once(desk) -> None:
    hello = desk.hello(grace_s=0)
    desk.greet(hello)
    peer = desk.enter(hello)
    desk.core.handle(peer, m.Blob(FUNCTION, 1, b"f"), 0.0)
    for _ in range(100):
        desk.core.handle(peer, m.Query(1, "nthreads", ()), 0.0)
    assert all(isinstance(message, m.Reply) for message in desk.settle()[peer])
    desk.lose(peer)
    check_empty(desk.state)


def test_a_link_that_still_seems_alive_is_over_once_its_client_calls_again(desk) -> None:
    peer = desk.join()
    hello = desk.back()
    assert desk.greet(hello) == ({"returned": True, "received": 2}, [peer])
    desk.core.handle(peer, m.Release(("k",)), desk.now)  # from the old link: its client will say it again
    assert desk.tasks == ["k"]
    assert desk.enter(hello) == peer
    desk.core.handle(peer, m.Release(("k",)), desk.now)
    assert desk.tasks == []


def test_of_two_calls_the_last_one_counts(desk) -> None:
    peer = desk.join()
    desk.lose(peer)
    first, second = desk.back(), desk.back()
    desk.greet(first)
    desk.greet(second)
    assert desk.enter(second) == peer
    assert desk.enter(first) is None
    assert desk.tasks == ["k"]


def test_a_session_that_begins_before_the_next_call_is_taken_over(desk) -> None:
    peer = desk.join()
    desk.lose(peer)
    for _ in range(2):
        hello = desk.back()
        desk.greet(hello)
        assert desk.enter(hello) == peer


def test_the_time_can_be_up_between_the_answer_and_the_session(desk) -> None:
    desk.lose(desk.join())
    hello = desk.back()
    assert desk.greet(hello)[0]["returned"]
    desk.pass_time(100)
    assert desk.enter(hello) is None
    check_empty(desk.state)


def test_two_first_calls_of_one_client(desk) -> None:
    first, second = desk.hello(), desk.hello()
    desk.greet(first)
    desk.greet(second)
    peer = desk.enter(first)
    assert peer is not None
    assert desk.enter(second) is None  # its client hears that, and calls back
    assert desk.greet(desk.back())[0] == {"returned": True, "received": 0}


def test_a_client_that_begins_anew_leaves_nothing_behind(desk) -> None:
    peer = desk.join()
    hello = desk.hello()
    assert desk.greet(hello) == ({"returned": False, "received": 0}, [peer])
    assert desk.tasks == []
    assert desk.enter(hello) != peer


@pytest.mark.parametrize("details", [{"previous": "other"}, {"scheduler": "s0"}, {"received": 7}])
def test_a_client_that_does_not_fit_begins_anew(desk, details) -> None:
    desk.lose(desk.join())
    hello = desk.hello(**{"previous": "me", "scheduler": "s1", "received": 0, **details})
    assert desk.greet(hello)[0] == {"returned": False, "received": 0}


@pytest.mark.parametrize("details", [{"received": -1}, {"received": "1"}, {"received": True}, {"received": 2**63}])
def test_odd_numbers_are_refused(desk, details) -> None:
    with pytest.raises(ProtocolError):
        desk.greet(desk.hello(**details))


@pytest.mark.parametrize("grace_s", [-1, "1", True, float("inf"), float("nan")])
def test_odd_graces_are_refused(desk, grace_s) -> None:
    with pytest.raises(ProtocolError):
        desk.enter(desk.hello(grace_s=grace_s))


def test_what_was_not_confirmed_is_sent_again_and_values_are_left_out(desk) -> None:
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
    assert [(message.key, message.value) for message in messages] == [
        ("r3", None),
        ("r4", None),
        ("away", None),
        ("late", b"v"),
    ]


def test_more_than_was_sent_cannot_have_been_received(desk) -> None:
    peer = desk.join()
    with pytest.raises(ProtocolError):
        desk.core.handle(peer, m.Received(1), desk.now)


def test_a_client_that_confirms_nothing_is_kept_nothing_for(desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_dask.scheduler.core.clients.MAX_UNCONFIRMED", 10)
    peer = desk.join()
    for _ in range(11):
        desk.state.send(peer, m.KeyPending("k"))
    desk.settle()
    assert not desk.state.clients[peer].unconfirmed
    desk.lose(peer)
    check_empty(desk.state)
