"""Work moves to idle workers as far as that is faster than waiting, and no further."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scheduler.kit import Kit, Worker
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core.estimates import UNKNOWN_S

STEP_S = 0.01
LARGE = 100_000_000


class Cluster:
    """Workers that execute what they are given, in virtual time. Fetching the inputs of a task takes time, too."""

    def __init__(self, *nthreads: int) -> None:
        self.kit = Kit(bandwidth_bytes_per_s=100e6)
        self.kit.state.validating = False
        self.workers = [self.kit.worker(f"w{number}", nthreads=count) for number, count in enumerate(nthreads)]
        self.client = self.kit.client()
        self.asked_back = 0
        self._queues: dict[Worker, list[m.Run]] = {worker: [] for worker in self.workers}
        self._running: dict[Worker, list[tuple[float, m.Run]]] = {worker: [] for worker in self.workers}

    def put(self, key: str, nbytes: int) -> None:
        """The first worker alone has a value of this size."""
        incarnation = self.kit.state.clients[self.client.peer].incarnation
        self.workers[0].send(m.Scattered(key, nbytes, "bytes", incarnation))

    def learn(self, seconds: float) -> None:
        """A call of the function has taken so long."""
        self.client.submit("learn", workers=("w0",))
        self.workers[0].finish(self.workers[0].runs()[0], seconds=seconds)

    def work(self, tasks: int, seconds: float, fetch_s: float = 0.0) -> list[int]:
        """Until so many tasks are done, which take so long; how many each worker has done."""
        done = dict.fromkeys(self.workers, 0)
        while sum(done.values()) < tasks:
            assert self.kit.now < 1000, "the tasks never come to an end"
            for worker in self.workers:
                done[worker] += self._step(worker, seconds, fetch_s)
            self.kit.tick(STEP_S)
        return list(done.values())

    def _step(self, worker: Worker, seconds: float, fetch_s: float) -> int:
        queue, running = self._queues[worker], self._running[worker]
        queue += worker.runs()
        for message in worker.take(m.ReturnRuns):
            self.asked_back += 1
            back = [run for run in queue if run.run in message.runs]
            queue[:] = [run for run in queue if run not in back]
            worker.send(m.RunsReturned(tuple(run.run for run in back)))
        over = [(end, run) for end, run in running if end <= self.kit.now]
        running[:] = [(end, run) for end, run in running if end > self.kit.now]
        for _, run in over:
            worker.send(m.Replicas(tuple(key for key, source in run.dependencies if source)))
            worker.finish(run, seconds=seconds)
        queue += worker.runs()
        while queue and len(running) < worker.info.nthreads:
            run = queue.pop(0)
            fetches = any(source for _, source in run.dependencies)
            running.append((self.kit.now + seconds + fetches * fetch_s, run))
        return len(over)


def test_tasks_of_unknown_duration_leave_the_worker_that_has_their_input() -> None:
    cluster = Cluster(1, 1)
    cluster.put("x", 28)
    cluster.client.submit(*map(str, range(10)), needs=("x",))
    counts = cluster.work(10, 0.1)
    assert min(counts) >= 4


def test_tasks_submitted_one_by_one_while_their_input_is_computed_leave_its_worker() -> None:
    cluster = Cluster(1, 1)
    cluster.client.submit("x", workers=("w0",))
    for number in range(10):
        cluster.client.submit(str(number), needs=("x",))
    counts = cluster.work(11, 0.1)
    assert min(counts) >= 4


def test_tasks_of_unknown_duration_leave_the_worker_that_they_prefer() -> None:
    cluster = Cluster(1, 1)
    cluster.client.submit(*map(str, range(10)), workers=("w0",), allow_other_workers=True)
    counts = cluster.work(10, 0.1)
    assert min(counts) >= 4


def test_tasks_that_prefer_a_worker_spread_as_slots_come_free() -> None:
    cluster = Cluster(1, 2)
    cluster.client.submit(*map(str, range(100)), workers=("w0",), allow_other_workers=True)
    counts = cluster.work(100, 0.05)
    assert 28 <= counts[0] <= 40


@pytest.mark.parametrize("is_known", [False, True])
def test_few_tasks_with_a_large_input_stay_where_it_is(is_known: bool) -> None:
    cluster = Cluster(*[1] * 10)
    cluster.put("x", LARGE)
    if is_known:
        cluster.learn(0.2)
    cluster.client.submit("a", "b", needs=("x",))
    assert cluster.work(2, 0.2) == [2] + [0] * 9
    assert cluster.asked_back == 0


def test_many_tasks_with_a_large_input_share_the_workers_that_fetch_it() -> None:
    cluster = Cluster(*[1] * 4)
    cluster.put("x", LARGE)
    cluster.client.submit(*map(str, range(40)), needs=("x",))
    counts = cluster.work(40, 0.2, fetch_s=1.0)
    assert counts[0] >= 13
    assert min(counts) >= 3
    assert cluster.kit.now < 40 * 0.2 / 2


def test_fast_tasks_stay_with_their_large_input() -> None:
    cluster = Cluster(1, 1)
    cluster.put("x", LARGE // 10)
    cluster.learn(0.001)
    cluster.client.submit(*map(str, range(10)), needs=("x",))
    cluster.client.submit(*map(str, range(10, 20)), needs=("x",), workers=("w0",), allow_other_workers=True)
    assert cluster.work(20, 0.001) == [20, 0]
    assert cluster.asked_back == 0


@pytest.mark.parametrize(("seconds", "taken"), [(0.002, 13), (0.1, 1)])
def test_an_idle_worker_takes_as_many_short_tasks_from_a_backlog_as_keep_it_busy(seconds: float, taken: int) -> None:
    kit = Kit()
    kit.state.validating = False
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("x", workers=("one",))
    one.finish(one.runs()[0], seconds=seconds)
    client.submit(*map(str, range(200)), needs=("x",))
    (first,) = two.runs()
    two.finish(first, seconds=seconds)
    assert len(two.runs()) == taken


def test_very_short_tasks_stay_with_their_small_inputs_though_the_first_call_was_long() -> None:
    kit = Kit()
    kit.state.validating = False
    workers = [kit.worker(f"w{number}") for number in range(10)]
    client = kit.client()
    inputs = tuple(f"x{number}" for number in range(10))
    client.submit(*inputs, workers=("w0",))
    seconds = iter((0.005, *[10e-6] * 200))
    while runs := workers[0].runs():
        for run in runs:
            workers[0].finish(run, seconds=next(seconds))
    client.submit(*map(str, range(100)), needs=inputs)
    assert [len(worker.runs()) for worker in workers] == [100] + [0] * 9


@pytest.mark.parametrize(("bytes_per_s", "moved"), [(None, 0), (50e9, 5), (-1.0, 0), (float("nan"), 0), ("fast", 0)])
def test_the_speed_that_workers_measure_decides_what_moves(bytes_per_s: Any, moved: int) -> None:
    cluster = Cluster(1, 1)
    cluster.put("x", LARGE)
    cluster.learn(0.05)
    for worker in cluster.workers:
        worker.send(m.Heartbeat({"bandwidth_bytes_per_s": bytes_per_s}))
    cluster.client.submit(*map(str, range(10)), needs=("x",))
    assert cluster.work(10, 0.05)[1] == moved


def test_a_run_that_was_asked_back_goes_to_the_worker_for_which_it_was() -> None:
    """Its own worker has room again at once, and a queue of demands would give it to that one."""
    kit = Kit()
    one, client = kit.worker("one", resources={"GPU": 2}), kit.client()
    client.submit("a", "b", resources={"GPU": 1})
    _, ahead = one.runs()
    two = kit.worker("two", resources={"GPU": 1})
    (asked,) = one.take(m.ReturnRuns)
    one.send(m.RunsReturned(asked.runs))
    assert ([run.key for run in two.runs()], one.runs()) == (["b"], [])
    assert asked.runs == (ahead.run,)


@pytest.mark.parametrize("what", ["busy", "gone", "without the resource"])
def test_a_run_that_was_asked_back_for_a_worker_that_cannot_take_it_is_placed_anew(what: str) -> None:
    kit = Kit()
    one, client = kit.worker("one", resources={"GPU": 2}), kit.client()
    client.submit("a", "b", resources={"GPU": 1})
    one.runs()
    two = kit.worker("two", resources={"GPU": 1})
    (asked,) = one.take(m.ReturnRuns)
    if what == "busy":
        client.submit("c", "d", workers=("two",))
    elif what == "gone":
        two.leave(expected=True)
    else:
        client.submit("c", workers=("two",), resources={"GPU": 1})
    one.send(m.RunsReturned(asked.runs))
    assert [run.key for run in one.runs()] == ["b"]


def test_a_task_that_prefers_a_worker_is_taken_from_its_queue_too() -> None:
    kit = Kit()
    one, client = kit.worker("one"), kit.client()
    client.submit("a", "b", workers=("one",), allow_other_workers=True)
    client.submit("c", "d", workers=("one",))
    two = kit.worker("two")
    (asked,) = one.take(m.ReturnRuns)
    one.send(m.RunsReturned(asked.runs))
    assert [run.key for run in two.runs()] == ["b"]


def test_a_run_with_a_large_input_is_not_asked_back() -> None:
    kit = Kit()
    one, client = kit.worker("one"), kit.client()
    one.send(m.Scattered("x", LARGE, "bytes", kit.state.clients[client.peer].incarnation))
    client.submit("a", "b", needs=("x",))
    kit.worker("two")
    for _ in range(20):
        kit.tick(0.1)
    assert one.take(m.ReturnRuns) == []


def test_a_task_behind_a_surprisingly_long_one_moves() -> None:
    kit = Kit()
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("learn", workers=("one",))
    one.finish(one.runs()[0], seconds=0.0001)
    client.submit("long", "behind", workers=("one",), allow_other_workers=True)
    long, behind = one.runs()
    kit.tick(0.2)
    assert one.take(m.ReturnRuns) == [], "it is expected to be over soon"
    one.send(m.Started((long.run,)))
    for _ in range(10):
        kit.tick(0.1)
    (asked,) = one.take(m.ReturnRuns)
    assert asked.runs == (behind.run,)
    one.send(m.RunsReturned(asked.runs))
    (moved,) = two.runs()
    one.finish(long, seconds=1.0)
    two.finish(moved)
    assert sorted(client.ready()) == ["behind", "learn", "long"]
    kit.assert_empty()


def test_a_guess_is_no_overrun_before_its_time() -> None:
    kit = Kit()
    one, client = kit.worker("one"), kit.client()
    client.submit("a", "b", workers=("one",))
    runs = one.runs()
    kit.worker("two")
    one.send(m.Started((runs[0].run,)))
    for _ in range(4):
        kit.tick(0.1)
    assert kit.state.names["one"].occupancy_s == pytest.approx(2 * UNKNOWN_S)
    for _ in range(2):
        kit.tick(0.1)
    assert kit.state.names["one"].occupancy_s > 2 * UNKNOWN_S
