"""`AsyncClient` against a cluster that stands where the connection would."""

import gc
import operator
from typing import NamedTuple, Never

import pytest
import trio
import trio.testing

from tests.client.cluster import WORKER, MiniCluster, open_async_client
from trio_dask.client.wait import FIRST_COMPLETED
from trio_dask.errors import (
    ClusterError,
    FutureCancelledError,
    KeyConflict,
    KilledWorker,
    NoScheduler,
    RemoteError,
    SchedulerLost,
    TaskTimeout,
    UsageError,
)
from trio_dask.protocol import messages as m


async def never(*_) -> None:
    await trio.sleep_forever()


def increment(x, by=1):
    return x + by


def fail(x) -> Never:
    raise ValueError(x)


@pytest.fixture
def cluster():
    return MiniCluster()


@pytest.fixture
async def client(cluster):
    async with open_async_client(cluster) as client:
        yield client


async def test_a_call_gives_its_result(client) -> None:
    future = client.submit(increment, 1, by=10)
    assert await future == 11
    assert await future.result() == 11
    assert future.done()
    assert future.status == "finished"
    assert not future.cancelled()
    assert await future.exception() is None
    assert future.type is int


async def test_futures_are_dependencies_wherever_they_stand(client, cluster) -> None:
    one, two = client.submit(increment, 0), client.submit(increment, 1)
    found = client.submit(lambda x: x, {"a": [one, (two, {3})], "b": {"c": one}})
    assert await found == {"a": [1, (2, {3})], "b": {"c": 1}}
    assert set(cluster.of_type(m.Submit)[-1].dependencies[0]) == {one.key, two.key}


async def test_the_same_call_is_computed_once(client, cluster) -> None:
    first, second = client.submit(increment, 5), client.submit(increment, 5)
    assert first.key == second.key
    assert [await first, await second] == [6, 6]
    assert cluster.computed[first.key] == 1
    assert client.submit(increment, 5, pure=False).key != first.key


async def test_map_sends_its_function_once_and_few_messages(client, cluster) -> None:
    futures = client.map(increment, range(10_000))
    assert await client.gather(futures) == list(range(1, 10_001))
    assert len(cluster.of_type(m.Blob)) == 1
    assert len(cluster.of_type(m.Submit)) <= 10


async def test_map_takes_several_iterables_and_keywords(client) -> None:
    assert await client.gather(client.map(operator.add, [1, 2], [10, 20])) == [11, 22]
    assert await client.gather(client.map(increment, iter([1, 2]), by=5)) == [6, 7]
    big = list(range(1000))
    assert await client.gather(client.map(lambda x, table: table[x], [3, 4], table=big)) == [3, 4]
    named = client.map(increment, [1, 2], key=["one", "two"])
    assert [future.key for future in named] == ["one", "two"]
    assert client.map(increment, [7], key="prefix")[0].key.startswith("prefix-")


async def test_submits_of_one_burst_travel_in_one_message(client, cluster) -> None:
    futures = [client.submit(increment, i) for i in range(100)]
    await client.gather(futures)
    assert [len(message.keys) for message in cluster.of_type(m.Submit)] == [100]


async def test_options_reach_the_scheduler(client, cluster) -> None:
    options = {
        "workers": "w",
        "allow_other_workers": True,
        "resources": {"GPU": 1},
        "retries": 2,
        "priority": -3,
        "time_limit": "1 min",
    }
    await client.submit(increment, 1, **options)
    assert dict(cluster.of_type(m.Submit)[-1].extra) == {
        **options,
        "workers": ("w",),
        "resources": {"GPU": 1.0},
        "time_limit": 60.0,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"priority": "high"},
        {"time_limit": "soon"},
        {"resources": {"a": -1}},
        {"allow_other_workers": 1},
    ],
)
async def test_wrong_options_are_refused_at_the_call(client, options) -> None:
    with pytest.raises(UsageError):
        client.submit(increment, 1, **options)
    await trio.lowlevel.checkpoint()


class Point(NamedTuple):
    x: object
    y: object


async def test_gather_keeps_the_shape(client) -> None:
    a, b = client.map(increment, [0, 1])
    nested = {"list": [a, [b, 5]], "tuple": (a, b), "set": {a, b}, "named": Point(a, "y"), "plain": None}
    assert await client.gather(nested) == {
        "list": [1, [2, 5]],
        "tuple": (1, 2),
        "set": {1, 2},
        "named": Point(1, "y"),
        "plain": None,
    }
    assert await client.gather(a) == 1
    assert await client.gather(iter([a, b])) == [1, 2]
    assert await client.gather([]) == []


