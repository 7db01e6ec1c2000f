"""The policy of clusters that adapt, alone and in a simulated cluster in virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_dask.config import AdaptiveSettings
from trio_dask.deploy.adaptive_policy import NOTHING, AdaptivePolicy, Size, Step, Unit, Work

SIZE = Size(threads=2, memory_bytes=1000, resources={"GPU": 1.0})
START_S = 3.0


def policy(size: Size | None = SIZE, **options: Any) -> AdaptivePolicy:
    return AdaptivePolicy(AdaptiveSettings()._replace(**options), size)


def work(tasks: int, seconds: float, *, is_named: bool = False, **resources: float) -> Work:
    return Work(tasks, seconds, resources, is_named)


def unit(name: str, *, is_idle: bool = True, is_leaving: bool = False, held: int = 0) -> Unit:
    return Unit(name, is_idle, is_leaving, held, held > 0)


@pytest.mark.parametrize(
    ("rows", "needed"),
    [
        ([], 0),
        ([work(1, 0.001)], 1),
        ([work(1000, 50.0)], 5),  # ten threads finish that in 5 s
        ([work(4, 1000.0)], 2),  # four tasks cannot use more than four threads
        ([work(4, 20.0, GPU=1.0)], 4),  # a unit has one GPU, whatever threads it has
        ([work(4, 20.0, GPU=2.0)], 0),  # no unit offers so much
        ([work(4, 20.0, TPU=1.0)], 0),
        ([work(4, 20.0, is_named=True)], 0),
        ([work(2, 10.0), work(2, 10.0)], 2),
    ],
)
def test_as_many_units_as_finish_the_work_in_time_and_no_more_than_there_are_tasks(
    rows: list[Work], needed: int
) -> None:
    assert policy().needed(rows, []) == needed


def test_results_need_memory_and_the_limits_hold() -> None:
    held = [unit("a", held=1500), unit("b", held=1)]
    assert policy().needed([], held) == ceil(1501 / 600)
    assert policy(maximum=2).needed([work(1000, 1000.0)], held) == 2
    assert policy(minimum=7).needed([], []) == 7
    assert policy().needed([], [Unit("a", True, False, 0, True)]) == 1  # results without a size are results


def test_of_units_that_nobody_knows_one_is_started_to_see() -> None:
    unknown = policy(None)
    assert unknown.decide([work(100, 1000.0, GPU=1.0)], [], None, 0) == Step(1, ())
    assert unknown.decide([work(4, 1000.0, GPU=1.0)], [], SIZE, 1) == Step(3, ())


def test_a_unit_goes_when_it_was_superfluous_several_times_in_a_row() -> None:
    adapt = policy(wait_count=3)
    units = [unit("old", held=10), unit("busy", is_idle=False), unit("new"), unit("leaving", is_leaving=True)]
    row = [work(1, 1.0)]
    assert adapt.decide(row, units, SIZE, 3) == NOTHING
    assert adapt.decide(row, units, SIZE, 3) == NOTHING
    assert adapt.decide([work(6, 100.0)], units, SIZE, 3) == NOTHING  # all are needed: the count begins again
    for _ in range(2):
        assert adapt.decide(row, units, SIZE, 3) == NOTHING
    assert adapt.decide(row, units, SIZE, 3) == Step(0, ("new", "old"))
    assert adapt.decide(row, units, SIZE, 2) == Step(0, ("new",))  # one of two goes: that which holds less


def test_a_busy_unit_never_goes() -> None:
    adapt = policy(wait_count=1)
    busy = [unit(str(number), is_idle=False) for number in range(5)]
    for _ in range(10):
        assert adapt.decide([work(5, 0.5)], busy, SIZE, 5) == NOTHING


@dataclass
class Worker:
    ready_at: float
    running: list[float] = field(default_factory=list[float])
    """When each ends."""


class SimulatedCluster:
    """Units with two threads, which take a while to start, and tasks that come when they like; the clock is virtual."""

    def __init__(self, adapt: AdaptivePolicy, arrivals: list[tuple[float, float]], guess_s: float) -> None:
        self.adapt = adapt
        self.arrivals = sorted(arrivals, reverse=True)
        self.guess_s = guess_s
        self.queue: list[float] = []
        self.workers: dict[str, Worker] = {}
        self.now = 0.0
        self.started = 0
        self.steps: list[Step] = []
        self.done = 0
        self.peak = 0

    def tick(self) -> None:
        self.now += 1.0
        while self.arrivals and self.arrivals[-1][0] <= self.now:
            self.queue.append(self.arrivals.pop()[1])
        for worker in self.workers.values():
            self.done += sum(end <= self.now for end in worker.running)
            worker.running = [end for end in worker.running if end > self.now]
            while worker.ready_at <= self.now and len(worker.running) < SIZE.threads and self.queue:
                worker.running.append(self.now + self.queue.pop(0))
        running = sum(len(worker.running) for worker in self.workers.values())
        rows = [work(running, running * self.guess_s), work(len(self.queue), len(self.queue) * self.guess_s)]
        rows.append(work(3, 1000.0, TPU=1.0))  # nobody can do this
        units = [
            unit(name, is_idle=not worker.running)
            for name, worker in self.workers.items()
            if worker.ready_at <= self.now
        ]
        step = self.adapt.decide(rows, units, SIZE if units else None, len(self.workers))
        if step != NOTHING:
            self.steps.append(step)
        for _ in range(step.add):
            self.workers[str(self.started)] = Worker(self.now + START_S)
            self.started += 1
        for name in step.release:
            assert not self.workers.pop(name).running, "a busy worker was let go"
        self.peak = max(self.peak, len(self.workers))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2), st.integers(2, 20), st.floats(0.01, 30.0))
def test_all_work_gets_done_within_the_limits_and_the_cluster_comes_to_rest(
    seed: int, minimum: int, maximum: int, guess_s: float
) -> None:
    rng = random.Random(seed)
    arrivals = [(rng.random() * 60, rng.expovariate(0.5)) for _ in range(rng.randint(0, 100))]
    cluster = SimulatedCluster(policy(minimum=minimum, maximum=maximum), list(arrivals), guess_s)
    for _ in range(800):
        cluster.tick()
        assert cluster.now < 2 or minimum <= len(cluster.workers) <= maximum
    assert cluster.done == len(arrivals)
    assert len(cluster.workers) == minimum
    steps = list(cluster.steps)
    for _ in range(50):
        cluster.tick()
    assert cluster.steps == steps


def test_a_burst_takes_a_few_steps_up_and_a_few_down() -> None:
    cluster = SimulatedCluster(policy(maximum=10), [(1.0, 2.0)] * 100, 2.0)
    for _ in range(100):
        cluster.tick()
    assert cluster.peak == 10
    assert sum(step.add for step in cluster.steps) == sum(len(step.release) for step in cluster.steps) == 10
    assert cluster.steps[0].add == 10


def test_of_superfluous_units_those_that_hold_the_least_go_first() -> None:
    units = [unit("empty"), unit("little", held=1), unit("more", held=2)]
    assert policy(wait_count=1).decide([], units, SIZE, 3) == Step(0, ("empty", "little"))
