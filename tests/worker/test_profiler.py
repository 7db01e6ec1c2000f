"""The profiler counts in which functions tasks are, and costs nothing while there are none."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

import pytest
import trio

from tests.worker import test_executor
from tests.worker.test_executor import OpenSlots
from trio_dask.worker import profiler
from trio_dask.worker.profiler import Profiler, Samples

LIMIT_S = 20

open_slots = test_executor.open_slots


entered, go_on = threading.Event(), threading.Event()


def outer() -> None:
    inner()


def inner() -> None:
    entered.set()
    go_on.wait(LIMIT_S)


def code(name: str) -> CodeType:
    return outer.__code__.replace(co_name=name)


def names(rows: profiler.Rows) -> list[tuple[int, str]]:
    return [(caller, name) for caller, name, *_ in rows[0]]


async def test_a_sample_has_the_functions_of_each_running_task_and_nothing_of_idle_slots(
    open_slots: OpenSlots,
) -> None:
    async with open_slots(3) as slots:
        sampler = Profiler(slots.executor.threads, lambda: True, interval_s=1, cycle_s=1)
        assert sampler.sample() == 0
        slots.offer(1, outer)
        slots.wake()
        try:
            assert entered.wait(LIMIT_S)
            assert sampler.sample() == 1
        finally:
            go_on.set()
        await slots.value()
    rows, counts = sampler.between(0, 1e12, "k1")
    assert [row[1] for row in rows[:2]] == ["outer", "inner"]
    assert [row[0] for row in rows[:2]] == [0, 1]
    assert rows[0][2:] == (__file__, outer.__code__.co_firstlineno, "def outer() -> None:")
    assert list(counts.values()) == [1]
    assert sampler.between(0, 1e12, "other") == ([], {})


async def test_a_slot_that_waits_for_a_task_in_the_event_loop_is_not_in_a_function(
    open_slots: OpenSlots,
) -> None:
    began, end = trio.Event(), trio.Event()

    async def wait() -> None:
        began.set()
        await end.wait()

    async with open_slots() as slots:
        sampler = Profiler(slots.executor.threads, lambda: True, interval_s=1, cycle_s=1)
        slots.offer(1, wait)
        slots.wake()
        await began.wait()
        assert sampler.sample() == 0
        end.set()
        await slots.value()


async def test_a_task_leaves_the_threads_of_the_executor_as_they_end(open_slots: OpenSlots) -> None:
    async with open_slots(2) as slots:
        assert len(slots.executor.threads) == 2
    assert not slots.executor.threads


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
    monkeypatch.setattr(profiler, "MOST_CALLS", 3)
    monkeypatch.setattr(profiler, "MOST_FRAMES", 2)
    monkeypatch.setattr(profiler, "KEPT_COUNTS", 2)
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


def test_the_profiler_sleeps_while_there_is_no_task_and_a_task_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "IDLE_SAMPLES", 1)
    sampled, asleep = threading.Semaphore(0), threading.Semaphore(0)
    had_been_woken: list[bool] = []

    class Wanted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            had_been_woken.append(self.is_set())
            asleep.release()
            return super().wait(timeout)

    def frames() -> Mapping[int, FrameType]:
        sampled.release()
        return {}

    sampler: Any = Profiler((), lambda: False, interval_s=0.0001, cycle_s=1, frames=frames)
    sampler._wanted = Wanted()
    before = set(threading.enumerate())
    sampler.start()
    (thread,) = set(threading.enumerate()) - before
    for _ in range(3):
        assert asleep.acquire(timeout=LIMIT_S)
        assert not sampled.acquire(blocking=False)
        sampler.wake()
        assert sampled.acquire(timeout=LIMIT_S)
    assert asleep.acquire(timeout=LIMIT_S)
    assert had_been_woken == [False] * 4
    sampler.close()
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_the_profiler_goes_on_while_tasks_run_that_it_does_not_see() -> None:
    """An `async def` task runs in the event loop."""
    sampled = threading.Semaphore(0)

    def frames() -> Mapping[int, FrameType]:
        sampled.release()
        return {}

    sampler = Profiler((), lambda: True, interval_s=0.00001, cycle_s=1, frames=frames)
    before = set(threading.enumerate())
    sampler.start()
    (thread,) = set(threading.enumerate()) - before
    for _ in range(2 * profiler.IDLE_SAMPLES):
        assert sampled.acquire(timeout=LIMIT_S)
    sampler.close()
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_after_a_sample_the_profiler_rests_130_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def thread_time(self) -> float:
            self.now += 0.5  # each sample takes that long
            return self.now

        def time(self) -> float:
            return self.now

    rests: list[float] = []

    class Lock:
        def acquire(self, timeout: float = -1) -> bool:
            rests.append(timeout)
            return len(rests) > 3

    monkeypatch.setattr(profiler, "time", Clock())
    sampler: Any = Profiler((), lambda: True, interval_s=0.01, cycle_s=1, frames=dict)
    sampler._running = Lock()
    sampler._run()
    assert rests == [0.01, *[pytest.approx(0.5 / 0.0075)] * 3]