async def test_scatter_keeps_the_shape(client) -> None:
    for shape in (Point(1, 2), (1, 2), [1, 2], {"x": 1, "y": 2}, {1, 2}):
        futures = await client.scatter(shape)
        assert type(futures) is type(shape)
        assert await client.gather(futures) == shape
    assert (await client.scatter(Point(1, 2))).x.key == (await client.scatter([1])).pop().key


async def test_gather_raises_or_skips(client) -> None:
    good, bad = client.submit(increment, 0), client.submit(fail, "boom")
    with pytest.raises(ValueError, match="boom"):
        await client.gather([good, bad])
    assert await client.gather([good, bad, (bad, 2)], errors="skip") == [1, (2,)]
    assert await client.gather({"good": good, "bad": bad}, errors="skip") == {"good": 1}
    assert await client.gather(bad, errors="skip") is None
    with pytest.raises(UsageError):
        await client.gather([good], errors="ignore")


async def test_gather_does_not_wait_for_others_once_one_has_failed(client, cluster) -> None:
    cluster.hold = ("increment",)
    slow = client.submit(increment, 0)
    with trio.fail_after(5), pytest.raises(ValueError, match="boom"):
        await client.gather([slow, client.submit(fail, "boom")])
    assert slow.state.readers is None


async def test_a_failure_arrives_whole_and_fresh_each_time(client) -> None:
    future = client.submit(increment, client.submit(fail, "boom"))
    for _ in range(2):
        with pytest.raises(ValueError, match="boom") as caught:
            await future
        assert "fail" in [entry.name for entry in caught.traceback]
        notes = " ".join(caught.value.__notes__)
        assert "in task 'fail-" in notes
        assert "attempt 1" in notes
        assert "increment" in notes
        depth = len(caught.traceback)
    with pytest.raises(ValueError, match="boom") as again:
        await future
    assert len(again.traceback) == depth
    assert await future.traceback() is not None


@pytest.mark.parametrize(
    ("kind", "details", "expected"),
    [
        ("killed", {"deaths": ["w1: signal 9", "w2: signal 11"]}, KilledWorker),
        ("timeout", {}, TaskTimeout),
        ("conflict", {}, KeyConflict),
        ("refused", {}, UsageError),
        ("something new", {}, RemoteError),
    ],
)
async def test_each_kind_of_failure_has_its_exception(client, cluster, kind, details, expected) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    await trio.testing.wait_all_tasks_blocked()
    cluster.say(m.KeyFailed(future.key, future.key, kind, None, "why", details))
    with pytest.raises(expected) as caught:
        await future
    assert all(line in str(caught.value) for line in details.get("deaths", ["why"]))


async def test_large_results_are_fetched_from_workers(client, cluster) -> None:
    cluster.inline = False
    futures = client.map(increment, range(2000))
    assert await client.gather(futures) == list(range(1, 2001))
    assert cluster.channels <= 2  # and kept for the next keys


async def test_two_readers_of_an_array_do_not_share_memory(client) -> None:
    np = pytest.importorskip("numpy")
    (future,) = await client.scatter([np.zeros(10_000)])
    results = []

    async def read() -> None:
        results.append(await future)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
    results[0][:] = 1
    assert results[1].sum() == 0


async def test_a_holder_that_is_gone_is_reported_and_another_found(client, cluster) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    await trio.testing.wait_all_tasks_blocked()
    cluster.tasks[future.key], cluster.values[future.key] = None, 2
    cluster.inline = False
    cluster.say(m.KeyReady(future.key, 100_000, "int", None, ("tcp://gone:1",)))
    assert await future == 2
    assert m.FetchFailed(future.key, "tcp://gone:1") in cluster.received


async def test_a_kept_channel_that_its_worker_has_closed_is_replaced(client, cluster) -> None:
    cluster.inline = False
    assert await client.submit(increment, 1) == 2
    (kept,) = client.engine.channels._idle[WORKER]
    kept.hung_up = True
    assert await client.submit(increment, 2) == 3
    assert cluster.channels == 2
    assert not cluster.of_type(m.FetchFailed)


