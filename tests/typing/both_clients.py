"""What type checkers make of the calls of both clients: checked by mypy, for which a needless ignore is an error."""

from __future__ import annotations

from types import TracebackType
from typing import Any, assert_type

from trio_dask import AsyncClient, AsyncFuture, Client, DoneAndNotDone, Future, LocalCluster, open_local_cluster, wait
from trio_dask.client.rpc_client import AsyncRpc, Rpc
from trio_dask.deploy.local_cluster import AsyncLocalCluster
from trio_dask.html_cards import SchedulerInfo


def blocks(client: Client, future: Future, cluster: LocalCluster, rpc: Rpc) -> None:
    assert_type(client.submit(abs, -1), Future)
    assert_type(client.who_has(), dict[str, tuple[str, ...]])
    assert_type(client.nthreads(workers=["a", 1]), dict[str, int])
    assert_type(client.ncores(), dict[str, int])
    assert_type(client.nbytes(summary=False), dict[str, int])
    assert_type(client.scheduler_info(), SchedulerInfo)
    assert_type(client.story(future, "key"), list[tuple[float, str, str]])
    assert_type(client.run(abs, -1, on_error="ignore"), dict[str, Any] | None)
    assert_type(client.restart_workers([1, "a"], timeout="5s"), dict[str | int, str])
    assert_type(client.retire_workers(n=1), dict[str, dict[str, Any]])
    assert_type(client.gather([future], errors="skip"), Any)
    assert_type(future.exception(timeout=1), BaseException | None)
    assert_type(future.traceback(), TracebackType | None)
    assert_type(wait(future), DoneAndNotDone)
    assert_type(cluster.scheduler_address, str)
    assert_type(LocalCluster(2, memory_limit="1GiB", processes=False), LocalCluster)
    assert_type(rpc.identity(), dict[str, Any])
    client.wait_for_workers(2, timeout="5s")
    client.restart()
    client.shutdown()
    cluster.scale(n=2)
    cluster.wait_for_workers(timeout=3)
    rpc.restart()

    client.who_has(future, nonsense=1)  # type: ignore[call-arg]
    client.restart(timeout=[])  # type: ignore[arg-type]
    client.gather([future], errors="perhaps")  # type: ignore[arg-type]
    client.run(abs, on_error=1)  # type: ignore[arg-type]
    future.result(later=True)  # type: ignore[call-arg]
    cluster.scale("many")  # type: ignore[arg-type]
    LocalCluster(processes=False, resources=["GPU"])  # type: ignore[arg-type]
    LocalCluster(n_wokers=1)  # type: ignore[call-arg]
    rpc.identity(1)  # type: ignore[call-arg]


async def awaits(client: AsyncClient, future: AsyncFuture, rpc: AsyncRpc) -> None:
    assert_type(client.submit(abs, -1), AsyncFuture)
    assert_type(await client.who_has(), dict[str, tuple[str, ...]])
    assert_type(await client.ncores(), dict[str, int])
    assert_type(await client.run(abs, -1, workers=1), dict[str, Any] | None)
    assert_type(await client.restart_workers([1, "a"], timeout="5s"), dict[str | int, str])
    assert_type(await client.gather([future], errors="skip"), Any)
    assert_type(await client.wait(future), DoneAndNotDone)
    assert_type(await future.exception(timeout=1), BaseException | None)
    assert_type(await rpc.identity(), dict[str, Any])
    await client.restart(timeout=3)
    async with open_local_cluster(2, processes=False) as cluster:
        assert_type(cluster, AsyncLocalCluster)
    open_local_cluster("two")  # type: ignore[arg-type]

    await client.who_has(future, nonsense=1)  # type: ignore[call-arg]
    await client.wait(future, return_when="SOON")  # type: ignore[arg-type]
    client.restart()  # type: ignore[unused-coroutine]
