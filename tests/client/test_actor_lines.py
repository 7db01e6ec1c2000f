"""Calls of actors, below the futures that stand for their answers."""

from __future__ import annotations

import threading
from typing import Any, cast

import trio

from trio_dask.client.actor_lines import ActorLines, BothWays, Search, UnansweredCall
from trio_dask.client.core.client import ClientCore
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.loop_calls import LoopCalls
from trio_dask.client.shared_state import SharedState
from trio_dask.ids import RunId
from trio_dask.protocol.messages import ActorAnswer, ActorMoved, KeyFailed


class Shared:
    def __init__(self) -> None:
        self.core = ClientCore()
        self.lock = threading.Lock()

    def check_open(self) -> None: ...


class Calls:
    """Counts the lines that are begun."""

    def __init__(self) -> None:
        self.lines = 0

    def start(self, *_: Any) -> None:
        self.lines += 1

    def run_soon(self, *_: Any) -> None: ...


async def open_nothing(address: str) -> BothWays:
    await trio.lowlevel.checkpoint()
    raise NotImplementedError


async def find_nothing(key: str) -> str:
    await trio.lowlevel.checkpoint()
    raise NotImplementedError


def test_a_call_of_an_actor_that_is_known_to_be_lost_fails_at_once() -> None:
    """Its worker may be silent: no answer would come, and no news of the scheduler either."""
    calls = Calls()
    lines = ActorLines(cast("SharedState", Shared()), cast("LoopCalls", calls), open_nothing, find_nothing)
    actor, call = KeyState("actor"), KeyState("actor.method")
    actor.status = "error"
    actor.failure = KeyFailed("actor", "actor", "actor", None, "its worker left", {})
    lines.call("tcp://silent:1", UnansweredCall(call, "actor", RunId(1), "method", [], None), actor)
    assert (call.status, calls.lines) == ("error", 0)
    assert isinstance(call.failure, KeyFailed)
    assert (call.failure.kind, call.failure.text) == ("actor", "its worker left")


def test_a_call_of_an_actor_that_is_there_is_sent() -> None:
    calls = Calls()
    lines = ActorLines(cast("SharedState", Shared()), cast("LoopCalls", calls), open_nothing, find_nothing)
    actor, call = KeyState("actor"), KeyState("actor.method")
    actor.status = "finished"
    lines.call("tcp://there:1", UnansweredCall(call, "actor", RunId(1), "method", [], None), actor)
    assert (call.status, calls.lines) == ("pending", 1)


class Lines(ActorLines):
    """Lines that carry nothing by themselves."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        """New lines, and searches for actors, in their order."""
        calls = cast("LoopCalls", self)
        super().__init__(cast("SharedState", Shared()), calls, open_nothing, find_nothing)

    def start(self, _: Any, subject: Any) -> None:
        self.started.append(subject)

    def run_soon(self, *_: Any) -> None: ...

    def send(self, number: int, address: str = "tcp://old:1") -> KeyState:
        state = KeyState(str(number))
        self.call(address, UnansweredCall(state, "actor", RunId(1), "method", [], None), None)
        return state

    def hear(self, line: Any, message: ActorAnswer | ActorMoved) -> None:
        """A message has come on this line."""
        assert not self._settle_all(line, [(message, [b"value"])])

    def find(self, search: Search, home: str) -> None:
        """The scheduler has answered."""
        self._found(search, home, search.why)


def test_calls_without_an_answer_go_after_an_actor_that_has_moved_and_no_call_overtakes_them() -> None:
    lines = Lines()
    states = [lines.send(number) for number in range(2)]
    (old,) = lines.started
    old.take()
    states.append(lines.send(2))
    lines.hear(old, ActorAnswer(1, "value", "", (5,)))
    lines.hear(old, ActorMoved("actor", RunId(1)))
    search = lines.started[-1]
    states += [lines.send(3), lines.send(4, "tcp://new:1")]
    assert lines.has_unanswered("actor", RunId(1)), "a call at the new place itself would overtake these"
    lines.find(search, "tcp://new:1")
    states.append(lines.send(5))
    new = lines.started[-1]
    assert [call.state for _, call in new.take()] == states[1:]
    for number in range(1, 6):
        assert lines.has_unanswered("actor", RunId(1))
        lines.hear(new, ActorAnswer(number, "value", "", (5,)))
    assert not lines.has_unanswered("actor", RunId(1))
    assert [state.status for state in states] == ["finished"] * 6


OLD = "tcp://old:1"


def asked(lines: Lines) -> tuple[KeyState, Search]:
    """A call whose actor is not where it was, and the search for that."""
    state = lines.send(0)
    (line,) = lines.started
    line.take()
    lines.hear(line, ActorMoved("actor", RunId(1)))
    return state, lines.started[-1]


def test_a_call_of_an_actor_that_lives_nowhere_fails() -> None:
    lines = Lines()
    state, search = asked(lines)
    lines.find(search, "")
    assert state.status == "error"
    assert not lines.has_unanswered("actor", RunId(1))


def test_a_call_goes_back_with_an_actor_that_has_come_back_meanwhile() -> None:
    lines = Lines()
    state, search = asked(lines)
    for _ in range(2):  # each time anew
        lines.find(search, OLD)
        line = lines.started[-1]
        line.take()
        lines.hear(line, ActorAnswer(1, "value", "", (5,)))
        assert state.status == "finished"
        state = lines.send(1)
        line.take()
        lines.hear(line, ActorMoved("actor", RunId(1)))
        search = lines.started[-1]


def test_a_call_fails_if_its_worker_says_again_that_it_has_another_actor() -> None:
    lines = Lines()
    state, search = asked(lines)
    lines.find(search, OLD)
    line = lines.started[-1]
    line.take()
    lines.hear(line, ActorMoved("actor", RunId(1)))
    lines.find(lines.started[-1], OLD)
    assert state.status == "error"
    assert not lines.has_unanswered("actor", RunId(1))