async def test_a_value_that_nobody_can_deliver_is_an_error_in_the_end(client, cluster) -> None:
    cluster.inline = False
    future = client.submit(increment, 1)
    cluster.absent.add(future.key)
    with trio.fail_after(5), pytest.raises(ClusterError, match="no longer holds it"):
        await future


async def test_inline_values_beyond_the_budget_are_fetched_again(client, cluster) -> None:
    client.engine.core._inline_budget = 100
    futures = client.map(increment, range(200))
    await client.wait(futures)
    assert sum(future.state.value is not None for future in futures) < 50
    assert await client.gather(futures) == list(range(1, 201))


async def test_values_arriving_while_they_are_gathered_need_no_budget(client, cluster) -> None:
    client.engine.core._inline_budget = 100
    assert await client.gather(client.map(increment, range(1000))) == list(range(1, 1001))
    assert cluster.channels == 0


async def test_dropped_futures_are_released_once_nobody_holds_them(
    client, cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_dask.client.outgoing.DELAY_S", 0)  # else the release may wait for company
    first, second = client.submit(increment, 1), client.submit(increment, 1)
    await first
    key = first.key
    del first
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    assert not cluster.of_type(m.Release)
    second.release()
    assert second.cancelled()
    await trio.testing.wait_all_tasks_blocked()
    assert cluster.of_type(m.Release) == [m.Release((key,))]
    assert client.engine.core.states == {}


async def test_a_released_key_can_be_another_task_at_once(client, cluster) -> None:
    """What the scheduler said about the first task must not settle the second."""
    cluster.hold = True
    client.submit(increment, 1, key="x")
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    stale = m.KeyReady("x", 1, "int", b"stale", ())
    client.submit(increment, 1, key="y")
    cluster.say(stale)  # under way while the client submits anew
    second = client.submit(increment, 41, key="x")
    await trio.testing.wait_all_tasks_blocked()
    assert not second.done()
    cluster.finish("x")
    assert await second == 42


async def test_one_key_for_two_tasks_is_refused(client, cluster) -> None:
    first = client.submit(increment, 1, key="x")
    with pytest.raises(KeyConflict):
        client.submit(increment, 2, key="x")
    assert client.submit(increment, 1, key="x").state is first.state
    assert await first == 2


async def test_cancelling_settles_at_once_and_the_key_can_be_used_again(client, cluster) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    client.cancel(future)
    assert future.cancelled()
    again = client.submit(increment, 1)
    assert again.status == "pending"
    with pytest.raises(FutureCancelledError):
        await future
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(again.key)
    assert await again == 2
    assert cluster.of_type(m.Cancel) == [m.Cancel((future.key,), False)]


async def test_retry_runs_a_failed_task_again(client, cluster) -> None:
    future = client.submit(fail, 1)
    with pytest.raises(ValueError, match="1"):
        await future
    future.retry()
    assert future.status == "pending"
    with pytest.raises(ValueError, match="1"):
        await future
    assert cluster.computed[future.key] == 2


async def test_a_result_can_become_pending_and_finish_again(client, cluster) -> None:
    cluster.inline = False
    future = client.submit(increment, 1)
    await client.wait(future)
    cluster.say(m.KeyPending(future.key))
    await trio.testing.wait_all_tasks_blocked()
    assert not future.done()
    cluster.finish(future.key)
    assert await future == 2


async def test_timeouts(client, cluster, autojump_clock: trio.testing.MockClock) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    with pytest.raises(TimeoutError):
        await future.result(timeout="5s")
    with pytest.raises(TimeoutError):
        await future.exception(timeout=1)
    with pytest.raises(TimeoutError):
        await client.wait([future], timeout=1)
    with pytest.raises(TimeoutError):
        await client.wait_for_workers(2, timeout=3)
    with pytest.raises(TimeoutError):
        async for _ in client.as_completed([future], timeout=2):
            pass
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(future.key)
    assert await future == 2


async def test_a_cancelled_wait_leaves_nothing_behind(client, cluster) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    with trio.move_on_after(0):
        await future
    with trio.move_on_after(0):
        await client.wait(future)
    assert future.state.readers is None
    assert future.state.waiters is None


async def test_wait_for_the_first_or_for_all(client, cluster) -> None:
    cluster.hold = ("fail",)
    slow, quick = client.submit(fail, 1), client.submit(increment, 1)
    done, not_done = await client.wait([slow, quick], return_when=FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})
    cluster.finish(slow.key)
    assert await client.wait([slow, quick]) == ({slow, quick}, set())  # an error is an end like any other
    slow.cancel()
    with pytest.raises(FutureCancelledError):
        await client.wait([slow])


