"""`AsyncClient` against a cluster that stands where the connection would."""

import gc
import operator
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Never

import pytest
import trio
import trio.testing
from dask.delayed import delayed

from tests.client.cluster import WORKER, MiniCluster, open_async_client
from trio_dask import AsyncClient, AsyncFuture, wait
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


def increment(x: int, by: int = 1) -> int:
    return x + by


def fail(x: object) -> Never:
    raise ValueError(x)


async def test_a_call_gives_its_result(async_client: AsyncClient) -> None:
    future = async_client.submit(increment, 1, by=10)
    assert await future == 11
    assert await future.result() == 11
    assert future.done()
    assert future.status == "finished"
    assert not future.cancelled()
    assert await future.exception() is None
    assert future.type is int


def test_a_client_says_what_it_is() -> None:
    client = AsyncClient("node7", name="me")
    assert repr(client) == "<AsyncClient me: connecting, scheduler not found yet>"
    client.engine.address = "tcp://node7:8786"
    assert repr(client) == "<AsyncClient me: connecting, scheduler tcp://node7:8786>"


async def test_futures_are_dependencies_wherever_they_stand(async_client: AsyncClient, cluster: MiniCluster) -> None:
    one, two = async_client.submit(increment, 0), async_client.submit(increment, 1)
    found = async_client.submit(lambda x: x, {"a": [one, (two, {3})], "b": {"c": one}})
    assert await found == {"a": [1, (2, {3})], "b": {"c": 1}}
    assert set(cluster.of_type(m.Submit)[-1].dependencies[0]) == {one.key, two.key}


async def test_the_same_call_is_computed_once(async_client: AsyncClient, cluster: MiniCluster) -> None:
    first, second = async_client.submit(increment, 5), async_client.submit(increment, 5)
    assert first.key == second.key
    assert [await first, await second] == [6, 6]
    assert cluster.computed[first.key] == 1
    assert async_client.submit(increment, 5, pure=False).key != first.key


async def test_map_sends_its_function_once_and_few_messages(async_client: AsyncClient, cluster: MiniCluster) -> None:
    futures = async_client.map(increment, range(10_000))
    assert await async_client.gather(futures) == list(range(1, 10_001))
    assert len(cluster.of_type(m.Blob)) == 1
    assert len(cluster.of_type(m.Submit)) <= 10


async def test_map_takes_several_iterables_and_keywords(async_client: AsyncClient) -> None:
    assert await async_client.gather(async_client.map(operator.add, [1, 2], [10, 20])) == [11, 22]
    assert await async_client.gather(async_client.map(increment, iter([1, 2]), by=5)) == [6, 7]
    big = list(range(1000))
    assert await async_client.gather(async_client.map(lambda x, table: table[x], [3, 4], table=big)) == [3, 4]
    named = async_client.map(increment, [1, 2], key=["one", "two"])
    assert [future.key for future in named] == ["one", "two"]
    assert async_client.map(increment, [7], key="prefix")[0].key.startswith("prefix-")


async def test_submits_of_one_burst_travel_in_one_message(async_client: AsyncClient, cluster: MiniCluster) -> None:
    futures = [async_client.submit(increment, i) for i in range(100)]
    await async_client.gather(futures)
    assert [len(message.keys) for message in cluster.of_type(m.Submit)] == [100]


