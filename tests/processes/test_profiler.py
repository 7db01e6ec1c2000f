"""The profiler sees the event loop and its threads at work, and costs nothing while they wait."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytest
import trio

from trio_dask.processes import profiler
from trio_dask.processes.profiler import Profiler

LIMIT_S = 20


def seen(sampler: Profiler) -> list[str]:
    return [name for _, name, *_ in sampler.loop_between(0, 1e12)[0]]


async def work(sampler: Profiler) -> int:  # noqa: ASYNC124 - it is a task
    return sampler.sample()


async def test_a_sample_has_what_the_loop_runs_from_its_task_on() -> None:
    sampler = Profiler(interval_s=1, cycle_s=1)
    assert await work(sampler) == 1
    calls, counts = sampler.loop_between(0, 1e12)
    names = [name for _, name, *_ in calls]
    assert names[0] == "unrolled_run"
    assert names[-3:] == [
        "test_a_sample_has_what_the_loop_runs_from_its_task_on",
        "work",
        "sample",
    ]
    assert list(counts.values()) == [1]
    assert sampler.loop_between(0, 1) == ([], {})


async def test_a_sample_has_what_a_thread_of_trio_runs_and_nothing_of_a_loop_that_waits() -> None:
    sampler = Profiler(interval_s=1, cycle_s=1)

    def outer() -> None:
        inner()

    def inner() -> None:
        trio.from_thread.run(trio.sleep, 0)
        while _is_busy(sampler):
            pass

    await trio.to_thread.run_sync(outer)
    names = seen(sampler)
    assert names[names.index("outer") :][:2] == ["outer", "inner"]


def _is_busy(sampler: Profiler) -> bool:
    """The loop may still be about to wait."""
    return sampler.sample() > 1


async def test_a_loop_that_goes_round_wakes_the_profiler_until_the_block_ends() -> None:
    wakings: list[int] = []

    class Watched(Profiler):
        def wake(self) -> None:
            super().wake()
            wakings.append(1)

    before = set(threading.enumerate())
    with Watched(interval_s=10, cycle_s=1).running():
        (thread,) = set(threading.enumerate()) - before
        await trio.to_thread.run_sync(int)
        assert wakings
    await trio.to_thread.run_sync(thread.join, LIMIT_S)
    assert not thread.is_alive()
    wakings.clear()
    await trio.to_thread.run_sync(int)
    assert not wakings


def test_the_profiler_sleeps_while_nothing_runs_and_can_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
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

    sampler: Any = Profiler(interval_s=0.0001, cycle_s=1, frames=frames)
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
    """A task may wait for its turn."""
    sampled = threading.Semaphore(0)

    def frames() -> Mapping[int, FrameType]:
        sampled.release()
        return {}

    sampler = Profiler(is_busy=lambda: True, interval_s=0.00001, cycle_s=1, frames=frames)
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
    sampler: Any = Profiler(is_busy=lambda: True, interval_s=0.01, cycle_s=1, frames=dict)
    sampler._running = Lock()
    sampler._run()
    assert rests == [0.01, *[pytest.approx(0.5 / 0.0075)] * 3]
