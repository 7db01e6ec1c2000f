"""Which worker runs what, as a user sees it: work moves to idle workers, unless its inputs would take longer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from trio_dask import Client, Future, LocalCluster, wait

pytestmark = pytest.mark.slow


@pytest.fixture
def client() -> Iterator[Client]:
    with LocalCluster(n_workers=4, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.wait_for_workers(4)
        client.run(sleep, 0.0)  # a first call that has to import this module would seem long
        yield client


def counts(client: Client, futures: list[Future]) -> list[int]:
    """How many of these each worker has, the most first."""
    wait(futures)
    keys = {future.key for future in futures}
    return sorted((len(keys.intersection(held)) for held in client.has_what().values()), reverse=True)


def sleep(seconds: float, *_: object) -> None:
    time.sleep(seconds)


def test_tasks_of_unknown_duration_leave_the_worker_that_has_their_input(client: Client) -> None:
    (first, *_) = client.scheduler_info()["workers"]
    value = client.submit(int, 1, workers=[first])
    wait(value)
    futures = [client.submit(sleep, 0.2, value, pure=False) for _ in range(12)]
    assert min(counts(client, futures)) >= 2


def test_tasks_that_prefer_a_worker_spread(client: Client) -> None:
    (first, *_) = client.scheduler_info()["workers"]
    futures = client.map(sleep, [0.04] * 100, pure=False, workers=[first], allow_other_workers=True)
    assert min(counts(client, futures)) >= 15


def test_two_tasks_with_a_large_input_stay_where_it_is(client: Client) -> None:
    value = client.submit(bytes, 100_000_000)
    wait(value)
    futures = [client.submit(sleep, 0.2, value, pure=False) for _ in range(2)]
    assert counts(client, futures) == [2, 0, 0, 0]
    assert len(client.who_has([value])[value.key]) == 1
