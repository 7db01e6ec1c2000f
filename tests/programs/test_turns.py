"""Tasks that run beside each other in the threads of one worker, and change what they share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trio_dask import Client

pytestmark = pytest.mark.slow

SCRIPT = """
import enum, threading, time
from trio_dask import get_client, get_worker

class Count:
    made = 0
    seen = []
    def bump(self, x): type(self).made += x
    @classmethod
    def all(cls, x): cls.made += x
class Plain:
    made = 0
    seen = []
class Scale:
    names = ["a", "b"]
    def scaled(self, x):
        self.x = x
        meet()
        return self.x, list(self.names), Scale.names[0]
class Level(enum.Enum):
    LOW = [1]
class Point:
    def __reduce__(self): return "ORIGIN"
ORIGIN = Point()
ORIGIN.marks = 0
PLACES = {"first": Count}

def bound(x): Count.made += x; return Count.made
def appended(x): Count.seen.append(x); return sum(Count.seen)
def by_method(x): Count().bump(x); return Count.made
def by_class_method(x): Count.all(x); return Count.made
def by_name(x): setattr(Count, "made", Count.made + x); return Count.made
def in_table(x): PLACES["first"].made += x; return Count.made
def of_member(x): Level.LOW.value.append(x); return sum(Level.LOW.value) - 1
def of_sentinel(x): ORIGIN.marks += x; return ORIGIN.marks

def twice(function, x):
    function(x)
    time.sleep(0.005)
    return function(x)

def given(cls, x):
    cls.made += x
    time.sleep(0.005)
    cls.made += x
    return cls.made

def read(x):
    before = Plain.made, len(Plain.seen)
    time.sleep(0.005)
    return before, (Plain.made, len(Plain.seen))

def change(x):
    Plain.made += x
    Plain.seen.append(x)
    return Plain.made

def meet():
    get_worker().state.setdefault("barrier", threading.Barrier(4)).wait(20)

def inner(x):
    Count.made += 100 * x
    Count.seen.append(x)
    return Count.made

def outer(x):
    Count.made += x
    Count.seen.append(x)
    found = get_client().submit(inner, x, pure=False).result()
    return Count.made, list(Count.seen), found

def slow(seconds):
    Count.made += 1
    get_worker().state["began"] = True
    time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=4) as client:
        yield client


@pytest.fixture
def script() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(SCRIPT, names)
    return names


CHANGES = ["bound", "appended", "by_method", "by_class_method", "by_name", "in_table", "of_member", "of_sentinel"]


@pytest.mark.parametrize("name", CHANGES)
def test_each_sees_its_own_changes_of_a_class_and_no_others(name: str, client: Client, script: dict[str, Any]) -> None:
    futures = [client.submit(script["twice"], script[name], x, pure=False) for x in range(1, 21)]
    assert client.gather(futures) == [2 * x for x in range(1, 21)]


def test_a_class_that_is_an_argument_is_its_own_for_each(client: Client, script: dict[str, Any]) -> None:
    futures = [client.submit(script["given"], script["Plain"], x, pure=False) for x in range(1, 21)]
    assert client.gather(futures) == [2 * x for x in range(1, 21)]


def test_tasks_that_only_read_see_nothing_of_those_that_change(client: Client, script: dict[str, Any]) -> None:
    changing, reading = [], []
    for x in range(1, 21):
        changing.append(client.submit(script["twice"], script["change"], x, pure=False))
        reading.append(client.submit(script["read"], x, pure=False))
    assert client.gather(reading) == [((0, 0), (0, 0))] * 20
    assert client.gather(changing) == [2 * x for x in range(1, 21)]


def test_a_task_that_waits_for_another_has_its_changes_afterwards(client: Client, script: dict[str, Any]) -> None:
    futures = [client.submit(script["outer"], x, pure=False) for x in range(1, 11)]
    assert client.gather(futures) == [(x, [x], 101 * x) for x in range(1, 11)]


def test_methods_that_only_change_their_objects_run_side_by_side(client: Client, script: dict[str, Any]) -> None:
    futures = [client.submit(script["Scale"]().scaled, x, pure=False) for x in range(4)]
    assert client.gather(futures) == [(x, ["a", "b"], "a") for x in range(4)]


def test_tasks_without_definitions_go_on_beside_a_turn(client: Client, script: dict[str, Any]) -> None:
    turn = client.submit(script["slow"], 3, pure=False)
    client.gather([client.submit(abs, -x, pure=False) for x in range(50)])
    assert not turn.done()
    turn.result()
