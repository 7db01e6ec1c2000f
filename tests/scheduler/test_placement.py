"""Where tasks go, and that nobody stays idle or is flooded."""

from __future__ import annotations

from tests.scheduler.kit import Kit
from trio_dask.protocol import messages as m


def test_idle_workers_share_what_there_is() -> None:
    kit = Kit()
    workers = [kit.worker() for _ in range(4)]
    client = kit.client()
    client.submit("a", "b", "c", "d")
    assert [len(worker.runs()) for worker in workers] == [1, 1, 1, 1]


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
    kit2.core.state.validating = False
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
    one.send(m.Returned((run_a.run,)))
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
    worker = kit.worker()
    keys = []
    while runs := worker.runs():
        runs.sort(key=lambda run: run.priority)
        keys += [run.key for run in runs]
        for run in runs:
            worker.finish(run)
    assert keys == ["urgent", "a", "b", "late"]


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


def test_a_loose_restriction_gives_way_when_no_such_worker_is_there() -> None:
    kit = Kit()
    one, client = kit.worker("one"), kit.client()
    client.submit("x", workers=("three",), allow_other_workers=True)
    assert [run.key for run in one.runs()] == ["x"]


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
    (retract,) = one.take(m.Retract)
    assert retract.runs == (ahead.run,)
    assert kit.states() == {"a": "processing", "b": "processing"}
    one.send(m.Returned(retract.runs))
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
    kit.core.state.validating = False
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
