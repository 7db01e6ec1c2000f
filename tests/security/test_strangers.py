"""Which strangers are heard and which have to go: the rules, against a model that is slow and obvious."""

import math
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.security.strangers import TURN_S, Strangers, Turn

LIMIT_S = 10.0
WAITING, HEARD = 5, 3


class Known:
    """What the model knows of one stranger."""

    def __init__(self, address: str, now: float) -> None:
        self.address = address
        self.came = self.step = now
        self.phase = "silent"  # then "spoken", "heard" and "gone"
        self.spoke = 0
        self.is_unread = False


class Model:
    """Strangers, and all that were ever there, in the order in which they came. A number stands for each."""

    def __init__(self) -> None:
        self.strangers: Strangers[int] = Strangers(WAITING, HEARD, LIMIT_S)
        self.all: list[Known] = []
        self.now = 100.0
        self.words = 0

    def those(self, *phases: str, address: str | None = None) -> list[Known]:
        return [known for known in self.all if known.phase in phases and (address is None or known.address == address)]

    def crowded(self, *phases: str) -> set[str]:
        """The addresses with the most strangers in these phases."""
        counts = Counter(known.address for known in self.those(*phases))
        return {address for address, number in counts.items() if number == max(counts.values())}

    def is_unread(self, number: int) -> bool:
        known = self.all[number]
        if known.is_unread:
            known.step = self.now
        return known.is_unread

    def loses_its_place(self, number: int) -> None:
        """A stranger that was heard gives way: it may."""
        gone = self.all[number]
        assert (gone.phase, gone.is_unread) == ("heard", False)
        assert gone.address in self.crowded("heard")
        assert gone.step == min(known.step for known in self.those("heard", address=gone.address))
        assert gone.step <= self.now - TURN_S
        gone.phase = "gone"

    def stops_waiting(self, number: int) -> None:
        """A stranger that waited gives way: it is the right one."""
        gone = self.all[number]
        assert gone.address in self.crowded("silent", "spoken")
        silent = self.those("silent", address=gone.address)
        spoken = self.those("spoken", address=gone.address)
        assert gone is (silent[0] if silent else min(spoken, key=lambda known: known.spoke))
        gone.phase = "gone"

    # --------------------------------------------------------------------------------------------------------- events

    def arrive(self, address: str) -> None:
        is_full = len(self.those("silent", "spoken")) == WAITING
        gone = self.strangers.arrive(len(self.all), address, self.now)
        assert (gone is not None) == is_full
        if gone is not None:
            self.stops_waiting(gone)
        self.all.append(Known(address, self.now))

    def speak(self, number: int) -> None:
        known = self.all[number]
        if known.phase == "silent":
            self.strangers.speak(number)
            self.words += 1
            known.phase, known.spoke = "spoken", self.words

    def step(self, number: int) -> None:
        self.strangers.step(number, self.now)
        self.all[number].step = self.now

    def write(self, number: int) -> None:
        self.all[number].is_unread = not self.all[number].is_unread

    def leave(self, number: int) -> None:
        self.strangers.leave(number)
        self.all[number].phase = "gone"

    def hear(self) -> Turn[int] | None:
        has_place = len(self.those("heard")) < HEARD
        turn = self.strangers.hear(self.now, self.is_unread)
        if turn is None:
            assert not (self.those("spoken") and has_place)
            return None
        assert (turn.gives_way is None) == has_place
        if turn.gives_way is not None:
            self.loses_its_place(turn.gives_way)
        known = self.all[turn.stranger]
        assert known.spoke == max(other.spoke for other in self.those("spoken", address=known.address))
        assert turn.since == known.came
        known.phase, known.step = "heard", self.now
        return turn

    def make_room(self) -> None:
        anybody_waits = bool(self.those("silent", "spoken"))
        gone = self.strangers.make_room(self.now, self.is_unread)
        if anybody_waits:
            assert gone is not None
            self.stops_waiting(gone)
        elif gone is not None:
            self.loses_its_place(gone)

    def wait(self, time_s: float) -> None:
        self.now += time_s
        waiting = self.those("silent", "spoken")
        due = self.strangers.due(self.now)
        assert [self.all[number] for number in due] == [known for known in waiting if self.now >= known.came + LIMIT_S]
        for number in due:
            self.all[number].phase = "gone"
        assert self.strangers.next_deadline() > self.now or self.those("spoken")

    def end(self) -> None:
        assert [self.all[number] for number in self.strangers.waiting()] == self.those("silent", "spoken")
        assert len(self.those("heard")) <= HEARD


NUMBER = st.integers(0, 12)
EVENTS = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from("aaabc")),
    st.tuples(st.sampled_from(["speak", "speak", "step", "leave", "write"]), NUMBER),
    st.sampled_from([("hear", None), ("hear", None), ("make_room", None)]),
    st.tuples(st.just("wait"), st.sampled_from([0.1, TURN_S, 3.0])),
)


