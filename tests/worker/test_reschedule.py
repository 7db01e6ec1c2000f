"""A task that raises `Reschedule` runs again, on another worker if there is one."""

from pathlib import Path

import pytest

from trio_dask import Client, LocalCluster, Reschedule, get_worker


def only_on(name: str) -> str:
    if str(get_worker().name) != name:
        raise Reschedule
    return str(get_worker().name)


def once(folder: str) -> int:
    runs = len(list(Path(folder).iterdir()))
    (Path(folder) / str(runs)).touch()
    if not runs:
        raise Reschedule
    return runs


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_it_runs_on_another_worker(wanted: str) -> None:
    with LocalCluster(2, 1, processes=False) as cluster, Client(cluster) as client:
        futures = [client.submit(only_on, wanted, pure=False) for _ in range(10)]
        assert client.gather(futures) == [wanted] * 10


def test_with_one_worker_it_runs_there_again_and_no_retry_is_used(tmp_path: Path) -> None:
    with LocalCluster(1, 1, processes=False) as cluster, Client(cluster) as client:
        assert client.submit(once, str(tmp_path), retries=0).result(timeout=10) == 1


async def only_on_under_trio(name: str) -> str:  # noqa: ASYNC124 - a coroutine function is what is to be run
    return only_on(name)


def test_an_async_task_and_one_that_is_bound_to_workers_are_rescheduled_as_well() -> None:
    with LocalCluster(2, 1, processes=False) as cluster, Client(cluster) as client:
        assert client.submit(only_on_under_trio, "1").result(timeout=10) == "1"
        assert client.submit(only_on, "1", workers=["0", "1"]).result(timeout=10) == "1"
