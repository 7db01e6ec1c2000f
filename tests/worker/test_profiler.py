"""The profiler counts in which functions tasks are, in threads and in the event loop."""

from __future__ import annotations

import threading

import trio

from tests.worker import test_executor
from tests.worker.test_executor import OpenSlots, Slots
from trio_dask.worker.profiler import TaskProfiler

LIMIT_S = 20

open_slots = test_executor.open_slots


entered, go_on = threading.Event(), threading.Event()


def outer() -> None:
    inner()


def inner() -> None:
    entered.set()
    go_on.wait(LIMIT_S)


def profiler_of(slots: Slots) -> TaskProfiler:
    executor = slots.executor
    return TaskProfiler(executor.threads, executor.trio_tasks, lambda: True, interval_s=1, cycle_s=1)


def names(sampler: TaskProfiler, name: str) -> list[str]:
    return [function for _, function, *_ in sampler.between(0, 1e12, name)[0]]


async def test_a_sample_has_the_functions_of_each_running_task_and_nothing_of_idle_slots(
    open_slots: OpenSlots,
) -> None:
    async with open_slots(3) as slots:
        sampler = profiler_of(slots)
        assert sampler.sample() == 1  # the loop, in this test
        slots.offer(1, outer)
        slots.wake()
        try:
            assert entered.wait(LIMIT_S)
            assert sampler.sample() == 2
        finally:
            go_on.set()
        await slots.value()
    rows, counts = sampler.between(0, 1e12, "k1")
    assert [row[1] for row in rows[:2]] == ["outer", "inner"]
    assert [row[0] for row in rows[:2]] == [0, 1]
    assert rows[0][2:] == (__file__, outer.__code__.co_firstlineno, "def outer() -> None:")
    assert list(counts.values()) == [1]
    assert sampler.between(0, 1e12, "other") == ([], {})


async def test_an_async_task_is_sampled_where_it_waits(open_slots: OpenSlots) -> None:
    began, end = trio.Event(), trio.Event()

    async def work() -> None:
        await wait()

    async def wait() -> None:
        began.set()
        await end.wait()

    async with open_slots(2) as slots:
        sampler = profiler_of(slots)
        slots.offer(1, work)
        slots.wake()
        await began.wait()
        assert sampler.sample() == 2  # the task, and the loop in this test
        end.set()
        await slots.value()
    assert names(sampler, "k1")[:3] == ["work", "wait", "wait"]


async def test_an_async_task_is_sampled_where_it_runs_also_in_tasks_that_it_has_started(open_slots: OpenSlots) -> None:
    samplers: list[TaskProfiler] = []

    async def work() -> None:
        compute("k1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await end.wait()

    async def child() -> None:
        await trio.lowlevel.checkpoint()
        compute("k1")
        end.set()

    def compute(key: str) -> None:
        assert samplers[-1].sample() == 2
        found.append(names(samplers[-1], key))
        samplers.append(profiler_of(slots))

    end = trio.Event()
    found: list[list[str]] = []
    async with open_slots() as slots:
        samplers.append(profiler_of(slots))
        slots.offer(1, work)
        slots.wake()
        await slots.value()
    assert [path[:2] for path in found] == [["work", "compute"], ["child", "compute"]]


async def test_a_task_leaves_the_threads_of_the_executor_as_they_end(open_slots: OpenSlots) -> None:
    async with open_slots(2) as slots:
        assert len(slots.executor.threads) == 2
    assert not slots.executor.threads
