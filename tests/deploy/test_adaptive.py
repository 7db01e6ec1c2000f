"""Clusters inside this program that adapt; the policy has tests of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from trio_dask import Adaptive, Client, ClusterError, LocalCluster, UsageError, open_local_cluster
from trio_dask.client.rpc_client import AsyncRpc, connected_rpc
from trio_dask.deploy import adaptive as adaptive_module
from trio_dask.deploy.adaptive import adaptive_settings

FAST: dict[str, Any] = {"interval": 0.02, "wait_count": 2, "target_duration": 0.1}


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - nothing tells of each change of a cluster
            await trio.sleep(0.01)


class Tries:
    """How often a cluster that adapts has asked its scheduler, or tried to."""

    def __init__(self) -> None:
        self._number = 0
        self._changed = trio.Event()

    def count(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._number += 1
            self._changed.set()
            self._changed = trio.Event()
            return function(*args, **kwargs)

        return counted

    async def more(self, number: int) -> None:
        """Return after this many further tries, all of which but the last have been decided on."""
        enough = self._number + number
        with trio.fail_after(10):
            while self._number < enough:
                await self._changed.wait()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Tries:
    tries = Tries()
    monkeypatch.setattr(AsyncRpc, "demand", tries.count(AsyncRpc.demand))
    return tries


async def test_a_cluster_grows_with_its_work_keeps_results_and_shrinks_to_nothing() -> None:
    async with open_local_cluster(0, 1, processes=False) as cluster, cluster.get_client() as client:
        adaptive = cluster.adapt(maximum=3, **FAST)
        futures = client.map(pow, range(3), [2] * 3)
        futures += client.map(time.sleep, [0.2] * 6, pure=False)
        await until(lambda: len(cluster.workers) == 3)
        await client.gather(futures)
        await until(lambda: len(cluster.workers) == 1)  # it holds the results
        assert await client.gather(futures[:3]) == [0, 1, 4]
        assert not any("again" in what for _, _, what in await client.story(*futures[:3]))
        del futures
        await until(lambda: not cluster.workers)
        assert adaptive.log[0].text == "3 more"
        assert len(adaptive.log) == 4


async def test_work_that_no_worker_can_do_changes_nothing(tries: Tries) -> None:
    async with open_local_cluster(1, 1, processes=False) as cluster, cluster.get_client() as client:
        adaptive = cluster.adapt(minimum=1, **FAST)
        futures = client.map(abs, range(100), resources={"GPU": 1})
        futures += client.map(abs, range(100), workers="nobody", pure=False)
        await tries.more(5)
        assert not adaptive.log
        del futures


async def test_a_worker_that_runs_something_stays(tries: Tries) -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster, cluster.get_client() as client:
        future = client.submit(time.sleep, 0.8)
        cluster.adapt(**FAST)
        await until(lambda: len(cluster.workers) == 1)
        await tries.more(5)
        assert len(cluster.workers) == 1
        assert future.status == "pending"
        await future
        assert not any("again" in what for _, _, what in await client.story(future))


async def test_scale_and_stop_end_it() -> None:
    async with open_local_cluster(0, 1, processes=False) as cluster:
        cluster.adapt(minimum=2, **FAST)
        await until(lambda: len(cluster.workers) == 2)
        cluster.scale(1)
        await trio.sleep(0.1)
        assert len(cluster.workers) == 1
        adaptive = cluster.adapt(minimum=3, maximum=4, **FAST)
        assert repr(adaptive) == "<adaptive cluster: 3 to 4 workers>"
        adaptive.stop()
        adaptive.stop()
        await trio.sleep(0.1)
        assert len(cluster.workers) == 1
    with pytest.raises(ClusterError, match="closed"):
        cluster.adapt()


async def test_a_scheduler_that_does_not_answer_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = Tries()
    async with open_local_cluster(0, 1, processes=False) as cluster:
        with monkeypatch.context() as broken:
            broken.setattr(type(cluster), "scheduler_address", "inproc://nobody-there")
            broken.setattr(adaptive_module, "connected_rpc", tries.count(connected_rpc))
            with caplog.at_level(logging.WARNING, "trio_dask.deploy"):
                cluster.adapt(minimum=1, **FAST)
                await tries.more(4)
        assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
            "this cluster does not adapt at the moment"
        ]
        await until(lambda: len(cluster.workers) == 1)


def test_the_blocking_form() -> None:
    with LocalCluster(0, 1, processes=False) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(0, 1, **FAST)
        assert isinstance(adaptive, Adaptive)
        assert client.submit(abs, -1).result(timeout=10) == 1
        adaptive.stop()
    adaptive.stop()


def test_the_configuration_has_the_defaults_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adaptive_settings(None, None, None, None, None) == (0, float("inf"), 1.0, 5.0, 3)
    monkeypatch.setenv("DASK_DISTRIBUTED__ADAPTIVE__MAXIMUM", "7")
    monkeypatch.setenv("DASK_DISTRIBUTED__ADAPTIVE__INTERVAL", "2s")
    assert adaptive_settings(1, None, None, "9s", None) == (1, 7, 2.0, 9.0, 3)
    assert adaptive_settings(1, float("inf"), None, None, None).maximum == float("inf")
    for arguments, said in (
        ((-1, None, None, None, None), "minimum must be a whole number"),
        ((8, None, None, None, None), "minimum is 8, and maximum 7"),
        ((None, 1.5, None, None, None), "maximum must be a whole number"),
        ((None, None, 0, None, None), "interval is 0; give a length of time above 0"),
        ((None, None, None, "soon", None), "is not a length of time"),
        ((None, None, None, None, 0), "wait_count must be a whole number"),
    ):
        with pytest.raises(UsageError, match=said):
            adaptive_settings(*arguments)


async def test_limits_may_be_cores_and_memory() -> None:
    async with open_local_cluster(0, 2, "1GB", processes=False) as cluster:
        for limits, meant in (
            ({"minimum_cores": 3, "maximum_cores": 7}, "2 to 3"),
            ({"minimum_memory": "1.5GB", "maximum_memory": "4.5GB"}, "2 to 4"),
            ({"minimum": 3, "minimum_cores": 1, "maximum": 5, "maximum_memory": "9GB"}, "3 to 5"),
        ):
            assert meant in repr(cluster.adapt(**limits))
        with pytest.raises(UsageError, match="minimum is 2, and maximum 1"):
            cluster.adapt(minimum_cores=3, maximum_cores=3)
