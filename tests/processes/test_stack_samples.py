"""Samples of call stacks are kept by time and name, within bounds."""

from __future__ import annotations

from types import CodeType

import pytest

from trio_dask.processes import stack_samples
from trio_dask.processes.stack_samples import Rows, Samples


def code(name: str) -> CodeType:
    return names.__code__.replace(co_name=name)


def names(rows: Rows) -> list[tuple[int, str]]:
    return [(caller, name) for caller, name, *_ in rows[0]]


def test_samples_of_a_time_are_those_of_its_cycles() -> None:
    samples = Samples(0)
    samples.add("f", [code("b"), code("a")])
    samples.end_cycle(1)
    samples.add("g", [code("c"), code("a")])
    samples.add("g", [code("c"), code("a")])
    samples.end_cycle(2)
    samples.end_cycle(50)
    samples.add("h", [])
    samples.end_cycle(51)
    assert samples.between(0, 0.5, None)[1] == {2: 1}
    assert names(samples.between(1.5, 2, None)) == [(0, "a"), (1, "c")]
    assert samples.between(1.5, 2, None)[1] == {2: 2}
    assert samples.between(3, 40, None) == ([], {})
    assert names(samples.between(50.5, 60, None)) == [(0, "h")]
    assert names(samples.between(0, 60, "f")) == [(0, "a"), (1, "b")]


def test_samples_have_bounds_whatever_tasks_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_samples, "MOST_CALLS", 3)
    monkeypatch.setattr(stack_samples, "MOST_FRAMES", 2)
    monkeypatch.setattr(stack_samples, "KEPT_COUNTS", 2)
    samples = Samples(0)
    samples.add("f", [code("c"), code("b"), code("a")])
    assert names(samples.between(0, 9, None)) == []
    samples.end_cycle(1)
    assert names(samples.between(0, 9, None)) == [(0, "a"), (1, "b")]
    samples.add("f", [code("x"), code("b")])
    samples.end_cycle(2)
    assert names(samples.between(1.5, 9, None)) == [(0, "b")]
    for number in range(5):
        samples.add(f"f{number}", [code("a")])
        samples.end_cycle(3 + number)
    assert sum(samples.between(0, 99, None)[1].values()) == 2
