"""The hardware of workers is measured in a bounded time, whatever some of them do."""

import threading
from collections.abc import Iterator

import pytest

from tests.waiting import until
from trio_dask import AsyncClient, Client, open_local_cluster
from trio_dask.client import hardware

LIMIT_S = 20
go_on = threading.Event()

NAMES = {"memory": hardware.MEMORY_SIZES, "disk": hardware.DISK_SIZES, "network": hardware.NETWORK_SIZES}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, each measured once."""
    for name in ("MEMORY", "DISK", "NETWORK"):
        monkeypatch.setattr(hardware, f"{name}_S", 1e-6)
        monkeypatch.setattr(hardware, f"{name}_SIZES", {"1 kiB": 1024, "200 kiB": 200 * 1024})


@pytest.fixture
def client(quick: None) -> Iterator[Client]:
    with Client(n_workers=3, threads_per_worker=1, processes=False) as client:
        yield client


def test_each_kind_of_hardware_has_a_rate_for_each_size(client: Client) -> None:
    found = client.benchmark_hardware()
    assert list(found) == ["memory", "disk", "network"]
    for rates in found.values():
        assert list(rates) == ["1 kiB", "200 kiB"]
        assert all(rate > 0 for rate in rates.values())
    until(lambda: not client.nbytes(), "what was fetched is dropped")


def test_sizes_have_the_names_of_distributed() -> None:
    assert all(NAMES.values())
    assert NAMES["disk"]["100 MiB"] == 100 * 2**20
    assert NAMES["network"]["50 MiB"] == 50 * 2**20
    assert NAMES["memory"]["2 kiB"] == 2 * 2**10


def wait_here(number: int) -> None:
    go_on.wait(LIMIT_S)


def test_workers_that_take_no_tasks_hold_nothing_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "ANSWER_S", 0.2)
    go_on.clear()
    futures = client.map(wait_here, range(3))
    try:
        assert client.benchmark_hardware()["network"] == {}
    finally:
        go_on.set()
        client.gather(futures)


def test_a_worker_whose_disk_fails_is_left_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_measure_disk", _failing_disk)
    found = client.benchmark_hardware()
    assert found["disk"] == {}
    assert found["memory"]


def _failing_disk(sizes: object, seconds: float) -> None:
    raise OSError(28, "No space left on device")


def test_rates_are_means_of_the_workers_that_have_measured_a_size() -> None:
    assert hardware.means([{"a": 1.0, "b": 5.0}, {"a": 3.0}]) == {"a": 2.0, "b": 5.0}
    assert hardware.means([]) == {}


async def test_one_worker_has_no_network_and_none_has_nothing() -> None:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        found = await client.benchmark_hardware()
        assert set(found["memory"]) == {"1 kiB", "200 kiB"}
        assert found["network"] == {}
    async with (
        open_local_cluster(n_workers=0, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        assert await client.benchmark_hardware() == {"memory": {}, "disk": {}, "network": {}}
