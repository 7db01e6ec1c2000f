"""Copies of results: as many as wanted, where they are wanted, and evenly spread."""

from collections.abc import Iterator

import pytest

from trio_dask import Client, FutureCancelledError, LocalCluster, UsageError, open_local_cluster


def inc(x: int) -> int:
    return x + 1


def fail() -> None:
    raise ZeroDivisionError("as asked")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(4, 1, processes=False) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


def copies(client: Client, *keys: str) -> list[int]:
    held = client.who_has()
    return [len(held[key]) for key in keys]


def test_results_are_copied_to_as_many_workers_as_wanted_and_surplus_copies_go(client: Client) -> None:
    x, y = client.submit(inc, 1), client.submit(inc, 2)
    client.replicate([x, y], n=3)
    assert copies(client, x.key, y.key) == [3, 3]
    client.replicate([x, y], n=2)
    assert copies(client, x.key, y.key) == [2, 2]
    client.replicate(x)
    assert copies(client, x.key, y.key) == [4, 2]
    client.replicate(x, n=1)
    assert copies(client, x.key) == [1]
    assert client.gather([x, y]) == [2, 3]


def test_copies_go_to_the_named_workers_only(client: Client) -> None:
    future = client.submit(inc, 5, workers=[0])
    client.replicate(future, workers=[1, 2])
    names = {address: worker["name"] for address, worker in client.scheduler_info()["workers"].items()}
    assert {names[address] for address in client.who_has(future)[future.key]} == {0, 1, 2}


def test_replicating_raises_for_what_failed_was_cancelled_or_names_no_worker(client: Client) -> None:
    future = client.submit(inc, 6)
    with pytest.raises(UsageError, match="no worker 'elsewhere'"):
        client.replicate(future, workers=["elsewhere"])
    with pytest.raises(UsageError, match="n must be"):
        client.replicate(future, n=0)
    with pytest.raises(UsageError, match="branching_factor must be"):
        client.replicate(future, branching_factor=0)
    with pytest.raises(ZeroDivisionError):
        client.replicate(client.submit(fail))
    client.cancel(future)
    with pytest.raises(FutureCancelledError):
        client.replicate(future)


def test_values_are_scattered_to_as_many_workers_as_wanted(client: Client) -> None:
    x, y = client.scatter([b"x" * 10, b"y" * 10], broadcast=3)
    assert copies(client, x.key, y.key) == [3, 3]
    everywhere = client.scatter(b"z" * 10, broadcast=True)
    assert copies(client, everywhere.key) == [4]
    again = client.scatter([b"x" * 10, b"z" * 10], broadcast=2)
    assert copies(client, *[future.key for future in again]) == [3, 4], "copies that are there stay"


def test_values_are_scattered_to_as_many_of_the_named_workers_as_wanted(client: Client) -> None:
    names = {address: worker["name"] for address, worker in client.scheduler_info()["workers"].items()}
    x = client.scatter(b"x" * 20, broadcast=True, workers=[1, 3])
    y = client.scatter({"y": b"y" * 20}, broadcast=1, workers=[2], hash=False)["y"]
    held = client.who_has()
    assert [{names[address] for address in held[future.key]} for future in (x, y)] == [{1, 3}, {2}]
    assert client.gather([x, y]) == [b"x" * 20, b"y" * 20]
    with pytest.raises(UsageError, match="broadcast must be"):
        client.scatter(1, broadcast=-1)


def test_results_move_from_full_workers_to_empty_ones(client: Client) -> None:
    futures = client.scatter(list(range(100, 140)), workers=[0])
    client.rebalance(futures)
    held = client.has_what()
    ours = {future.key for future in futures}
    assert [len(ours & set(keys)) for keys in held.values()] == [10, 10, 10, 10]
    assert client.gather(futures) == list(range(100, 140))


def test_only_the_given_results_move_and_only_between_the_given_workers(client: Client) -> None:
    futures = client.scatter(list(range(200, 240)), workers=[0])
    client.rebalance([])
    client.rebalance(workers=[])
    client.rebalance(futures[:2], workers=[0, 1])
    names = {address: worker["name"] for address, worker in client.scheduler_info()["workers"].items()}
    places = [names[address] for future in futures for address in client.who_has(future)[future.key]]
    assert sorted(places) == [0] * 38 + [1] * 2
    with pytest.raises(KeyError, match="nowhere"):
        client.rebalance(workers=["nowhere"])


def test_the_memory_manager_drops_what_tasks_have_left_on_other_workers(client: Client) -> None:
    data = client.scatter(b"data", workers=[0], hash=False)
    client.gather([client.submit(len, data, workers=[worker], pure=False) for worker in (0, 1, 2, 3)])
    assert copies(client, data.key) == [4]
    client.amm.run_once()
    assert copies(client, data.key) == [1]
    assert not client.amm.running()
    client.amm.start()
    assert client.amm.running()
    client.amm.stop()
    assert not client.amm.running()


async def test_data_is_placed_under_trio_as_well() -> None:
    async with open_local_cluster(n_workers=3, processes=False) as cluster, cluster.get_client() as client:
        future = await client.scatter(b"data", broadcast=2)
        await client.replicate(future, n=3, branching_factor=1)
        assert len((await client.who_has(future))[future.key]) == 3
        await client.rebalance()
        await client.amm.run_once()
        assert len((await client.who_has(future))[future.key]) == 3, "replicate asked for them"
        await client.amm.start()
        assert await client.amm.running()
        await client.amm.stop()
