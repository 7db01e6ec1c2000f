"""A task of the cluster runs here as it ran there, for a debugger."""

import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from tests.untyped_dask import db, delayed
from trio_dask import AsyncClient, Client, LocalCluster, UsageError, open_local_cluster

RAN: list[tuple[threading.Thread, int]] = []
"""The cluster is in this process, and its tasks run in threads of their own."""


def inverse(x: int) -> float:
    RAN.append((threading.current_thread(), x))
    return 1 / x


async def later(x: int) -> int:
    await trio.lowlevel.checkpoint()
    return x + 1


async def never(x: int) -> float:
    await trio.lowlevel.checkpoint()
    return x / 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, 2, processes=False) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with open_local_cluster(1, 2, processes=False) as cluster, cluster.get_client() as client:
        yield client


def test_the_task_that_made_others_fail_runs_here(client: Client) -> None:
    failed = client.submit(inverse, client.submit(int, 0))
    last = client.submit(sum, [failed, client.submit(inverse, 1)])
    with pytest.raises(ZeroDivisionError) as caught:
        client.recreate_error_locally(last)
    assert [x for thread, x in RAN if thread is threading.current_thread()] == [0]
    assert caught.traceback[-1].name == "inverse"
    assert last.status == "error"


def test_blocks_of_graphs_run_here_with_their_inputs(client: Client) -> None:
    bag = db.from_sequence([2, 0], npartitions=2).map(inverse)
    with pytest.raises(ZeroDivisionError):
        client.recreate_error_locally(client.persist(bag))
    total = client.compute(delayed(sum)([delayed(inverse)(2), delayed(inverse)(4)]))
    assert total.result() == client.recreate_task_locally(total) == 0.75


def test_what_has_not_failed_or_has_no_call_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="none of these futures has failed"):
        client.recreate_error_locally(client.submit(inverse, 1))
    with pytest.raises(UsageError, match="no call of"):
        client.recreate_task_locally(client.scatter(5))


def test_an_async_function_runs_here(client: Client) -> None:
    assert client.recreate_task_locally(client.submit(later, 1)) == 2


async def test_tasks_run_here_under_trio(async_client: AsyncClient) -> None:
    assert await async_client.recreate_task_locally(async_client.submit(later, 1)) == 2
    with pytest.raises(ZeroDivisionError):
        await async_client.recreate_error_locally(async_client.submit(never, 1))
