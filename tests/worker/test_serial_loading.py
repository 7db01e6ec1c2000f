"""Loads that may import modules do not overlap, and none waits for ever."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict

import pytest

from trio_dask.worker import serial_loading
from trio_dask.worker.serial_loading import load_alone, may_import

PATIENCE_S = 10


def in_threads(*functions: object) -> None:
    threads = [threading.Thread(target=function, daemon=True) for function in functions]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_load_waits_until_the_one_before_it_has_ended() -> None:
    begun, go, steps = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        begun.set()
        go.wait(PATIENCE_S)
        steps.append("first has ended")

    def second() -> None:
        begun.wait(PATIENCE_S)
        threading.Timer(0.02, go.set).start()
        load_alone(steps.append, "second has begun")

    in_threads(lambda: load_alone(first), second)
    assert steps == ["first has ended", "second has begun"]


def test_a_load_may_load_something_itself() -> None:
    assert load_alone(lambda: load_alone(lambda number: number, 3)) == 3


def test_a_load_that_fails_lets_others_go_on() -> None:
    def fail() -> None:
        with pytest.raises(ZeroDivisionError):
            load_alone(lambda: 1 // 0)

    in_threads(fail, fail)


def test_a_load_that_waits_for_another_one_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_loading, "LONGEST_WAIT_S", 0.02)
    begun, other = threading.Event(), threading.Event()

    def waits() -> None:
        begun.set()
        assert other.wait(PATIENCE_S)

    def comes_later() -> None:
        begun.wait(PATIENCE_S)
        load_alone(other.set)

    in_threads(lambda: load_alone(waits), comes_later)


def test_what_names_nothing_need_not_wait() -> None:
    assert not may_import(pickle.dumps([1, 2.5, "text", None, {"a": (1,)}], 5))
    assert may_import(bytearray(pickle.dumps(OrderedDict(a=1), 5)))
    assert may_import(memoryview(pickle.dumps([bytes(100), OrderedDict], 5)))
