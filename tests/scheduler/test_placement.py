"""Where tasks go, and that nobody stays idle or is flooded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scheduler.kit import Kit
from trio_dask.protocol import messages as m
from trio_dask.protocol.wire_constants import SMALL_VALUE_BYTES
from trio_dask.scheduler.core.priority_queue import DROP_STALE_FROM, TaskQueue
from trio_dask.scheduler.core.state import DEFAULT_OPTIONS, PRUNE_QUEUES_FROM, Queue, Task, Worker
from trio_dask.scheduler.core.task_states import RELEASED
from trio_dask.worker.core.ready_queue import ReadyQueue


def test_idle_workers_share_what_there_is() -> None:
    kit = Kit()
    workers = [kit.worker() for _ in range(4)]
    client = kit.client()
    client.submit("a", "b", "c", "d")
    assert [len(worker.runs()) for worker in workers] == [1, 1, 1, 1]


def test_no_task_is_put_behind_another_one_while_a_slot_is_free_elsewhere() -> None:
    """The first may take much longer than it did so far."""
    kit = Kit()
    workers = [kit.worker(), kit.worker()]
    client = kit.client()
    client.submit("before", "before too")
    for worker in workers:
        worker.finish(worker.runs()[0], seconds=0.001)
    client.submit("a", "b", "c", "d")
    assert {worker.runs()[0].key for worker in workers} == {"a", "b"}


def test_workers_of_unknown_tasks_hold_one_run_ahead_and_the_rest_waits_here() -> None:
    kit = Kit()
    workers = [kit.worker(nthreads=2) for _ in range(2)]
    client = kit.client()
    client.submit(*(f"k{number}" for number in range(100)))
    assert [len(worker.runs()) for worker in workers] == [4, 4]
    assert list(kit.states().values()).count("queued") == 92


def test_the_queue_ahead_deepens_for_short_tasks_and_not_for_long_ones() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    client.submit(*(f"k{number}" for number in range(3000)))
    first, _ = worker.runs()
    worker.finish(first, seconds=10.0)
    assert len(worker.runs()) == 1
    kit2 = Kit()
    kit2.state.validating = False
    worker, client = kit2.worker(), kit2.client()
    client.submit(*(f"k{number}" for number in range(3000)))
    first, _ = worker.runs()
    worker.finish(first, seconds=0.001)
    assert 20 <= len(worker.runs()) <= 30


def test_a_task_goes_where_most_bytes_of_its_inputs_are() -> None:
    kit = Kit()
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("small", workers=("one",))
    client.submit("large", workers=("two",))
    one.finish(one.runs()[0], nbytes=10)
    two.finish(two.runs()[0], nbytes=10**6)
    client.submit("sum", needs=("small", "large"))
    assert one.runs() == []
    (run,) = two.runs()
    assert run.dependencies == (("small", (one.address,)), ("large", ()))


def test_a_busy_holder_gives_way_to_an_idle_worker_when_moving_is_cheaper_than_waiting() -> None:
    kit = Kit()
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("data", workers=("one",))
    one.finish(one.runs()[0], nbytes=1000, seconds=1.0)
    client.submit("long", workers=("one",))
    client.submit("use", needs=("data",))
    assert [run.key for run in two.runs()] == ["use"]


def _result_needed_elsewhere(kit: Kit, value: bytes | None) -> m.Run:
    """The run of a task on one worker whose input another one has, and has reported with this value."""
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("data", workers=("one",))
    client.submit("use", needs=("data",), workers=("two",))
    (run,) = one.runs()
    assert run.shared is False, "nothing depended on it when it was assigned"
    one.finish(run, value=value)
    (use,) = two.runs()
    return use


def test_a_small_result_goes_with_the_run_that_needs_it_on_another_worker() -> None:
    kit = Kit()
    assert _result_needed_elsewhere(kit, b"5").dependencies == (("data", b"5"),)


@pytest.mark.parametrize("value", [None, b"a" * (SMALL_VALUE_BYTES + 1)])
def test_a_larger_result_is_fetched_from_its_holder(value: bytes | None) -> None:
    kit = Kit()
    ((key, source),) = _result_needed_elsewhere(kit, value).dependencies
    assert (key, source) == ("data", (kit.state.tasks["data"].phase.holders[0].info.address,))  # type: ignore[union-attr]


@pytest.mark.parametrize(("workers", "shared"), [(1, False), (2, True)])
def test_a_result_comes_along_for_dependents_if_there_are_other_workers(workers: int, shared: bool) -> None:
    kit = Kit()
    all_workers = [kit.worker() for _ in range(workers)]
    client = kit.client()
    client.submit(*(f"k{number}" for number in range(20)))  # none of the next tasks has a place yet
    client.submit("a", "lone")
    client.submit("b", needs=("a",))
    is_shared: dict[str, bool] = {}
    while any(kit.state.tasks[key].phase.state != "memory" for key in ("a", "b", "lone")):
        for worker in all_workers:
            for run in worker.runs():
                is_shared[run.key] = run.shared
                worker.finish(run)
    assert (is_shared["a"], is_shared["b"], is_shared["lone"]) == (shared, False, False)


def test_large_data_is_waited_for() -> None:
    kit = Kit()
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("data", workers=("one",))
    one.finish(one.runs()[0], nbytes=10**11)
    client.submit("long", workers=("one",))
    client.submit("use", needs=("data",))
    assert two.runs() == []


def test_a_chain_is_handed_ahead_to_one_worker() -> None:
    kit = Kit()
    workers = [kit.worker(), kit.worker()]
    client = kit.client()
    client.submit("0")
    for number in range(1, 50):
        client.submit(str(number), needs=(str(number - 1),))
    counts = sorted(len(worker.runs()) for worker in workers)
    assert counts == [0, 50]


def test_when_a_task_is_handed_back_what_waits_for_it_there_is_taken_back_too() -> None:
    kit = Kit()
    one, client = kit.worker(), kit.client()
    client.submit("a")
    client.submit("b", needs=("a",))
    run_a, run_b = one.runs()
    two = kit.worker()
    one.send(m.RunsReturned((run_a.run,)))
    assert one.take(m.CancelRuns) == [m.CancelRuns((run_b.run,))]
    assert [run.key for run in (*one.runs(), *two.runs())] == ["a", "b"]


def test_a_wide_fan_out_is_not_handed_ahead() -> None:
    kit = Kit()
    workers = [kit.worker(), kit.worker()]
    client = kit.client()
    client.submit("root")
    client.submit(*(f"leaf{number}" for number in range(20)), needs=("root",))
    runs = [run for worker in workers for run in worker.runs()]
    assert [run.key for run in runs] == ["root"]


def test_priority_of_the_user_comes_before_the_order_of_submission() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("a", "b")
    client.submit("urgent", priority=5)
    client.submit("late", priority=-5)
    client.submit("between", priority=0.5)
    worker = kit.worker()
    keys = []
    while runs := worker.runs():
        runs.sort(key=lambda run: (run.extra.get("priority", 0), run.priority))
        keys += [run.key for run in runs]
        for run in runs:
            worker.finish(run)
    assert keys == ["urgent", "between", "a", "b", "late"]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1)


@given(st.lists(NUMBERS, min_size=2, unique=True))
def test_any_two_priorities_are_told_apart(priorities: list[float]) -> None:
    """By scheduler and worker, over the wire: each float, and each number that a float can hold."""
    priorities = list({float(priority): priority for priority in priorities}.values())
    kit = Kit()
    client = kit.client()
    for number, priority in enumerate(priorities):
        client.submit(str(number), priority=priority)
    worker = kit.worker(nthreads=len(priorities))
    ready = ReadyQueue()
    for run in worker.runs():
        ready.push(run)
    taken = []
    while (best := ready.take()) is not None:
        taken.append(priorities[int(best.key)])
    assert taken == sorted(priorities, reverse=True)


def test_restrictions_by_name_address_and_host_are_kept_and_wait_without_a_worker() -> None:
    kit = Kit()
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("by-name", workers=("one",))
    client.submit("by-host", workers=(f"host-{two.peer}",))
    client.submit("by-address", workers=(two.address,))
    client.submit("nowhere", workers=("three",))
    assert [run.key for run in one.runs()] == ["by-name"]
    assert [run.key for run in two.runs()] == ["by-host", "by-address"]
    assert kit.states()["nowhere"] == "no-worker"
    three = kit.worker("three")
    assert [run.key for run in three.runs()] == ["nowhere"]


def test_a_host_may_be_called_by_the_name_that_it_has_in_the_address() -> None:
    for address, host in (("tcp://10.0.0.6:40483", "10.0.0.6"), ("tcp://[fe80::1]:40483", "fe80::1")):
        kit = Kit()
        client, there = kit.client(), kit.worker(address=address)
        client.submit("x", workers=(host,))
        assert [run.key for run in there.runs()] == ["x"]


def test_a_loose_restriction_gives_way_when_no_such_worker_is_there() -> None:
    kit = Kit()
    one, client = kit.worker("one"), kit.client()
    client.submit("x", workers=("three",), allow_other_workers=True)
    assert [run.key for run in one.runs()] == ["x"]


@pytest.mark.parametrize("workers", [("three",), ()])
def test_a_loose_restriction_leaves_the_demand_for_resources_as_it_is(workers: tuple[str, ...]) -> None:
    kit = Kit()
    one, client = kit.worker("one"), kit.client()
    client.submit("x", workers=workers, allow_other_workers=True, resources={"GPU": 1})
    assert one.runs() == []
    assert kit.states() == {"x": "no-worker"}
    for _ in range(2):
        other = kit.worker("other", resources={"GPU": 1})
        (run,) = other.runs()
        other.leave(expected=True)
        assert (run.key, kit.states()) == ("x", {"x": "no-worker"})
    kit.assert_empty()


def test_a_loose_restriction_gives_way_when_such_a_worker_leaves() -> None:
    kit = Kit()
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit(*(f"strict-{number}" for number in range(3)), workers=("one",))
    client.submit(*(f"loose-{number}" for number in range(10)), workers=("one",), allow_other_workers=True)
    client.submit("urgent", workers=("one",), allow_other_workers=True, priority=1)
    client.send(m.Release(("loose-9",)))
    one.leave(expected=True)
    assert two.runs()[0].key == "urgent"
    assert {state for key, state in kit.states().items() if key.startswith("strict")} == {"no-worker"}
    assert "no-worker" not in {state for key, state in kit.states().items() if not key.startswith("strict")}
    assert kit.worker("one").finish_all() >= 3
    kit.assert_empty()


def test_tasks_with_demands_go_to_idle_workers_first_and_there_to_those_that_hold_least() -> None:
    kit = Kit()
    one, two, three, client = kit.worker("one"), kit.worker("two"), kit.worker("three"), kit.client()
    for worker, nbytes in ((one, 2000), (two, 1000)):
        worker.send(m.Scattered(worker.name, nbytes, "bytes", kit.state.clients[client.peer].incarnation))
    client.submit("a", workers=("one", "two"))
    client.submit("b", "c", "d", workers=("one", "two", "three"))
    assert [[run.key for run in worker.runs()] for worker in (one, two, three)] == [["c", "d"], ["a"], ["b"]]


def test_resources_are_never_given_twice() -> None:
    kit = Kit()
    plain, gpu, client = kit.worker(), kit.worker(nthreads=4, resources={"GPU": 2}), kit.client()
    client.submit("a", "b", "c", resources={"GPU": 1})
    runs = gpu.runs()
    assert [run.key for run in runs] == ["a", "b"]
    assert plain.runs() == []
    gpu.finish(runs[0])
    assert [run.key for run in gpu.runs()] == ["c"]


def test_without_workers_everything_waits_and_the_first_one_gets_it() -> None:
    kit = Kit()
    client = kit.client()
    client.submit("x")
    assert kit.states() == {"x": "no-worker"}
    worker = kit.worker()
    assert [run.key for run in worker.runs()] == ["x"]


def test_an_idle_worker_takes_from_the_queue_of_a_loaded_one() -> None:
    kit = Kit()
    one, client = kit.worker(nthreads=1), kit.client()
    client.submit("a", "b")
    _, ahead = one.runs()
    two = kit.worker()
    (retract,) = one.take(m.ReturnRuns)
    assert retract.runs == (ahead.run,)
    assert kit.states() == {"a": "processing", "b": "processing"}
    one.send(m.RunsReturned(retract.runs))
    assert [run.key for run in two.runs()] == ["b"]
    assert one.runs() == []


def test_a_run_that_had_started_stays_where_it_is() -> None:
    kit = Kit()
    one, client = kit.worker(), kit.client()
    client.submit("a", "b")
    _, ahead = one.runs()
    two = kit.worker()
    one.finish(ahead)
    assert client.ready() == ["b"]
    assert two.runs() == []


def test_a_worker_with_no_slots_left_gets_nothing_until_it_has_some() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    worker.send(m.Capacity(0))
    client.submit("x")
    assert worker.runs() == []
    worker.send(m.Capacity(1))
    assert [run.key for run in worker.runs()] == ["x"]


def test_a_backlog_is_shared_with_idle_workers() -> None:
    kit = Kit()
    one, two, client = kit.worker("one"), kit.worker("two"), kit.client()
    client.submit("data", workers=("one",))
    one.finish(one.runs()[0], nbytes=100, seconds=1.0)
    for number in range(10):
        client.submit(f"use{number}", needs=("data",))
    assert len(two.runs()) >= 1


def test_siblings_of_a_tree_meet_on_one_worker() -> None:
    kit = Kit()
    kit.state.validating = False
    workers = [kit.worker(), kit.worker()]
    client = kit.client()
    client.submit(*(f"leaf-{number}" for number in range(256)))
    for number in range(128):
        client.submit(f"sum-{number}", needs=(f"leaf-{2 * number}", f"leaf-{2 * number + 1}"))
    moved = 0
    while runs := [(worker, run) for worker in workers for run in worker.runs()]:
        for worker, run in runs:
            moved += sum(bool(addresses) for _, addresses in run.dependencies)
            worker.finish(run, seconds=1e-5)
    assert len(client.ready()) == 384
    assert moved <= 40


def test_a_function_that_never_succeeds_keeps_no_task_in_mind() -> None:
    kit = Kit()
    worker, client = kit.worker(), kit.client()
    for number in range(10):
        client.submit(f"x{number}")
        worker.fail(worker.runs()[0])
        client.send(m.Release((f"x{number}",)))
    (content,) = kit.state.blobs.values()
    assert content.expected_s is None
    assert not content.guesses


def test_fractions_of_a_resource_add_up_to_all_of_it() -> None:
    kit = Kit()
    worker, client = kit.worker(nthreads=8, resources={"GPU": 0.3}), kit.client()
    client.submit("tenth", resources={"GPU": 0.1})
    client.submit("two", resources={"GPU": 0.2})  # 0.3 - 0.1 is less than 0.2
    runs = worker.runs()
    assert [run.key for run in runs] == ["tenth", "two"]
    client.submit("all", resources={"GPU": 0.3})
    for run in runs:
        assert worker.runs() == []
        worker.finish(run)
    (run,) = worker.runs()
    assert run.key == "all"


def test_a_resource_is_whole_again_once_nothing_runs() -> None:
    """Or what floats leave behind would gather, over millions of tasks, until it is worth a task."""
    kit = Kit()
    worker, client = kit.worker("alice", nthreads=8, resources={"GPU": 1.0}), kit.client()
    assert 1.0 - 0.1 - 0.2 - 0.4 + 0.1 + 0.2 + 0.4 != 1.0
    for amount in (0.1, 0.2, 0.4):
        client.submit(f"x{amount}", resources={"GPU": amount})
    assert worker.finish_all() == 3
    assert worker_of(kit, "alice").available == {"GPU": 1.0}


def test_stale_entries_leave_a_queue_behind_a_task_that_no_worker_takes() -> None:
    kit = Kit()
    state = kit.state
    client = kit.client()
    state.validating = False
    for priority in (5, 0):  # in turn, and before all that is there already
        client.submit(f"head-{priority}", resources={"GPU": 1}, priority=priority)
        for first in range(0, 5 * DROP_STALE_FROM, 1000):
            keys = tuple(f"{priority}-{first + number}" for number in range(1000))
            client.submit(*keys, resources={"GPU": 1}, priority=priority)
            client.send(m.Release(keys))
    (queue,) = state.queues.values()
    assert len(queue.tasks) <= DROP_STALE_FROM
    worker = kit.worker(nthreads=4, resources={"GPU": 2})
    assert [run.key for run in worker.runs()] == ["head-5", "head-0"]


def test_a_swept_line_keeps_everybody_once_and_in_order() -> None:
    line, queued = TaskQueue(), Queue(DEFAULT_OPTIONS).phase
    tasks = []
    for number in range(DROP_STALE_FROM):
        task = Task(f"k{number}", number * 7 % 1000, None, b"", DEFAULT_OPTIONS, ())
        task.phase = queued if number % 3 else RELEASED
        tasks.append(task)
        line.put(task)
    twice = next(task for task in tasks if task.phase is queued)
    for _ in range(3 * DROP_STALE_FROM):
        line.put(twice)
    assert len(line) < 2 * DROP_STALE_FROM
    taken = []
    while (first := line.take()) is not None:
        first.phase = RELEASED
        taken.append(first)
    expected = sorted((task for number, task in enumerate(tasks) if number % 3), key=lambda task: task.priority)
    assert taken == expected


def test_demands_without_tasks_are_forgotten() -> None:
    kit = Kit()
    state = kit.state
    worker, client = kit.worker("alice", nthreads=2), kit.client()
    client.submit("kept", workers=("nobody",))
    client.submit("running", workers=("alice",))
    for number in range(3 * PRUNE_QUEUES_FROM):
        client.submit("x", workers=("alice", f"bob-{number}"))
        worker.finish_all()
        client.send(m.Release(("x",)))
    assert len(state.queues) <= PRUNE_QUEUES_FROM
    assert len(worker_of(kit, "alice").queues) <= PRUNE_QUEUES_FROM
    nobody = kit.worker("nobody")
    assert [run.key for run in nobody.runs()] == ["kept"]


def test_many_demands_that_are_made_are_not_looked_through_for_each_new_one() -> None:
    kit = Kit()
    state = kit.state
    state.validating = False
    client = kit.client()
    for number in range(3 * PRUNE_QUEUES_FROM):
        client.submit(f"x{number}", workers=(f"bob-{number}",))
    assert len(state.queues) == 3 * PRUNE_QUEUES_FROM
    assert state.prune_queues_at == 4 * PRUNE_QUEUES_FROM


def worker_of(kit: Kit, name: str) -> Worker:
    return kit.state.names[name]


def test_tasks_that_prefer_a_worker_run_on_idle_ones_too_while_it_is_busy() -> None:
    kit = Kit()
    client = kit.client()
    preferred, other = kit.worker(nthreads=1), kit.worker(nthreads=1)
    client.submit(*map(str, range(20)), workers=(preferred.name,), allow_other_workers=True)
    client.submit(*map(str, range(20, 40)), workers=(preferred.name,))
    done = {preferred.name: 0, other.name: 0}
    for _ in range(60):
        for worker in (preferred, other):
            for run in worker.runs()[:1]:
                worker.finish(run, seconds=1.0)
                done[worker.name] += 1
            for message in worker.take(m.ReturnRuns):
                worker.send(m.RunsReturned(message.runs))
        kit.tick(kit.now + 1.0)
    assert 5 <= done[other.name] <= 20
