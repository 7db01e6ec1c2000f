"""Clusters inside this program: everything but the processes."""

import logging
import threading
from typing import Any

import pytest
import trio

from trio_dask import Client, ClusterError, LocalCluster, UsageError, open_local_cluster
from trio_dask.deploy.cluster_sizing import plan
from trio_dask.processes.recent_lines import RecentLines


def add(*numbers: int) -> int:
    return sum(numbers)


async def test_scheduler_and_workers_in_one_trio_loop() -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster:
        assert cluster.scheduler_address.startswith("inproc://")
        assert {worker.pid for worker in cluster.workers.values()} == {None}
        async with cluster.get_client() as client:
            assert len(await client.nthreads()) == 2
            assert await client.submit(add, *client.map(add, range(10))) == 45


async def test_two_clusters_in_one_program_are_apart() -> None:
    async with open_local_cluster(1, 1, processes=False) as one, open_local_cluster(1, 1, processes=False) as two:
        assert one.scheduler_address != two.scheduler_address
        async with one.get_client() as client, two.get_client() as other:
            assert await client.submit(add, 1) == await other.submit(add, 1) == 1
            assert len(await client.nthreads()) == len(await other.nthreads()) == 1


async def test_scaling() -> None:
    async with open_local_cluster(1, 1, processes=False) as cluster, cluster.get_client() as client:
        cluster.scale(3)
        await cluster.wait_for_workers(timeout=5)
        assert len(await client.nthreads()) == 3
        cluster.scale(cores=2)
        assert len(cluster.workers) == 2
        cluster.scale(0)
        assert cluster.workers == {}
        with pytest.raises(UsageError, match="n is -1"):
            cluster.scale(-1)


async def test_what_the_block_raises_leaves_it_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_local_cluster(1, 1, processes=False):
            raise KeyError("mine")
    with pytest.RaisesGroup(KeyError):
        async with open_local_cluster(1, 1, processes=False):
            raise ExceptionGroup("mine", [KeyError()])
    with trio.CancelScope() as scope:
        async with open_local_cluster(1, 1, processes=False):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_closed_cluster_says_so() -> None:
    async with open_local_cluster(1, 1, processes=False) as cluster:
        await cluster.aclose()
        await cluster.aclose()
        with pytest.raises(ClusterError, match="this cluster is closed"):
            cluster.scale(1)
        with pytest.raises(ClusterError, match="this cluster is closed"):
            await cluster.wait_for_workers(1)


async def test_who_waits_for_workers_hears_of_the_end(nursery: trio.Nursery) -> None:
    async with open_local_cluster(0, 1, processes=False) as cluster:

        async def wait() -> None:
            with pytest.raises(ClusterError, match="closed while a caller waited for it"):
                await cluster.wait_for_workers(1)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()


async def test_nonsense_is_refused_before_anything_is_started() -> None:
    with pytest.raises(UsageError, match="n_workers is -1"):
        async with open_local_cluster(-1):
            pass


def test_blocking_code_on_threads() -> None:
    before = threading.active_count()
    with LocalCluster(2, 1, processes=False) as cluster:
        with Client(cluster) as client, cluster.get_client() as other:
            futures = client.map(add, range(10))
            assert client.submit(add, *futures).result(timeout=10) == 45
            assert other.submit(add, 1, 2).result(timeout=10) == 3
            with Client(cluster.scheduler_address) as third:
                assert third.submit(add, 3).result(timeout=10) == 3
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=5)
        assert len(cluster.workers) == 3
        assert "3 workers" in repr(cluster)
    assert repr(cluster) == "<local cluster: this cluster is closed>"
    assert threading.active_count() <= before + 10  # idle threads of Trio's cache and of slots come and go


def test_blocking_nonsense_is_refused_by_the_constructor() -> None:
    with pytest.raises(UsageError, match="threads_per_worker is 0"):
        LocalCluster(1, 0)


def test_scripts_for_distributed_find_their_arguments_taken_or_refused_in_words() -> None:
    make: Any = LocalCluster  # type checkers know what means something
    with make(0, 1, processes=False, dashboard_address=None, silence_logs=50, asynchronous=False):
        pass
    with pytest.raises(UsageError, match="use open_local_cluster in a Trio program"):
        make(asynchronous=True)
    with pytest.raises(UsageError, match="security is int; give a Security, or True"):
        make(security=5)
    with pytest.raises(UsageError, match="'ucx' is no protocol; there are tcp, tls, ws, wss"):
        make(protocol="ucx")
    with pytest.raises(UsageError, match="with processes=False nothing leaves this program"):
        make(processes=False, protocol="tls")
    with pytest.raises(TypeError, match="unexpected argument 'n_wokers'"):
        make(n_wokers=3)