async def test_options_reach_the_scheduler(async_client: AsyncClient, cluster: MiniCluster) -> None:
    options: dict[str, Any] = {
        "workers": "w",
        "allow_other_workers": True,
        "resources": {"GPU": 1},
        "retries": 2,
        "priority": -3,
        "time_limit": "1 min",
    }
    await async_client.submit(increment, 1, **options)
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
async def test_wrong_options_are_refused_at_the_call(async_client: AsyncClient, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        async_client.submit(increment, 1, **options)
    await trio.lowlevel.checkpoint()


class Point(NamedTuple):
    x: object
    y: object


async def test_gather_keeps_the_shape(async_client: AsyncClient) -> None:
    a, b = async_client.map(increment, [0, 1])
    nested = {"list": [a, [b, 5]], "tuple": (a, b), "set": {a, b}, "named": Point(a, "y"), "plain": None}
    assert await async_client.gather(nested) == {
        "list": [1, [2, 5]],
        "tuple": (1, 2),
        "set": {1, 2},
        "named": Point(1, "y"),
        "plain": None,
    }
    assert await async_client.gather(a) == 1
    assert await async_client.gather(iter([a, b])) == [1, 2]
    assert await async_client.gather([]) == []


async def test_scatter_keeps_the_shape(async_client: AsyncClient) -> None:
    for shape in (Point(1, 2), (1, 2), [1, 2], {"x": 1, "y": 2}, {1, 2}):
        futures = await async_client.scatter(shape)
        assert type(futures) is type(shape)
        assert await async_client.gather(futures) == shape
    assert (await async_client.scatter(Point(1, 2))).x.key == (await async_client.scatter([1])).pop().key


async def test_gather_raises_or_skips(async_client: AsyncClient) -> None:
    good, bad = async_client.submit(increment, 0), async_client.submit(fail, "boom")
    with pytest.raises(ValueError, match="boom"):
        await async_client.gather([good, bad])
    assert await async_client.gather([good, bad, (bad, 2)], errors="skip") == [1, (2,)]
    assert await async_client.gather({"good": good, "bad": bad}, errors="skip") == {"good": 1}
    assert await async_client.gather(bad, errors="skip") is None
    wrong: Any = "ignore"
    with pytest.raises(UsageError):
        await async_client.gather([good], errors=wrong)


async def test_gather_does_not_wait_for_others_once_one_has_failed(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold = ("increment",)
    slow = async_client.submit(increment, 0)
    with trio.fail_after(5), pytest.raises(ValueError, match="boom"):
        await async_client.gather([slow, async_client.submit(fail, "boom")])
    assert slow.state.readers is None


async def test_a_failure_arrives_whole_and_fresh_each_time(async_client: AsyncClient) -> None:
    future = async_client.submit(increment, async_client.submit(fail, "boom"))
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
        ("refused", {}, FutureCancelledError),
        ("something new", {}, RemoteError),
    ],
)
async def test_each_kind_of_failure_has_its_exception(
    async_client: AsyncClient, cluster: MiniCluster, kind: str, details: dict[str, list[str]], expected: type[Exception]
) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    await trio.testing.wait_all_tasks_blocked()
    cluster.say(m.KeyFailed(future.key, future.key, kind, None, "why", details))
    with pytest.raises(expected) as caught:
        await future
    assert all(line in str(caught.value) for line in details.get("deaths", ["why"]))


async def test_large_results_are_fetched_from_workers(async_client: AsyncClient, cluster: MiniCluster) -> None:
    cluster.inline = False
    futures = async_client.map(increment, range(2000))
    assert await async_client.gather(futures) == list(range(1, 2001))
    assert cluster.channels <= 2  # and kept for the next keys


async def test_two_readers_of_an_array_do_not_share_memory(async_client: AsyncClient) -> None:
    np = pytest.importorskip("numpy")
    (future,) = await async_client.scatter([np.zeros(10_000)])
    results = []

    async def read() -> None:
        results.append(await future)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(read)
    results[0][:] = 1
    assert results[1].sum() == 0


