"""What takes futures takes dask's collections as well, and finds futures wherever they are."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from tests.client.cluster import MiniCluster, open_client
from tests.untyped_dask import da, db, dd, delayed, flatten, pd
from tests.untyped_dask import whole as dask
from tests.waiting import until
from trio_dask import (
    AsyncClient,
    Client,
    Future,
    FutureCancelledError,
    FutureLost,
    LocalCluster,
    SchedulerLost,
    as_completed,
    fire_and_forget,
    futures_of,
    get_worker,
    open_local_cluster,
    wait,
)


def inc(x: Any) -> Any:
    return x + 1


def slow_inc(x: Any) -> Any:
    time.sleep(0.02)
    return x + 1


def fail_once(worker_state_name: str) -> int:
    state = get_worker().state
    if state.setdefault(worker_state_name, 0) == 0:
        state[worker_state_name] = 1
        raise ValueError("the first time")
    return 7


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with LocalCluster(2, 1, processes=False) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncClient]:
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        yield client


@dataclass
class Pair:
    one: Any
    other: Any


def test_futures_are_found_in_containers_dataclasses_and_collections_each_once_in_order(client: Client) -> None:
    x, y, z = client.map(inc, range(3))
    bag = db.Bag({("b", number): future for number, future in enumerate([x, y])}, "b", 2)
    assert futures_of(5) == []
    assert futures_of(x) == [x]
    assert futures_of([x, {"a": (y, {z})}, x]) == [x, y, z]
    assert futures_of(Pair(z, [Pair(y, None)])) == [z, y]
    assert futures_of([bag, z], client=client) == client.futures_of([bag, z]) == [x, y, z]
    assert futures_of(db.range(3, npartitions=1)) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: db.range(4, npartitions=2),
        lambda: da.ones(10, chunks=5) + 1,
        lambda: dd.from_pandas(pd.DataFrame({"x": range(4)}), npartitions=2),
        lambda: delayed(inc)(1),
    ],
    ids=["bag", "array", "dataframe", "delayed"],
)
def test_the_futures_of_a_persisted_collection_are_its_blocks(make: Callable[[], Any], client: Client) -> None:
    collection = make()
    kept = client.persist(collection)
    futures = futures_of(kept)
    assert len(futures) == len(list(flatten(kept.__dask_keys__())))
    done, not_done = wait(kept)
    assert done == set(futures)
    assert not not_done
    assert {key: len(holders) for key, holders in client.who_has(kept).items()} == {future.key: 1 for future in futures}
    assert len(client.gather(futures)) == len(futures)


def test_who_has_of_a_collection_without_futures_is_empty(client: Client) -> None:
    future = client.submit(inc, 1)
    wait(future)
    assert client.who_has(db.range(3, npartitions=1)) == {}
    assert client.nbytes(db.range(3, npartitions=1)) == {}


def test_cancelling_a_collection_cancels_its_futures_and_using_it_raises(client: Client) -> None:
    kept = client.persist(db.range(4, npartitions=2).map(slow_inc))
    futures = futures_of(kept)
    client.cancel(kept)
    assert [future.status for future in futures] == ["cancelled"] * 2
    with pytest.raises(FutureCancelledError):
        futures_of(kept)
    with pytest.raises(FutureCancelledError):
        wait(kept)
    with pytest.raises(FutureCancelledError):
        client.compute(kept).result()


def test_retrying_a_collection_runs_its_failed_blocks_again(client: Client) -> None:
    kept = client.persist(delayed(fail_once)("retried", pure=False), workers=[0])
    wait(kept)
    futures = futures_of(kept)
    assert futures[0].status == "error"
    client.retry(kept)
    assert client.gather(futures) == [7]


def test_releasing_the_last_collection_releases_its_blocks(client: Client) -> None:
    kept = client.persist(db.range(4, npartitions=2))
    keys = {future.key for future in futures_of(kept)}
    wait(kept)
    assert keys <= set(client.who_has())
    del kept
    until(lambda: not keys & set(client.who_has()))


def test_blocks_of_a_collection_come_as_they_are_completed(client: Client) -> None:
    kept = client.persist(db.range(6, npartitions=3).map(inc))
    results = [value for _, value in as_completed(kept, with_results=True)]
    assert sorted(map(sorted, results)) == [[1, 2], [3, 4], [5, 6]]


def test_a_forgotten_collection_is_computed_all_the_same(client: Client) -> None:
    """The task writes where another can read it."""

    def note(x: int) -> None:
        get_worker().state["forgotten"] = x

    kept = client.persist(delayed(note)(5))
    fire_and_forget(kept)
    del kept
    until(lambda: 5 in (client.run(lambda dask_worker: dask_worker.state.get("forgotten")) or {}).values())


def test_normalizing_puts_futures_in_the_place_of_tasks_and_changes_nothing_else(client: Client) -> None:
    x = delayed(inc)(1)
    y = delayed(inc)(x)
    z = delayed(inc)(y)
    kept = client.persist(y)
    before = dict(z.__dask_graph__())
    normalized = client.normalize_collection(z)
    graph = dict(normalized.__dask_graph__())
    assert isinstance(graph[y.key], Future)
    assert set(graph) == {z.key, y.key}
    assert dict(z.__dask_graph__()) == before
    assert normalized.compute() == z.compute() == 4
    del kept
    assert client.normalize_collection(x) is x
    with pytest.raises(TypeError, match="takes a dask collection"):
        client.normalize_collection([x])


def test_a_normalized_array_and_a_normalized_frame_have_the_same_values(client: Client) -> None:
    array = da.arange(10, chunks=5) + 1
    frame = dd.from_pandas(pd.DataFrame({"x": range(4)}), npartitions=2)
    kept = client.persist(array), client.persist(frame)
    normalized = client.normalize_collection(array.sum())
    assert len(futures_of(normalized)) == 2
    assert normalized.compute() == 55
    again = client.normalize_collection(frame)
    assert len(futures_of(again)) == 2
    assert again.x.sum().compute() == 6
    del kept


def test_futures_in_collections_have_tokens(client: Client) -> None:
    future = client.submit(inc, 1)
    assert dask.base.tokenize(future) == dask.base.tokenize(client.submit(inc, 1))
    assert dask.base.tokenize(future) != dask.base.tokenize(client.submit(inc, 2))


def test_a_task_of_a_cancelled_input_fails_as_cancelled(client: Client) -> None:
    future = client.submit(inc, 1)
    assert future.result() == 2
    client.cancel(future)
    with pytest.raises(FutureCancelledError, match="does not know"):
        client.submit(inc, future).result()


def test_a_task_can_ask_for_its_own_key(client: Client) -> None:
    assert client.submit(lambda: get_worker().get_current_task(), key="myself").result() == "myself"


async def test_get_of_an_async_client_that_does_not_wait_gives_futures_at_once(async_client: AsyncClient) -> None:
    future = async_client.get({"x": (inc, 1)}, "x", sync=False)
    assert await future == 2
    assert await async_client.get({"x": (inc, 1)}, ["x", ["x"]]) == [2, [2]]
    nested = async_client.get({"x": (inc, 1), "y": (inc, "x")}, ["x", ["y"]], sync=False)
    assert await async_client.gather(nested) == [2, [3]]


async def test_collections_under_trio(async_client: AsyncClient) -> None:
    array = da.arange(10, chunks=5)
    assert await async_client.compute(array.sum()) == 45
    assert await async_client.compute([array.sum(), 5], sync=True) == [45, 5]
    kept = async_client.persist(array)
    assert len((await async_client.wait(kept)).done) == 2
    assert len(await async_client.who_has(kept)) == 2
    assert await async_client.compute(kept.sum()) == 45
    async_client.cancel(kept)
    with pytest.raises(FutureCancelledError):
        futures_of(kept)


async def test_a_cancelled_scope_ends_the_waiting_for_a_compute_at_once(async_client: AsyncClient) -> None:
    bag = db.range(10_000, npartitions=1000).map(slow_inc).sum()
    with trio.move_on_after(0.2) as scope:
        await async_client.compute(bag)
    assert scope.cancelled_caught


def test_futures_of_a_lost_scheduler_raise_as_lost_and_as_cancelled() -> None:
    cluster = MiniCluster()
    with open_client(cluster) as client:
        future = client.submit(inc, 1, key="x")
        assert future.result() == 2
        cluster.from_thread(cluster.become_another, "s2")
        with suppress(SchedulerLost):
            client.wait_for_workers(1)
        with pytest.raises(SchedulerLost) as caught:
            futures_of(future)
        assert isinstance(caught.value, FutureLost)
        assert isinstance(caught.value, FutureCancelledError)
        assert "connection to the scheduler" in caught.value.msg