async def test_as_completed_follows_the_order_of_completion_and_grows(client, cluster) -> None:
    cluster.hold = True
    futures = [client.submit(increment, i) for i in range(4)]
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(futures[2].key)
    completed = client.as_completed(futures[:3])
    assert await anext(completed) is futures[2]
    completed.add(futures[3])
    assert completed.count() == 3
    assert not completed.is_empty()
    cluster.finish(futures[3].key, futures[0].key)
    assert [await anext(completed), await anext(completed)] == [futures[3], futures[0]]
    cluster.finish(futures[1].key)
    assert [future async for future in completed] == [futures[1]]
    assert completed.is_empty()


async def test_as_completed_with_results_and_errors(client) -> None:
    good, bad = client.submit(increment, 0), client.submit(fail, "boom")
    await client.wait([good, bad])
    pairs = dict([pair async for pair in client.as_completed([good, bad], with_results=True, raise_errors=False)])
    assert pairs[good] == 1
    kind, error, traceback = pairs[bad]
    assert kind is ValueError
    assert str(error) == "boom"
    assert traceback is error.__traceback__
    with pytest.raises(ValueError, match="boom"):
        async for _ in client.as_completed([bad], with_results=True):
            pass


async def test_as_completed_in_batches(client, cluster) -> None:
    futures = client.map(increment, range(10))
    await client.wait(futures)
    batches = [batch async for batch in client.as_completed(futures).batches()]
    assert [future for batch in batches for future in batch] == futures


async def test_callbacks_run_in_the_loop_and_cannot_harm_it(client, cluster, caplog: pytest.LogCaptureFixture) -> None:
    seen = []
    cluster.hold = True
    future = client.submit(increment, 1)
    future.add_done_callback(seen.append)
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(seen.append)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == []
    cluster.finish(future.key)
    assert await future == 2
    await trio.testing.wait_all_tasks_blocked()
    assert seen == [future, future]
    assert "callback" in caplog.text


async def test_graphs(client, cluster) -> None:
    graph = {
        "x": 1,
        "alias": "x",
        ("t", 0): (increment, "x"),
        "list": ["x", (increment, ("t", 0)), [10]],
        "nested": (operator.add, (increment, (increment, "alias")), ("t", 0)),
        "data": {"a": 1},
        "unused": (fail, 1),
    }
    assert await client.get(graph, "nested") == 5
    assert await client.get(graph, [["x", ("t", 0)], "list", "data"]) == [[1, 2], [1, 3, [10]], {"a": 1}]
    assert not any("fail" in key for key in cluster.computed)
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    assert not +cluster.wanted


async def test_a_graph_that_goes_in_circles_is_refused(client) -> None:
    with pytest.raises(UsageError, match="'a' -> 'b' -> 'a'"):
        await client.get({"a": (increment, "b"), "b": (increment, "a")}, "a")


async def test_a_graph_can_use_what_is_in_the_cluster(client) -> None:
    future = client.submit(increment, 1, key="held")
    assert await client.get({"y": (increment, future)}, "y") == 3
    assert await client.get({}, "held") == 2
    with pytest.raises(KeyError, match=r"'nobody knows it' is neither a key of the graph \(which is empty\) nor"):
        await client.get({}, "nobody knows it")


async def test_scatter_keeps_the_shape_and_dedupes(client, cluster) -> None:
    futures = await client.scatter({"a": 1, "b": [2]})
    assert {name: future.key for name, future in futures.items()} == {"a": "a", "b": "b"}
    assert await client.gather(futures) == {"a": 1, "b": [2]}
    one, two = await client.scatter(("equal", "equal"))
    assert one.key == two.key
    assert (await client.scatter("equal", hash=False)).key != one.key
    assert await client.submit(len, one) == 5
    assert type(await client.scatter({1, 2})) is set
    cluster.handlers[m.Query] = lambda message: cluster.say(m.Reply(message.request, {}))
    with pytest.raises(UsageError, match="no worker"):
        await client.scatter([5], workers="nobody")