async def test_a_holder_that_is_gone_is_reported_and_another_found(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    await trio.testing.wait_all_tasks_blocked()
    cluster.tasks[future.key], cluster.values[future.key] = None, 2
    cluster.inline = False
    cluster.say(m.KeyReady(future.key, 100_000, "int", None, ("tcp://gone:1",)))
    assert await future == 2
    assert m.FetchFailed(future.key, "tcp://gone:1") in cluster.received


async def test_a_kept_channel_that_its_worker_has_closed_is_replaced(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.inline = False
    assert await async_client.submit(increment, 1) == 2
    cluster.hang_up()
    assert await async_client.submit(increment, 2) == 3
    assert cluster.channels == 2
    assert not cluster.of_type(m.FetchFailed)


async def test_a_value_that_nobody_can_deliver_is_an_error_in_the_end(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.inline = False
    future = async_client.submit(increment, 1)
    cluster.absent.add(future.key)
    with trio.fail_after(5), pytest.raises(ClusterError, match="no longer holds it"):
        await future


async def test_inline_values_beyond_the_budget_are_fetched_again(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    async_client.engine.core._inline_budget = 100
    futures = async_client.map(increment, range(200))
    await async_client.wait(futures)
    assert sum(future.state.value is not None for future in futures) < 50
    assert await async_client.gather(futures) == list(range(1, 201))


async def test_values_arriving_while_they_are_gathered_need_no_budget(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    async_client.engine.core._inline_budget = 100
    assert await async_client.gather(async_client.map(increment, range(1000))) == list(range(1, 1001))
    assert cluster.channels == 0


async def test_dropped_futures_are_released_once_nobody_holds_them(
    async_client: AsyncClient, cluster: MiniCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_dask.client.outgoing.DELAY_S", 0)  # else the release may wait for company
    first, second = async_client.submit(increment, 1), async_client.submit(increment, 1)
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
    assert async_client.engine.core.states == {}


async def test_a_released_key_can_be_another_task_at_once(async_client: AsyncClient, cluster: MiniCluster) -> None:
    """What the scheduler said about the first task must not settle the second."""
    cluster.hold = True
    async_client.submit(increment, 1, key="x")
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    stale = m.KeyReady("x", 1, "int", b"stale", ())
    async_client.submit(increment, 1, key="y")
    cluster.say(stale)  # under way while the client submits anew
    second = async_client.submit(increment, 41, key="x")
    await trio.testing.wait_all_tasks_blocked()
    assert not second.done()
    cluster.finish("x")
    assert await second == 42


async def test_one_key_for_two_tasks_is_refused(async_client: AsyncClient, cluster: MiniCluster) -> None:
    first = async_client.submit(increment, 1, key="x")
    with pytest.raises(KeyConflict):
        async_client.submit(increment, 2, key="x")
    assert async_client.submit(increment, 1, key="x").state is first.state
    assert await first == 2


async def test_cancelling_settles_at_once_and_the_key_can_be_used_again(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    async_client.cancel(future)
    assert future.cancelled()
    again = async_client.submit(increment, 1)
    assert again.status == "pending"
    with pytest.raises(FutureCancelledError):
        await future
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(again.key)
    assert await again == 2
    assert cluster.of_type(m.Cancel) == [m.Cancel((future.key,), False)]


async def test_retry_runs_a_failed_task_again(async_client: AsyncClient, cluster: MiniCluster) -> None:
    future = async_client.submit(fail, 1)
    with pytest.raises(ValueError, match="1"):
        await future
    future.retry()
    assert future.status == "pending"
    with pytest.raises(ValueError, match="1"):
        await future
    assert cluster.computed[future.key] == 2


async def test_a_result_can_become_pending_and_finish_again(async_client: AsyncClient, cluster: MiniCluster) -> None:
    cluster.inline = False
    future = async_client.submit(increment, 1)
    await async_client.wait(future)
    cluster.say(m.KeyPending(future.key))
    await trio.testing.wait_all_tasks_blocked()
    assert not future.done()
    cluster.finish(future.key)
    assert await future == 2


async def test_timeouts(
    async_client: AsyncClient, cluster: MiniCluster, autojump_clock: trio.testing.MockClock
) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    with pytest.raises(TimeoutError):
        await future.result(timeout="5s")
    with pytest.raises(TimeoutError):
        await future.exception(timeout=1)
    with pytest.raises(TimeoutError):
        await async_client.wait([future], timeout=1)
    with pytest.raises(TimeoutError):
        await async_client.wait_for_workers(2, timeout=3)
    with pytest.raises(TimeoutError):
        async for _ in async_client.as_completed([future], timeout=2):
            pass
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(future.key)
    assert await future == 2


async def test_a_cancelled_wait_leaves_nothing_behind(async_client: AsyncClient, cluster: MiniCluster) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    with trio.move_on_after(0):
        await future
    with trio.move_on_after(0):
        await async_client.wait(future)
    assert future.state.readers is None
    assert future.state.waiters is None


async def test_wait_for_the_first_or_for_all(async_client: AsyncClient, cluster: MiniCluster) -> None:
    cluster.hold = ("fail",)
    slow, quick = async_client.submit(fail, 1), async_client.submit(increment, 1)
    done, not_done = await async_client.wait([slow, quick], return_when=FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})
    cluster.finish(slow.key)
    assert await async_client.wait([slow, quick]) == ({slow, quick}, set())  # an error is an end like any other
    slow.cancel()
    with pytest.raises(FutureCancelledError):
        await async_client.wait([slow])


async def test_as_completed_follows_the_order_of_completion_and_grows(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold = True
    futures = [async_client.submit(increment, i) for i in range(4)]
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(futures[2].key)
    completed = async_client.as_completed(futures[:3])
    assert await anext(completed) is futures[2]
    completed.add(futures[3])
    assert completed.count() == 3
    assert not completed.is_empty()
    cluster.finish(futures[3].key, futures[0].key)
    assert [await anext(completed), await anext(completed)] == [futures[3], futures[0]]
    cluster.finish(futures[1].key)
    assert [future async for future in completed] == [futures[1]]
    assert completed.is_empty()


async def test_as_completed_with_results_and_errors(async_client: AsyncClient) -> None:
    good, bad = async_client.submit(increment, 0), async_client.submit(fail, "boom")
    await async_client.wait([good, bad])
    pairs = dict([pair async for pair in async_client.as_completed([good, bad], with_results=True, raise_errors=False)])
    assert pairs[good] == 1
    kind, error, traceback = pairs[bad]
    assert kind is ValueError
    assert str(error) == "boom"
    assert traceback is error.__traceback__
    with pytest.raises(ValueError, match="boom"):
        async for _ in async_client.as_completed([bad], with_results=True):
            pass


async def test_as_completed_in_batches(async_client: AsyncClient, cluster: MiniCluster) -> None:
    futures = async_client.map(increment, range(10))
    await async_client.wait(futures)
    batches = [batch async for batch in async_client.as_completed(futures).batches()]
    assert [future for batch in batches for future in batch] == futures


async def test_callbacks_run_in_the_loop_and_cannot_harm_it(
    async_client: AsyncClient, cluster: MiniCluster, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[AsyncFuture] = []
    cluster.hold = True
    future = async_client.submit(increment, 1)
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


async def test_graphs(async_client: AsyncClient, cluster: MiniCluster) -> None:
    graph = {
        "x": 1,
        "alias": "x",
        ("t", 0): (increment, "x"),
        "list": ["x", (increment, ("t", 0)), [10]],
        "nested": (operator.add, (increment, (increment, "alias")), ("t", 0)),
        "data": {"a": 1},
        "unused": (fail, 1),
    }
    assert await async_client.get(graph, "nested") == 5
    assert await async_client.get(graph, [["x", ("t", 0)], "list", "data"]) == [[1, 2], [1, 3, [10]], {"a": 1}]
    assert not any("fail" in key for key in cluster.computed)
    gc.collect()
    with trio.fail_after(5):
        while +cluster.wanted:  # noqa: ASYNC110 - keys are let go a little later, and nothing tells
            await trio.sleep(0.01)


async def test_a_graph_that_goes_in_circles_is_refused(async_client: AsyncClient) -> None:
    with pytest.raises(UsageError, match="'a' -> 'b' -> 'a'"):
        await async_client.get({"a": (increment, "b"), "b": (increment, "a")}, "a")


async def test_a_graph_can_use_what_is_in_the_cluster(async_client: AsyncClient) -> None:
    future = async_client.submit(increment, 1, key="held")
    assert await async_client.get({"y": (increment, future)}, "y") == 3
    assert await async_client.get({}, "held") == 2
    with pytest.raises(KeyError, match=r"'nobody knows it' is neither a key of the graph \(which is empty\) nor"):
        await async_client.get({}, "nobody knows it")


async def test_scatter_keeps_the_shape_and_dedupes(async_client: AsyncClient, cluster: MiniCluster) -> None:
    futures = await async_client.scatter({"a": 1, "b": [2]})
    assert {name: future.key for name, future in futures.items()} == {"a": "a", "b": "b"}
    assert await async_client.gather(futures) == {"a": 1, "b": [2]}
    one, two = await async_client.scatter(("equal", "equal"))
    assert one.key == two.key
    assert (await async_client.scatter("equal", hash=False)).key != one.key
    assert await async_client.submit(len, one) == 5
    assert type(await async_client.scatter({1, 2})) is set
    cluster.handlers[m.Query] = lambda message: cluster.say(m.Reply(message.request, {}))
    with pytest.raises(UsageError, match="no worker"):
        await async_client.scatter([5], workers="nobody")


async def test_questions(async_client: AsyncClient) -> None:
    future = async_client.submit(increment, 1)
    await future
    assert await async_client.who_has([future]) == {future.key: (WORKER,)}
    assert await async_client.has_what() == {WORKER: (future.key,)}
    assert await async_client.processing() == {WORKER: ()}
    assert await async_client.nthreads() == await async_client.ncores() == {WORKER: 2}
    assert await async_client.nbytes() == {"increment": 28}
    assert await async_client.nbytes([future], summary=False) == {future.key: 28}
    assert WORKER in (await async_client.scheduler_info())["workers"]
    await async_client.wait_for_workers(1)


async def test_run_calls_a_function_in_each_worker(async_client: AsyncClient) -> None:
    assert await async_client.run(increment, 1, by=4) == {WORKER: 5}
    assert await async_client.run(increment, 1, workers="w") == {WORKER: 2}
    with pytest.raises(ValueError, match="boom"):
        await async_client.run(fail, "boom")
    returned = await async_client.run(fail, "boom", on_error="return")
    assert returned is not None
    assert isinstance(returned[WORKER], ValueError)
    assert await async_client.run(fail, "boom", on_error="ignore") == {}
    with pytest.raises(UsageError, match="never unpickles"):
        await async_client.run_on_scheduler(increment, 1)


async def test_restart_cancels_everything_here(async_client: AsyncClient, cluster: MiniCluster) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    await async_client.restart()
    assert future.cancelled()
    assert await async_client.scheduler_info()


@pytest.mark.parametrize("announced", [True, False])
async def test_a_lost_scheduler_fails_everything_at_once(
    async_client: AsyncClient, cluster: MiniCluster, announced: bool
) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    caught = []

    async def expect(wait: Callable[..., Awaitable[object]], *args: Any) -> None:
        with pytest.raises(SchedulerLost) as error:
            await wait(*args)
        caught.append(str(error.value))

    async def iterate() -> None:
        assert [f async for f in async_client.as_completed([future])] == [future]
        caught.append("iterated")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, future.result)
            nursery.start_soon(expect, async_client.gather, [future])
            nursery.start_soon(expect, async_client.wait, [future])
            nursery.start_soon(expect, async_client.wait_for_workers, 5)
            nursery.start_soon(iterate)
            await trio.testing.wait_all_tasks_blocked()
            cluster.unreachable = NoScheduler("nobody is there")
            if announced:
                cluster.say(m.Goodbye("stopped by its operator"))
            else:
                cluster.lose("the wire was cut")
    assert len(caught) == 5
    assert all(("operator" if announced else "wire") in text for text in caught if text != "iterated")
    assert future.status == "lost"
    assert async_client.status == "lost"
    assert len(cluster.dials) == (1 if announced else 2)
    with pytest.raises(SchedulerLost, match="nobody"):  # what is asked now is worth another try
        await async_client.submit(increment, 1)
    with pytest.raises(SchedulerLost, match="nobody"):
        await async_client.nthreads()
    cluster.unreachable, cluster.hold = None, ()
    assert await async_client.submit(increment, 1) == 2
    assert async_client.status == "running"
    assert future.status == "lost"


async def test_leaving_says_goodbye_after_what_was_submitted(cluster: MiniCluster) -> None:
    async with open_async_client(cluster) as client:
        future = client.submit(increment, 1)
        client.detach(future)
    assert [type(message) for message in cluster.received] == [m.Blob, m.Submit, m.FireAndForget, m.Goodbye]
    assert future.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        client.submit(increment, 2)


async def test_the_body_s_exception_leaves_the_block_as_it_is(cluster: MiniCluster) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_async_client(cluster):
            raise ZeroDivisionError
    assert type(cluster.received[-1]) is m.Goodbye


async def test_cancelling_the_body_says_goodbye(cluster: MiniCluster) -> None:
    with trio.CancelScope() as scope:
        async with open_async_client(cluster):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert type(cluster.received[-1]) is m.Goodbye


async def test_a_cancelled_body_can_use_the_client_to_clean_up(cluster: MiniCluster) -> None:
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


async def test_connecting_can_be_cancelled(cluster: MiniCluster) -> None:
    cluster.hangs = True
    with trio.move_on_after(0) as scope:
        async with open_async_client(cluster):
            pytest.fail("it is connected to nothing")
    assert scope.cancelled_caught


async def test_no_scheduler_is_said_as_it_is(cluster: MiniCluster) -> None:
    cluster.unreachable = NoScheduler("nothing listens there")
    with pytest.raises(NoScheduler, match="nothing listens"):
        async with open_async_client(cluster):
            pytest.fail("it is connected to nothing")


async def test_wait_awaits_what_belongs_to_an_async_client(async_client: AsyncClient) -> None:
    futures = async_client.map(operator.neg, range(3))
    assert await wait(futures) == (set(futures), set())
    assert await wait(futures[0], return_when=FIRST_COMPLETED) == ({futures[0]}, set())
    assert await wait([]) == (set(), set())
    persisted = async_client.persist(delayed(operator.neg)(3))
    assert len((await wait(persisted)).done) == 1
