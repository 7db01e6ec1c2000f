"""The default client of a Trio program: an `AsyncClient`, in its block."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster, open_async_client, open_client
from tests.untyped_dask import delayed
from tests.untyped_dask import whole as dask
from trio_dask import (
    AsyncClient,
    AsyncLock,
    Client,
    LocalCluster,
    MemorySampler,
    default_client,
    get_client,
    get_task_metadata,
    get_task_stream,
    performance_report,
    progress,
    temp_default_client,
)
from trio_dask.client import default_clients
from trio_dask.errors import UsageError


def three() -> int:
    return 3


async def test_an_async_client_is_the_default_one_in_its_block_alone() -> None:
    async with AsyncClient(n_workers=0, processes=False) as client:
        assert get_client() is client
        assert default_client() is client
        assert Client.current() is AsyncClient.current() is client
        assert AsyncLock("a lock").client is client
        async with AsyncClient(client.cluster, set_as_default=False) as other:
            assert get_client() is client
            with other.as_current():
                assert get_client() is other
                assert Client.current(allow_global=False) is other
            with temp_default_client(other):
                assert get_client() is other
    with pytest.raises(ValueError, match="no client found"):
        get_client()
    with pytest.raises(ValueError, match="as_current"):
        Client.current(allow_global=False)


async def test_a_trio_task_gets_the_client_for_trio_and_a_plain_thread_the_one_that_blocks() -> None:
    async with open_async_client(MiniCluster()) as for_trio:
        default_clients.remember(for_trio)
        assert await trio.to_thread.run_sync(get_client) is for_trio
        with ExitStack() as opened:
            opened.callback(default_clients.forget, for_trio)
            blocking = await trio.to_thread.run_sync(opened.enter_context, open_client(MiniCluster()))
            default_clients.remember(blocking)
            assert get_client() is for_trio
            assert await trio.to_thread.run_sync(get_client) is blocking
            with for_trio.as_current():
                assert await trio.to_thread.run_sync(get_client) is blocking
            await trio.to_thread.run_sync(opened.close)


async def test_collections_compute_in_threads_and_persist_but_never_block_the_loop() -> None:
    async with AsyncClient(n_workers=1, threads_per_worker=1, processes=False) as client:
        collection = delayed(three)()
        with pytest.raises(RuntimeError, match=r"await client\.compute"):
            collection.compute()
        assert await trio.to_thread.run_sync(collection.compute) == 3
        kept = collection.persist()
        assert client.futures_of(kept)
        assert await client.compute(kept) == 3
    assert dask.config.get("scheduler", None) is None


async def test_a_client_without_an_address_has_a_cluster_of_its_own_for_its_block() -> None:
    async with AsyncClient(n_workers=2, threads_per_worker=1, processes=False) as client:
        assert len(await client.nthreads()) == 2
        assert await client.submit(three) == 3
        assert len(client.cluster.workers) == 2
        await client.aclose()
        assert client.status == "closed"
        with pytest.raises(Exception, match="closed"):
            _ = client.cluster.scheduler_address


def test_options_of_a_cluster_and_other_forms_are_refused_where_they_mean_nothing() -> None:
    with pytest.raises(TypeError, match=r"n_workers.*there is a cluster already"):
        AsyncClient("tcp://h:1", n_workers=2)
    with pytest.raises(UsageError, match="Client is the one that blocks"):
        AsyncClient("tcp://h:1", asynchronous=False)


async def test_what_the_block_raises_comes_out_as_it_is_and_ends_the_own_cluster() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with AsyncClient(n_workers=1, threads_per_worker=1, processes=False) as client:
            raise KeyError("mine")
    assert client.status == "closed"


async def test_a_task_that_outlives_the_block_finds_the_client_around_it() -> None:
    found: list[object] = []
    leaves = trio.Event()

    async def look() -> None:
        await leaves.wait()
        found.append(get_client())

    async with AsyncClient(n_workers=0, processes=False) as outer, trio.open_nursery() as nursery:
        async with AsyncClient(outer.cluster):
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
        leaves.set()
    assert found == [outer]


async def test_a_blocking_form_says_what_to_use_under_trio(tmp_path: Path) -> None:
    async with AsyncClient(n_workers=0, processes=False) as client:
        blocks = performance_report(tmp_path / "report.html"), get_task_stream(), get_task_metadata()
        for block in (*blocks, MemorySampler().sample()):
            with pytest.raises(RuntimeError, match=r"blocks.*`async with`$"):
                block.__enter__()
        with pytest.raises(RuntimeError, match=r"`async for`$"):
            next(client.as_completed([]))
        with pytest.raises(RuntimeError, match=r"`await client\.progress\(\.\.\.\)`$"):
            progress([])
        with pytest.raises(RuntimeError, match=r"`open_local_cluster`$"):
            LocalCluster()
