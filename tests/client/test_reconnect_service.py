"""Clients on a real scheduler whose links are cut: broken for both ends, or seemingly alive for the scheduler."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Never

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster, make_engine
from trio_dask import AsyncClient, NoScheduler, SchedulerLost, open_local_cluster
from trio_dask.client.shared_state import Connected, Connection
from trio_dask.comm import ConnectionLost
from trio_dask.config import SchedulerSettings
from trio_dask.scheduler.service import run_scheduler

ADDRESS = "inproc://reconnect"
executed: Counter[int] = Counter()


def connection_of(client: AsyncClient) -> Any:
    """The link of a client that is connected."""
    phase = client.engine.phase
    assert isinstance(phase, Connected)
    return phase.connection


def increment(x: int) -> int:
    executed[x] += 1
    return x + 1


class RunningScheduler:
    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def run(self, task_status: trio.TaskStatus[Any]) -> None:
        with self.scope:
            await run_scheduler(self.settings, task_status=task_status)
        self.ended.set()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()


StartScheduler = Callable[..., Awaitable[RunningScheduler]]


@pytest.fixture
async def start_scheduler(nursery: trio.Nursery) -> StartScheduler:
    """Start a scheduler at an address."""

    async def start(address: str = ADDRESS, **settings: Any) -> RunningScheduler:
        scheduler = RunningScheduler(SchedulerSettings(address=address, **settings))
        await nursery.start(scheduler.run)
        return scheduler

    return start


@pytest.fixture
async def half_open(nursery: trio.Nursery) -> Callable[[AsyncClient], list[Any]]:
    """Let the client of an engine believe that its link is cut, while the scheduler believes that it stands."""
    severed = []

    class Link:
        """Around a connection that goes on when the client has lost it."""

        thread_safe_send = False

        def __init__(self, connection: Any) -> None:
            self.connection = connection
            self.hello, self.goodbye = connection.hello, None
            self.cut = trio.Event()
            severed.append(self)

        async def host(self, task_status: trio.TaskStatus[None]) -> None:
            async with self.connection:
                task_status.started()
                await trio.sleep_forever()

        async def __aenter__(self) -> None:
            await nursery.start(self.host)

        async def __aexit__(self, *error: object) -> None:
            pass

        def send_many_nowait(self, messages: Sequence[Any]) -> None:
            self.connection.send_many_nowait(messages)

        def flush_nowait(self) -> None:
            self.connection.flush_nowait()

        async def batches(self) -> AsyncIterator[Any]:
            batches = self.connection.batches()
            while True:
                with trio.CancelScope() as scope:
                    self.scope = scope
                    batch = await anext(batches)
                if scope.cancelled_caught:
                    raise ConnectionLost("severed")
                yield batch

        async def aclose(self, reason: str = "") -> None:
            await self.connection.aclose(reason)

    def prepare(client: AsyncClient) -> list[Any]:
        dial = client.engine.link._dial

        async def dial_severable(*lost: Any) -> Any:
            return Link(await dial(*lost))

        client.engine.link._dial = dial_severable
        return severed

    return prepare


async def test_a_link_that_is_cut_again_and_again_loses_nothing_and_repeats_nothing() -> None:
    executed.clear()
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        futures = []
        for cut in range(10):
            futures += client.map(increment, range(300 * cut, 300 * cut + 300))
            await trio.sleep(random.random() * 0.003)
            if client.status == "running":
                connection_of(client).abort("cut")
        assert await client.gather(futures) == list(range(1, 3001))
        assert set(executed.values()) == {1}
        assert sorted(await client.scheduler_info()) != []
        key = futures[0].key
        futures.clear()
        with trio.fail_after(10):
            while key in await client.who_has():
                await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_link_that_the_scheduler_still_believes_in_is_taken_over(
    start_scheduler: StartScheduler, half_open: Callable[[AsyncClient], list[Any]]
) -> None:
    await start_scheduler()
    client = AsyncClient(ADDRESS)
    severed = half_open(client)
    async with client:
        future = client.submit(increment, 1)
        assert await client.nthreads() == {}
        severed[0].scope.cancel()
        again = client.submit(increment, 2)
        assert await client.nthreads() == {}
        assert len(severed) == 2
        assert (await client.scheduler_info())["tasks"] == 2
        assert not future.done()
        assert not again.done()


async def test_another_scheduler_at_the_same_address(
    start_scheduler: StartScheduler, autojump_clock: trio.testing.MockClock
) -> None:
    first = await start_scheduler(grace_s=0.0)
    async with AsyncClient(ADDRESS) as client:
        future = client.submit(increment, 1)
        assert await client.nthreads() == {}
        before = client.engine.core.scheduler
        connection_of(client).abort("the wire was cut")  # so it hears no goodbye
        await first.stop()
        await start_scheduler()
        with pytest.raises(SchedulerLost) as caught:
            await future
        after = client.engine.core.scheduler
        assert before != after
        assert before in str(caught.value)
        assert after in str(caught.value)
        again = client.submit(increment, 1)
        assert (await client.scheduler_info())["tasks"] == 1
        assert not again.done()


async def test_a_scheduler_that_stops_says_so_and_is_looked_for_when_it_is_needed(
    start_scheduler: StartScheduler, autojump_clock: trio.testing.MockClock
) -> None:
    first = await start_scheduler()
    async with AsyncClient(ADDRESS, timeout=3) as client:
        future = client.submit(increment, 1)
        assert await client.nthreads() == {}
        first.scope.cancel()
        with pytest.raises(SchedulerLost, match=r"the scheduler closed the connection \(it was stopped\)"):
            await future
        began = trio.current_time()
        with pytest.raises(SchedulerLost, match="nothing listens"):
            await client.nthreads()
        assert 2 < trio.current_time() - began <= 3
        await start_scheduler()
        assert await client.nthreads() == {}


async def test_a_scheduler_that_does_not_come_back_is_lost_after_the_timeout(
    start_scheduler: StartScheduler, autojump_clock: trio.testing.MockClock
) -> None:
    first = await start_scheduler()
    async with AsyncClient(ADDRESS, timeout="7s") as client:
        future = client.submit(increment, 1)
        assert await client.nthreads() == {}
        connection_of(client).abort("the wire was cut")
        first.scope.cancel()
        began = trio.current_time()
        with pytest.raises(TimeoutError, match="within 1 s; it is pending; the client is not connected to a scheduler"):
            await future.result(timeout=1)
        with pytest.raises(SchedulerLost, match="the wire was cut; reconnecting failed: no scheduler at inproc"):
            await future
        assert 5 < trio.current_time() - began <= 7


async def test_a_client_that_vanishes_is_waited_for(
    start_scheduler: StartScheduler, autojump_clock: trio.testing.MockClock
) -> None:
    await start_scheduler()
    async with AsyncClient(ADDRESS) as watcher:
        client = AsyncClient(ADDRESS, timeout=4)
        with trio.CancelScope() as scope:
            async with client:
                future = client.submit(increment, 1)
                await client.nthreads()

                async def fail(*lost: object) -> Never:  # noqa: ASYNC124 - it stands for one that waits
                    raise NoScheduler("not any more")

                client.engine.link._dial = fail
                connection_of(client).abort("vanished")
                with pytest.raises(SchedulerLost, match="not any more"):
                    await future
                scope.cancel()
                await trio.sleep_forever()
        await trio.sleep(13)  # its timeout, and what passes between two pings
        assert (await watcher.scheduler_info())["tasks"] == 1
        await trio.sleep(2)
        assert (await watcher.scheduler_info())["tasks"] == 0


async def test_the_scheduler_file_is_read_again(
    start_scheduler: StartScheduler, autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    path = str(tmp_path / "scheduler.json")
    first = await start_scheduler("inproc://one", scheduler_file=path)
    async with AsyncClient(scheduler_file=path) as client:
        future = client.submit(increment, 1)
        assert await client.nthreads() == {}
        connection_of(client).abort("cut")
        await first.stop()
        await trio.sleep(1)
        (tmp_path / "scheduler.json").write_text("not a file of ours")
        await trio.sleep(1)
        (tmp_path / "scheduler.json").unlink()
        await start_scheduler("inproc://two", scheduler_file=path)
        with pytest.raises(SchedulerLost, match="has taken its place"):
            await future
        assert (await client.scheduler_info())["address"] == "inproc://two"


async def test_a_client_that_breaks_the_protocol_is_not_kept(
    start_scheduler: StartScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    await start_scheduler()
    async with AsyncClient(ADDRESS) as client:
        future = client.submit(increment, 1)
        assert await client.nthreads() == {}
        with pytest.raises(SchedulerLost, match="no such question"):
            await client.engine.ask("what is the meaning of this?")
        assert future.status == "lost"
        assert (await client.scheduler_info())["tasks"] == 0
        assert len((await client.scheduler_info())["clients"]) == 1


async def test_a_client_that_is_cancelled_as_its_connection_comes_leaves_it_to_nobody() -> None:
    cluster = MiniCluster()

    async def dial_and_be_cancelled(lost: str, received: int) -> Connection:
        connection = await cluster.dial(lost, received)
        scope.cancel()
        return connection

    with trio.CancelScope() as scope:
        await make_engine(cluster, dial_and_be_cancelled).link.serve()
    with trio.fail_after(5):
        await cluster.session.over.wait()
