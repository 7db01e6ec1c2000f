"""`client.run(nanny=True)`: functions of users in the processes of nannies, on real workers."""

import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from trio_dask import (
    AsyncClient,
    Client,
    ClusterError,
    LocalCluster,
    Nanny,
    Scheduler,
    SerializationError,
    TaskExited,
    Worker,
)
from trio_dask.nanny.handle import NannyHandle

HERE: dict[str, Any] = {"host": "127.0.0.1"}
PRELOAD = """
def dask_setup(nanny):
    nanny.foo = "set up"
"""
BEGUN, GO_ON = threading.Event(), threading.Event()


class Cluster:
    """A scheduler, a worker under a nanny, and a client."""

    def __init__(self, scheduler: Scheduler, nanny: Nanny, client: AsyncClient) -> None:
        self.scheduler, self.nanny, self.client = scheduler, nanny, client


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with (
        Scheduler(**HERE) as scheduler,
        Nanny(scheduler.address, nthreads=1, name="n", preload_nanny=PRELOAD, **HERE) as nanny,
        AsyncClient(scheduler.address) as client,
    ):
        yield Cluster(scheduler, nanny, client)


def seen(dask_worker: Any) -> tuple[str, str, int]:
    return type(dask_worker).__name__, dask_worker.foo, os.getpid()


async def seen_under_trio(word: str, dask_worker: Any) -> str:
    await trio.lowlevel.checkpoint()
    dask_worker.state["word"] = word
    return f"{word} {dask_worker.name}"


def fail(word: str) -> None:
    raise LookupError(word)


def wait_to_go_on() -> str:
    BEGUN.set()
    assert GO_ON.wait(60)
    return "went on"


async def begun() -> None:
    assert await trio.to_thread.run_sync(BEGUN.wait, 60)


async def test_a_function_gets_the_handle_that_the_modules_of_the_nanny_got(cluster: Cluster) -> None:
    client, where = cluster.client, cluster.nanny.worker_address
    assert await client.run(seen, nanny=True) == {where: (NannyHandle.__name__, "set up", os.getpid())}
    for named in ("n", where, [where]):
        assert await client.run(seen_under_trio, "hello", workers=named, nanny=True) == {where: "hello n"}
    assert await client.run(lambda dask_worker: dask_worker.state, nanny=True) == {where: {"word": "hello"}}
    assert await client.run(os.getpid) == {where: cluster.nanny.pid}
    assert await client.run(os.getpid, workers=[], nanny=True) == {}
    assert await client.run(bytearray, 10**6, nanny=True) == {where: bytearray(10**6)}


async def test_what_a_function_raises_is_raised_returned_or_ignored(cluster: Cluster) -> None:
    client, where = cluster.client, cluster.nanny.worker_address
    with pytest.raises(LookupError, match="no licence"):
        await client.run(fail, "no licence", nanny=True)
    outcomes = await client.run(fail, "no licence", nanny=True, on_error="return")
    assert outcomes is not None
    assert isinstance(outcomes[where], LookupError)
    assert await client.run(fail, "no licence", nanny=True, on_error="ignore") == {}
    with pytest.raises(SerializationError):
        await client.run(threading.Lock, nanny=True)
    with pytest.raises(TaskExited):
        await client.run(exit, nanny=True)
    assert await client.run(os.getpid, nanny=True) == {where: os.getpid()}


async def test_workers_without_a_nanny_are_named_and_nothing_is_called(cluster: Cluster) -> None:
    client, where = cluster.client, cluster.nanny.worker_address
    async with Worker(cluster.scheduler.address, **HERE) as bare:
        with pytest.raises(ValueError, match=f"requires nannies, and {bare.address} has none"):
            await client.run(seen_under_trio, "hello", nanny=True)
        assert await client.run(lambda dask_worker: dask_worker.state, nanny=True, workers=["n"]) == {where: {}}
        with pytest.raises(ValueError, match="there is no worker 'nobody'"):
            await client.run(os.getpid, nanny=True, workers=["nobody"])


async def test_what_is_too_large_is_refused_in_words(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    client = cluster.client
    monkeypatch.setattr("trio_dask.client.nanny_calls.MAX_NANNY_CALL_BYTES", 2**20)
    with pytest.raises(ValueError, match="have 2 MiB, and may have 1 for nannies"):
        await client.run(len, bytes(2**21), nanny=True)
    monkeypatch.setattr("trio_dask.nanny.client_calls.MAX_NANNY_CALL_BYTES", 2**20)
    with pytest.raises(ValueError, match="returned 2 MiB in a nanny, which sends up to 1 MiB"):
        await client.run(bytes, 2**21, nanny=True)


async def test_a_worker_that_is_restarted_meanwhile_changes_nothing(cluster: Cluster) -> None:
    client, where = cluster.client, cluster.nanny.worker_address
    BEGUN.clear()
    GO_ON.clear()
    found: list[Any] = []

    async def run() -> None:
        found.append(await client.run(wait_to_go_on, nanny=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await begun()
        before = cluster.nanny.pid
        await client.restart_workers(["n"])
        assert cluster.nanny.pid != before
        assert found == []
        GO_ON.set()
    assert found == [{where: "went on"}]


async def test_a_nanny_that_ends_meanwhile_is_told() -> None:
    BEGUN.clear()
    GO_ON.clear()
    async with Scheduler(**HERE) as scheduler, AsyncClient(scheduler.address) as client:
        found: list[Any] = []

        async def run() -> None:
            found.append(await client.run(wait_to_go_on, nanny=True, on_error="return"))

        async with trio.open_nursery() as nursery, Nanny(scheduler.address, nthreads=1, **HERE) as nanny:
            where = nanny.worker_address
            nursery.start_soon(run)
            await begun()
        GO_ON.set()
    ((address, error),) = found[0].items()
    assert address == where
    assert isinstance(error, ClusterError)
    assert str(error) == f"the call in a nanny failed: the nanny of {where} was lost while the function ran"


def test_the_blocking_form_runs_in_the_program_that_has_the_nannies() -> None:
    with LocalCluster(2, 1, processes=True) as cluster, Client(cluster) as client:
        where = list(client.nthreads())
        assert client.run(os.getpid, nanny=True) == dict.fromkeys(where, os.getpid())
        assert client.run(os.getpid, nanny=True, wait=False) is None
        states = client.run(lambda dask_worker: (dask_worker.name, dask_worker.worker_address), nanny=True)
        assert sorted((states or {}).values()) == sorted(
            (str(worker["name"]), address) for address, worker in client.scheduler_info()["workers"].items()
        )
