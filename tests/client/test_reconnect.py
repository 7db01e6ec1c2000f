"""A client whose link is cut, or whose scheduler is gone, against a fake scheduler."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.client.cluster import WORKER, MiniCluster, open_async_client, open_client
from trio_dask import AsyncClient, AsyncFuture, as_completed
from trio_dask.errors import FutureCancelledError, NoScheduler, SchedulerLost
from trio_dask.ids import Incarnation
from trio_dask.protocol import messages as m


def increment(x: int) -> int:
    return x + 1


async def test_a_cut_link_is_a_delay(async_client: AsyncClient, cluster: MiniCluster) -> None:
    cluster.hold = True
    before = async_client.map(increment, range(10))
    await trio.testing.wait_all_tasks_blocked()
    cluster.lose()
    during = async_client.map(increment, range(10, 20))
    assert async_client.status == "connecting" or async_client.status == "running"
    cluster.finish(before[0].key)
    await trio.testing.wait_all_tasks_blocked()
    assert async_client.status == "running"
    assert cluster.dials == [("", 0), ("s1", 0)]
    cluster.finish(*[future.key for future in (*before, *during) if future is not before[0]])
    assert await async_client.gather([*before, *during]) == list(range(1, 21))
    assert max(cluster.computed.values()) == 1


@pytest.mark.parametrize("heard", range(4))
async def test_what_was_under_way_to_the_client_comes_once(
    async_client: AsyncClient, cluster: MiniCluster, heard: int
) -> None:
    cluster.hold = True
    futures = async_client.map(increment, range(3))
    settled: list[AsyncFuture] = []
    for future in futures:
        future.add_done_callback(settled.append)
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(*[future.key for future in futures[:heard]])
    await trio.testing.wait_all_tasks_blocked()
    cluster.lose()
    cluster.finish(*[future.key for future in futures[heard:]])  # which is lost on the way
    assert await async_client.gather(futures) == [1, 2, 3]
    await trio.testing.wait_all_tasks_blocked()
    assert settled == futures


async def test_calls_that_wait_go_on(async_client: AsyncClient, cluster: MiniCluster) -> None:
    asked = []
    cluster.silent = True

    async def ask() -> None:
        asked.append(await async_client.nthreads())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        cluster.lose()
        await trio.testing.wait_all_tasks_blocked()
        assert asked == []
        cluster.silent = False
        cluster.say(m.Reply(cluster.of_type(m.Query)[-1].request, {WORKER: 2}))
    assert asked == [{WORKER: 2}]


async def test_values_come_from_workers_while_there_is_no_scheduler(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.inline = False
    future = async_client.submit(increment, 1)
    await async_client.wait([future])
    cluster.hangs = True
    cluster.lose()
    await trio.testing.wait_all_tasks_blocked()
    assert async_client.status == "connecting"
    assert await future == 2


async def test_another_scheduler_fails_the_futures_of_the_first_at_once_and_is_gone_on_with(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold = True
    (given,) = await async_client.scatter([7])
    old = async_client.submit(increment, 1)
    dependent = async_client.submit(increment, old)
    caught = []

    async def expect(wait: Callable[..., Awaitable[object]], *args: Any) -> None:
        with pytest.raises(SchedulerLost) as error:
            await wait(*args)
        caught.append(str(error.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, old.result)
        nursery.start_soon(expect, async_client.gather, [dependent])
        nursery.start_soon(expect, async_client.wait_for_workers, 5)
        await trio.testing.wait_all_tasks_blocked()
        cluster.become_another("s2")
    assert len(caught) == 3
    assert all("s1" in text and "s2" in text for text in caught)
    assert {future.status for future in (given, old, dependent)} == {"lost"}
    cluster.hold = ()
    again = async_client.submit(increment, 1)
    assert again.key == old.key
    assert await again == 2
    assert cluster.of_type(m.Blob)[-1].digest in cluster.blobs  # the new one had to be given the function
    with pytest.raises(SchedulerLost, match="s1"):
        await old
    assert await async_client.nthreads() == {WORKER: 2}


async def test_what_goes_with_the_old_scheduler_leaves_the_new_one_alone(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    old = async_client.submit(increment, 1)
    assert await old == 2
    cluster.become_another("s2")
    await trio.testing.wait_all_tasks_blocked()
    again = async_client.submit(increment, 1)
    assert await again == 2
    count = len(cluster.received)
    async_client.cancel(old)
    async_client.retry(old)
    async_client.detach(old)
    old.release()
    await trio.testing.wait_all_tasks_blocked()
    assert [kind for kind in map(type, cluster.received[count:]) if kind is not m.Received] == []
    assert again.status == "finished"


async def test_a_scheduler_that_has_given_the_client_up_says_so(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold, cluster.takes_back = True, False
    future = async_client.submit(increment, 1)
    await trio.testing.wait_all_tasks_blocked()
    cluster.lose()
    with pytest.raises(SchedulerLost, match="s1 has given up on this client"):
        await future
    cluster.hold = ()
    assert await async_client.submit(increment, 2) == 3


async def test_nobody_is_called_before_somebody_needs_it(async_client: AsyncClient, cluster: MiniCluster) -> None:
    future = async_client.submit(increment, 1)
    await future
    cluster.say(m.Goodbye("stopped by its operator"))
    await trio.testing.wait_all_tasks_blocked()
    assert async_client.status == "lost"
    async_client.detach(future)
    future.cancel()
    del future
    await trio.testing.wait_all_tasks_blocked()
    assert len(cluster.dials) == 1
    cluster.incarnation = Incarnation("s2")
    assert await async_client.nthreads() == {WORKER: 2}
    assert cluster.dials == [("", 0), ("", 0)]
    assert async_client.status == "running"


async def test_a_scheduler_that_cannot_be_reached_in_time_is_lost(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    await trio.testing.wait_all_tasks_blocked()
    cluster.unreachable = NoScheduler("nothing listens there")
    cluster.lose("the wire was cut")
    with pytest.raises(SchedulerLost, match="the wire was cut; reconnecting failed: nothing listens there"):
        await future


async def test_a_scheduler_that_talks_nonsense_is_not_called_again(
    async_client: AsyncClient, cluster: MiniCluster
) -> None:
    cluster.hold = True
    future = async_client.submit(increment, 1)
    await trio.testing.wait_all_tasks_blocked()
    cluster.say(m.Received(1000))
    with pytest.raises(SchedulerLost, match="1000"):
        await future
    await trio.testing.wait_all_tasks_blocked()
    assert len(cluster.dials) == 1
    assert async_client.status == "lost"


@pytest.mark.parametrize("phase", ["connecting", "lost"])
async def test_leaving_while_there_is_no_scheduler(cluster: MiniCluster, phase: str) -> None:
    cluster.hold = True
    with trio.fail_after(5):
        async with open_async_client(cluster) as client:
            future = client.submit(increment, 1)
            await trio.testing.wait_all_tasks_blocked()
            if phase == "lost":
                cluster.unreachable = NoScheduler("nobody")
            else:
                cluster.hangs = True
            cluster.lose()
            await trio.testing.wait_all_tasks_blocked()
            assert client.status == phase
    assert client.status == "closed"
    assert future.status == ("lost" if phase == "lost" else "cancelled")


async def test_large_arguments_that_were_half_sent(async_client: AsyncClient, cluster: MiniCluster) -> None:
    cluster.hold = True
    data = bytes(3_500_000)
    take = cluster.handlers[m.Blob]

    def take_and_cut_off(message: m.Blob) -> None:
        """Of what the client sends now, two messages arrive."""
        take(message)
        if cluster.handled == 2:
            cluster.lose()

    cluster.handlers[m.Blob] = take_and_cut_off
    future = async_client.submit(len, data)
    await trio.testing.wait_all_tasks_blocked()
    cluster.finish(future.key)
    assert await future == len(data)
    assert len(cluster.of_type(m.Blob)) == 1 + 4


async def test_messages_are_confirmed_now_and_then(async_client: AsyncClient, cluster: MiniCluster) -> None:
    futures = async_client.map(increment, range(1000))
    await async_client.gather(futures)
    await trio.testing.wait_all_tasks_blocked()
    confirmed = cluster.of_type(m.Received)
    assert 1 <= len(confirmed) <= 1 + 1000 // 64
    cluster.say(m.Received(cluster.handled))
    await trio.testing.wait_all_tasks_blocked()
    assert not async_client.engine.core._resend._kept


def test_blocking_calls_wait_until_the_link_is_back(cluster: MiniCluster) -> None:
    cluster.hold = True
    with open_client(cluster) as client:
        futures = client.map(increment, range(5))
        results = []
        thread = threading.Thread(target=lambda: results.append(client.gather(futures)))
        thread.start()
        client.wait_for_workers(1)
        cluster.from_thread(cluster.lose)
        client.wait_for_workers(1)
        assert not results
        cluster.from_thread(cluster.finish, *[future.key for future in futures])
        thread.join(10)
        assert results == [[1, 2, 3, 4, 5]]


def test_a_blocking_client_goes_on_with_another_scheduler(cluster: MiniCluster) -> None:
    cluster.hold = True
    with open_client(cluster) as client:
        futures = client.map(increment, range(3))
        client.wait_for_workers(1)
        cluster.from_thread(cluster.become_another, "s2")
        for future in as_completed(futures):
            with pytest.raises(SchedulerLost, match=r"s1 .* s2"):
                future.result()
        cluster.hold = ()
        assert client.gather(client.map(increment, range(3))) == [1, 2, 3]
    assert all(future.status == "lost" for future in futures)
    with pytest.raises(SchedulerLost):
        futures[0].result()


def test_closing_while_the_scheduler_is_away(cluster: MiniCluster) -> None:
    cluster.hold = True
    with open_client(cluster) as client:
        future = client.submit(increment, 1)
        client.wait_for_workers(1)
        cluster.hangs = True
        cluster.from_thread(cluster.lose)
    with pytest.raises(FutureCancelledError):
        future.result()


async def test_a_lost_scheduler_and_its_return_are_told_at_once_in_one_line_each(
    async_client: AsyncClient, cluster: MiniCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.unreachable = None
    cluster.lose()
    await trio.testing.wait_all_tasks_blocked()
    said = [record.getMessage() for record in caplog.records if record.name == "trio_dask.client"]
    assert len(said) == 2
    assert said[0].startswith("the scheduler is lost: ")
    assert "the client dials for up to" in said[0]
    assert said[1].startswith("the client is connected again, after 0.")


async def test_giving_up_and_dialling_again_are_told_in_one_line_each(
    async_client: AsyncClient, cluster: MiniCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.unreachable = NoScheduler("nothing listens there")
    cluster.lose()
    await trio.testing.wait_all_tasks_blocked()
    cluster.unreachable = None
    assert await async_client.submit(increment, 1) == 2
    said = [record.getMessage() for record in caplog.records if record.name == "trio_dask.client"]
    assert [line.partition(":")[0].partition(";")[0].partition(",")[0] for line in said] == [
        "the scheduler is lost",
        "the client gives up until the next call",
        "a call needs the scheduler",
        "the client is connected again",
    ]
    assert said[1].endswith(": nothing listens there")