def test_a_cluster_has_the_attributes_that_scripts_for_distributed_read() -> None:
    with LocalCluster(2, 3, processes=False, death_timeout="5s") as cluster:
        assert cluster.status == "running"
        assert cluster.asynchronous is False
        assert cluster.loop is None
        assert cluster.scheduler.address == cluster.scheduler_address
        workers = cluster.scheduler_info["workers"]
        assert {worker["name"] for worker in workers.values()} == {0, 1}
        assert {worker["nthreads"] for worker in workers.values()} == {3}
        assert cluster.sync(_asked, 1) == 2
        with cluster.get_client() as client:
            assert client.cluster is cluster
            assert cluster.get_client() is client
            assert set(client.nthreads()) == set(workers)
    assert cluster.status == "closed"


async def _asked(x: int) -> int:
    await trio.lowlevel.checkpoint()
    return x + 1


@pytest.mark.parametrize("arguments", [{"death_timeout": 0}, {"death_timeout": "soon"}, {"interface": "no-such-one"}])
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises((UsageError, OSError)):
        LocalCluster(1, 1, processes=False, **arguments)


async def test_a_cluster_says_which_workers_it_should_have_and_which_are_there() -> None:
    async with open_local_cluster(2, 1, processes=False) as cluster:
        assert cluster.plan == cluster.requested == cluster.observed == {0, 1}
        cluster.scale_up(3)
        assert cluster.plan == {0, 1, 2}
        await cluster.wait_for_workers(timeout=5)
        address = cluster.workers["2"].address
        cluster.scale_down([0, address, "no such worker"])
        assert cluster.plan == {1}
        while cluster.observed != {1}:  # noqa: ASYNC110 - nothing says when
            await trio.sleep(0.001)
        assert cluster.dashboard_link == ""


async def test_the_form_for_trio_ignores_the_same_arguments_and_names_itself() -> None:
    make: Any = open_local_cluster
    async with make(0, 1, processes=False, dashboard_address=None, asynchronous=True):
        pass
    with pytest.raises(TypeError, match=r"open_local_cluster\(\) got an unexpected argument 'no_such'"):
        make(0, no_such=1)


def test_without_nannies_the_cluster_is_inside_the_program() -> None:
    with LocalCluster(1, 1, nanny=False) as cluster, Client(cluster) as client:
        assert cluster.scheduler_address.startswith("inproc://")
        assert client.dashboard_link == cluster.dashboard_link == ""


def test_what_a_scheduler_says_of_itself_is_a_card_in_a_notebook() -> None:
    with LocalCluster(2, 3, processes=False) as cluster, Client(cluster) as client:
        for info in (cluster.scheduler_info, client.scheduler_info()):
            assert "<td style" in info._repr_html_()
            assert ">6<" in info._repr_html_()
            assert info["address"] == cluster.scheduler_address


def test_logs_are_a_text_for_each_program_and_folded_in_a_notebook() -> None:
    with LocalCluster(1, 1, processes=False) as cluster:
        address = cluster.workers["0"].address
        logs = cluster.get_logs()
        assert list(logs) == ["Cluster", "Scheduler", address]
        assert f"<summary>{address}</summary>" in logs._repr_html_()
        assert list(cluster.get_logs(cluster=False, scheduler=False, workers=[address])) == [address]
        assert list(cluster.get_logs(workers=False)) == ["Cluster", "Scheduler"]


def test_logs_begin_with_the_oldest_line(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("trio_dask")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, RecentLines()])
    with LocalCluster(1, 1, processes=False) as cluster:
        logger.warning("first")
        logger.warning("second")
        for text in cluster.get_logs(cluster=False).values():
            assert 0 < text.index("WARNING - first") < text.index("WARNING - second")


@pytest.mark.parametrize(
    ("given", "level"), [("error", 40), (logging.CRITICAL, 50), (False, 20), (None, 20), (logging.DEBUG, 10)]
)
def test_logs_are_silenced_by_level_or_name(given: int | str | None, level: int) -> None:
    assert plan(1, 1, silence_logs=given).log_level == level
    with pytest.raises(UsageError, match="silence_logs is 'loud'; give a level"):
        plan(1, 1, silence_logs="loud")


def test_a_client_may_be_there_longer_than_its_cluster() -> None:
    """An error in the client's thread would be a warning here, and so a failure."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False) as cluster:
        client = Client(cluster.scheduler_address)
        assert client.submit(add, 1, 2).result() == 3
        thread = client._thread._thread
    thread.join()
    assert client.status == "closed"
    client.close()


def test_arguments_that_mean_something_to_distributed_only_are_ignored() -> None:
    ignored: dict[str, Any] = {"services": {}, "service_kwargs": {}, "scheduler_sync_interval": 1, "loop": None}
    with LocalCluster(n_workers=0, processes=False, **ignored) as cluster:
        assert cluster.status == "running"


def test_a_cluster_and_its_clients_and_executors_say_what_to_pass_on_instead() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False) as cluster, Client(cluster) as client:
        for passed, remedy in (
            (cluster, "scheduler_address"),
            (client, "get_client"),
            (client.get_executor(), "get_executor"),
        ):
            with pytest.raises(TypeError, match=remedy):
                client.submit(add, passed)
