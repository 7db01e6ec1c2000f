"""Hosted actors alone, with their threads: in which order calls are made, and what becomes of those that are not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
import trio

from tests.worker.kit import NoSlots
from trio_dask.ids import RunId
from trio_dask.protocol.messages import Run
from trio_dask.protocol.pickling import dump_value, load_value
from trio_dask.worker.hosted_actors import Answer, HostedActor
from trio_dask.worker.task_context import TaskContext, WorkerHandle

PATIENCE_S = 10


class Subject:
    """`gate` belongs to the test: it is not pickled."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.gate = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {"made": self.made}

    def plain(self, number: int) -> list[int]:
        self.made.append(number)
        return list(self.made)

    def blocked(self, number: int) -> list[int]:
        assert self.gate.wait(PATIENCE_S)
        return self.plain(number)

    async def wait_for_ever(self) -> None:
        await trio.sleep_forever()

    async def wait_in_a_nursery(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()


class Stage:
    """One actor, and the answers to its calls in the order in which they came."""

    def __init__(self, **options: Any) -> None:
        self.subject = Subject()
        self.answers: SimpleQueue[tuple[str, Answer]] = SimpleQueue()
        self.offers: SimpleQueue[Any] = SimpleQueue()
        run = Run(RunId(1), "actor", b"", b"\x80", (), 0, {})
        context = TaskContext(run, WorkerHandle(name="w", nthreads=1), NoSlots(), 0)
        self.actor = HostedActor(context, self.subject, **options)

    def call(self, name: str, *args: Any, label: str = "") -> None:
        self.actor.call(name, dump_value((args, {})), lambda answer: self.answers.put((label or name, answer)))

    def answer(self) -> tuple[str, str, Any]:
        """Of which call the next answer is, its outcome, and its value."""
        label, (outcome, _, frames) = self.answers.get(timeout=PATIENCE_S)
        return label, outcome, load_value(frames) if outcome == "value" else None

    def rest(self) -> Any:
        """Have the actor rest; the pickled object."""
        self.actor.rest(self.offers.put)
        return self.offers.get(timeout=PATIENCE_S)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.subject.gate.set()
    stage.actor.close()


def test_after_its_last_call_an_actor_takes_no_more(stage: Stage) -> None:
    stage.call("blocked", 1)
    stage.call("plain", 2)
    stage.actor.close()
    stage.call("plain", 3, label="late")
    assert stage.answer() == ("late", "gone", None)
    stage.subject.gate.set()
    assert [stage.answer(), stage.answer()] == [("blocked", "value", [1]), ("plain", "value", [1, 2])]


def test_async_methods_that_wait_are_gone_with_their_actor_whatever_nurseries_they_have(stage: Stage) -> None:
    stage.call("wait_for_ever")
    stage.call("wait_in_a_nursery")
    stage.call("plain", 1)
    assert stage.answer() == ("plain", "value", [1])  # the others have begun
    stage.actor.close()
    assert sorted([stage.answer(), stage.answer()]) == [
        ("wait_for_ever", "gone", None),
        ("wait_in_a_nursery", "gone", None),
    ]


def test_calls_that_come_while_an_actor_rests_are_made_once_it_stays(stage: Stage) -> None:
    stage.call("plain", 1)
    assert stage.answer() == ("plain", "value", [1])
    assert load_value(stage.rest()).made == [1]
    stage.call("plain", 2)
    assert stage.answers.empty()
    stage.actor.stay()
    assert stage.answer() == ("plain", "value", [1, 2])


def test_calls_that_come_while_an_actor_rests_are_made_elsewhere_once_it_has_left(stage: Stage) -> None:
    stage.rest()
    stage.call("plain", 1)
    assert stage.answers.empty()
    assert stage.actor.leave()
    stage.call("plain", 2, label="late")
    assert [stage.answer(), stage.answer()] == [("plain", "elsewhere", None), ("late", "elsewhere", None)]
    assert stage.subject.made == []


def test_an_actor_that_is_closed_while_it_rests_makes_the_calls_that_came(stage: Stage) -> None:
    stage.rest()
    stage.call("plain", 1)
    stage.actor.close()
    assert stage.answer() == ("plain", "value", [1])
    assert not stage.actor.leave()


@pytest.mark.parametrize("end", [HostedActor.close, HostedActor.stay])
def test_an_actor_that_does_not_rest_cannot_leave(stage: Stage, end: Callable[[HostedActor], None]) -> None:
    assert not stage.actor.leave()
    stage.rest()
    end(stage.actor)
    assert not stage.actor.leave()


def test_one_from_elsewhere_rests_until_it_is_settled() -> None:
    made: SimpleQueue[str] = SimpleQueue()
    origin = Subject()
    origin.made.append(7)
    stage = Stage(state=dump_value(origin), made=made.put)
    assert made.get(timeout=PATIENCE_S) == ""
    stage.call("plain", 8)
    assert stage.answers.empty()
    stage.actor.stay()
    assert stage.answer() == ("plain", "value", [7, 8])
    stage.actor.close()


def test_one_that_cannot_be_made_anew_says_why_and_lives_elsewhere() -> None:
    made: SimpleQueue[str] = SimpleQueue()
    stage = Stage(state=[b"no pickle"], made=made.put)
    assert "UnpicklingError" in made.get(timeout=PATIENCE_S)
    stage.call("plain", 1)
    assert stage.answer() == ("plain", "elsewhere", None)