async def test_questions(client) -> None:
    future = client.submit(increment, 1)
    await future
    assert await client.who_has([future]) == {future.key: (WORKER,)}
    assert await client.has_what() == {WORKER: (future.key,)}
    assert await client.processing() == {WORKER: ()}
    assert await client.nthreads() == await client.ncores() == {WORKER: 2}
    assert await client.nbytes() == {"increment": 28}
    assert await client.nbytes([future], summary=False) == {future.key: 28}
    assert WORKER in (await client.scheduler_info())["workers"]
    await client.wait_for_workers(1)


async def test_run_calls_a_function_in_each_worker(client) -> None:
    assert await client.run(increment, 1, by=4) == {WORKER: 5}
    assert await client.run(increment, 1, workers="w") == {WORKER: 2}
    with pytest.raises(ValueError, match="boom"):
        await client.run(fail, "boom")
    assert isinstance((await client.run(fail, "boom", on_error="return"))[WORKER], ValueError)
    assert await client.run(fail, "boom", on_error="ignore") == {}
    with pytest.raises(UsageError, match="never unpickles"):
        await client.run_on_scheduler(increment, 1)


async def test_restart_cancels_everything_here(client, cluster) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    await client.restart()
    assert future.cancelled()
    assert await client.scheduler_info()


@pytest.mark.parametrize("announced", [True, False])
async def test_a_lost_scheduler_fails_everything_at_once(client, cluster, announced) -> None:
    cluster.hold = True
    future = client.submit(increment, 1)
    caught = []

    async def expect(wait, *args) -> None:
        with pytest.raises(SchedulerLost) as error:
            await wait(*args)
        caught.append(str(error.value))

    async def iterate() -> None:
        assert [f async for f in client.as_completed([future])] == [future]
        caught.append("iterated")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, future.result)
            nursery.start_soon(expect, client.gather, [future])
            nursery.start_soon(expect, client.wait, [future])
            nursery.start_soon(expect, client.wait_for_workers, 5)
            nursery.start_soon(iterate)
            await trio.testing.wait_all_tasks_blocked()
            cluster.refusal = NoScheduler("nobody is there")
            if announced:
                cluster.say(m.Goodbye("stopped by its operator"))
            else:
                cluster.lose("the wire was cut")
    assert len(caught) == 5
    assert all(("operator" if announced else "wire") in text for text in caught if text != "iterated")
    assert future.status == "lost"
    assert client.status == "lost"
    assert len(cluster.dials) == (1 if announced else 2)
    with pytest.raises(SchedulerLost, match="nobody"):  # what is asked now is worth another try
        await client.submit(increment, 1)
    with pytest.raises(SchedulerLost, match="nobody"):
        await client.nthreads()
    cluster.refusal, cluster.hold = None, ()
    assert await client.submit(increment, 1) == 2
    assert client.status == "running"
    assert future.status == "lost"


async def test_leaving_says_goodbye_after_what_was_submitted(cluster) -> None:
    async with open_async_client(cluster) as client:
        future = client.submit(increment, 1)
        client.detach(future)
    assert [type(message) for message in cluster.received] == [m.Blob, m.Submit, m.FireAndForget, m.Goodbye]
    assert future.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        client.submit(increment, 2)


async def test_the_body_s_exception_leaves_the_block_as_it_is(cluster) -> Never:
    with pytest.raises(ZeroDivisionError):
        async with open_async_client(cluster):
            raise ZeroDivisionError
    assert type(cluster.received[-1]) is m.Goodbye


async def test_cancelling_the_body_says_goodbye(cluster) -> None:
    with trio.CancelScope() as scope:
        async with open_async_client(cluster):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert type(cluster.received[-1]) is m.Goodbye


async def test_a_cancelled_body_can_use_the_client_to_clean_up(cluster) -> None:
    with trio.CancelScope() as scope:
        async with open_async_client(cluster) as client:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    assert await client.submit(increment, 1) == 2
                    assert await client.nthreads() == {WORKER: 2}
    assert scope.cancelled_caught


async def test_connecting_can_be_cancelled(cluster) -> None:
    cluster.dial = never
    with trio.move_on_after(0) as scope:
        async with open_async_client(cluster):
            pytest.fail("it is connected to nothing")
    assert scope.cancelled_caught


async def test_no_scheduler_is_said_as_it_is(cluster) -> None:
    async def dial(*lost) -> Never:
        await trio.lowlevel.checkpoint()
        raise NoScheduler("nothing listens there")

    cluster.dial = dial
    with pytest.raises(NoScheduler, match="nothing listens"):
        async with open_async_client(cluster):
            pytest.fail("it is connected to nothing")