@given(st.lists(EVENTS, max_size=80))
def test_the_rules_hold_whatever_strangers_do(events: list[tuple[str, str | float | None]]) -> None:
    model = Model()
    for event, about in events:
        match about:
            case None:
                getattr(model, event)()
            case int():
                if model.all:  # one of the last ones, which may be gone
                    getattr(model, event)(max(0, len(model.all) - 1 - about))
            case _:
                getattr(model, event)(about)
        model.end()


def crowd(most_waiting: int = 100, most_heard: int = 10) -> Strangers[int]:
    return Strangers(most_waiting, most_heard, LIMIT_S)


def come(strangers: Strangers[int], numbers: range, address: str, now: float, *, speak: bool = True) -> list[int]:
    """They connect, and speak; those that had to give way."""
    gone = []
    for number in numbers:
        if (way := strangers.arrive(number, address, now)) is not None:
            gone.append(way)
        if speak:
            strangers.speak(number)
    return gone


def heard(strangers: Strangers[int], now: float) -> list[Turn[int]]:
    """All whose turn it is now."""
    turns = []
    while (turn := strangers.hear(now, lambda _: False)) is not None:
        turns.append(turn)
    return turns


def test_one_address_cannot_take_the_places_of_another() -> None:
    strangers = crowd()
    assert come(strangers, range(3), "friend", 0.0, speak=False) == []
    assert come(strangers, range(1000, 2000), "crowd", 0.0) == [*range(1000, 1903)]
    assert {*range(3)} <= {*strangers.waiting()}


def test_a_friend_from_elsewhere_is_heard_as_soon_as_a_place_is_free() -> None:
    strangers = crowd()
    come(strangers, range(50), "crowd", 0.0)
    assert len(heard(strangers, 0.0)) == 10
    come(strangers, range(1000, 1001), "friend", 0.1)
    come(strangers, range(100, 150), "crowd", 0.1)
    assert heard(strangers, 0.1) == []
    assert strangers.next_deadline() == TURN_S
    assert 1000 in [turn.stranger for turn in heard(strangers, TURN_S)[:2]]


def test_a_friend_at_the_address_of_a_crowd_is_heard_next_if_it_comes_last() -> None:
    strangers = crowd()
    come(strangers, range(50), "crowd", 0.0)
    heard(strangers, 0.0)
    come(strangers, range(1000, 1001), "crowd", 0.1)
    assert heard(strangers, TURN_S)[0].stranger == 1000


def test_a_burst_of_friends_is_heard_whole_while_they_make_steps() -> None:
    """As when a thousand workers of one host start together; each answer of theirs takes longer than a turn."""
    strangers = crowd(most_waiting=4096, most_heard=512)
    assert come(strangers, range(1000), "host", 0.0) == []
    welcome = set()
    for turn in range(1, 30):
        now = turn * 0.9 * TURN_S
        turns = heard(strangers, now)
        assert [each.gives_way for each in turns] == [None] * len(turns)
        for each in turns:
            welcome.add(each.stranger)
        for number in sorted(welcome)[: 100 * turn]:
            strangers.leave(number)
        for number in welcome:
            strangers.step(number, now)
    assert welcome == {*range(1000)}


def test_a_stranger_that_waits_for_us_keeps_its_place() -> None:
    strangers = crowd(most_heard=1)
    come(strangers, range(2), "host", 0.0)
    assert strangers.hear(0.0, lambda _: False) is not None
    assert strangers.hear(TURN_S, lambda _: True) is None
    assert strangers.hear(1.9 * TURN_S, lambda _: False) is None
    assert strangers.hear(2 * TURN_S, lambda _: False) == Turn(0, 0.0, gives_way=1)


def test_nobody_waits_for_longer_than_the_limit() -> None:
    strangers = crowd()
    assert strangers.next_deadline() == math.inf
    come(strangers, range(2), "a", 0.0, speak=False)
    come(strangers, range(2, 3), "b", 1.0, speak=False)
    assert strangers.next_deadline() == LIMIT_S
    assert strangers.due(LIMIT_S - 0.1) == []
    assert strangers.due(LIMIT_S) == [0, 1]
    assert strangers.next_deadline() == LIMIT_S + 1


@pytest.mark.parametrize("addresses", [1, 10_000])
def test_a_stranger_costs_little_however_many_there_are(addresses: int) -> None:
    strangers = crowd(most_waiting=4096, most_heard=512)
    started = time.process_time()
    for number in range(30_000):
        strangers.arrive(number, str(number % addresses), number * 1e-5)
        if number % 2:
            strangers.speak(number)
            strangers.hear(number * 1e-5, lambda _: False)
    assert time.process_time() - started < 3
