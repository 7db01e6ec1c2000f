"""The store between threads: thawed once, gone when dropped."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from trio_dask.protocol.pickling import dump_value
from trio_dask.worker.store import Store

PATIENCE_S = 10


class Slow:
    """Stops while it is unpickled, until the test lets it go on."""

    begun = threading.Semaphore(0)
    go_on = threading.Event()

    def __init__(self) -> None:
        self.there = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.begun.release()
        assert self.go_on.wait(PATIENCE_S)
        self.__dict__.update(state)


@pytest.fixture
def store() -> Any:
    Slow.begun = threading.Semaphore(0)
    Slow.go_on = threading.Event()
    store = Store()
    store.put_frames("x", dump_value(Slow()))
    yield store
    Slow.go_on.set()


def read(store: Store, into: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.append(store["x"]))
    thread.start()
    return thread


def test_two_that_need_a_frozen_value_at_once_share_one_object(store: Store) -> None:
    values: list[Any] = []
    first = read(store, values)
    assert Slow.begun.acquire(timeout=PATIENCE_S)
    second = read(store, values)
    Slow.go_on.set()
    first.join(PATIENCE_S)
    second.join(PATIENCE_S)
    assert values[0] is values[1] is store["x"]
    assert not Slow.begun.acquire(blocking=False)  # nobody has unpickled it a second time


def test_a_value_dropped_while_it_is_thawed_reaches_its_reader_and_does_not_come_back(store: Store) -> None:
    values: list[Any] = []
    reader = read(store, values)
    assert Slow.begun.acquire(timeout=PATIENCE_S)
    store.drop(["x", "unknown"])
    Slow.go_on.set()
    reader.join(PATIENCE_S)
    assert values[0].there
    assert "x" not in store
    with pytest.raises(KeyError):
        store["x"]


def test_a_frozen_value_is_passed_on_as_it_came(store: Store) -> None:
    assert store.dump("x") == dump_value(Slow())
    assert not Slow.begun.acquire(blocking=False)


def test_none_is_a_value() -> None:
    store = Store()
    store.put_frames("x", dump_value(None))
    assert store["x"] is None
    store.put("y", None)
    assert store["y"] is None
    assert sorted(store) == ["x", "y"]
