"""What a client says of itself, the calls that scripts for distributed make of it, and what it refuses."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.client.cluster import MiniCluster, open_client
from trio_dask import AsyncClient, Client, LocalCluster, Scheduler, UnavailableError, UsageError
from trio_dask.html_cards import Totals, card
from trio_dask.scheduler_file import read_scheduler_file


def increment(x: int) -> int:
    return x + 1


async def in_trio(x: int, *, more: int = 0) -> int:
    await trio.lowlevel.checkpoint()
    return x + more


def test_futures_are_listed_as_long_as_the_program_has_them() -> None:
    with open_client(MiniCluster()) as client:
        future = client.submit(increment, 1)
        assert future.result() == 2
        assert client.futures[future.key].status == "finished"
        del future
        assert client.futures == {}


def test_a_client_knows_where_its_scheduler_is(tmp_path: Path) -> None:
    with LocalCluster(n_workers=0, processes=False) as cluster, Client(cluster) as client:
        assert client.scheduler.address == client.scheduler_info()["address"] == cluster.scheduler_address
    waiting = AsyncClient(scheduler_file=str(tmp_path / "none.json"))
    assert waiting.scheduler.address == ""


def test_sync_awaits_a_function_in_the_clients_loop() -> None:
    with open_client(MiniCluster()) as client:
        assert client.sync(in_trio, 1, more=2) == 3
        with pytest.raises(TimeoutError):
            client.sync(trio.sleep_forever, callback_timeout=0.01)
        assert client.loop is None
        client.start()
        assert client.status == "running"


def test_sync_of_a_plain_function_says_to_call_it() -> None:
    plain: Any = increment
    with LocalCluster(n_workers=0, processes=False) as cluster, Client(cluster) as client:
        for sync in (client.sync, cluster.sync):
            with pytest.raises(TypeError, match=r"increment at .* is none: call it without sync"):
                sync(plain, 1)


async def test_sync_of_an_async_client_is_awaited(async_client: AsyncClient) -> None:
    assert await async_client.sync(in_trio, 1, more=2) == 3


def test_a_scheduler_file_of_a_client_says_where_the_scheduler_is_to_its_owner_alone(tmp_path: Path) -> None:
    with open_client(MiniCluster()) as client:
        client.engine.address = "tcp://10.0.0.5:8786"
        path = tmp_path / "scheduler.json"
        with pytest.raises(UnavailableError):
            client.write_scheduler_file(tmp_path / "no" / "folder")
        client.write_scheduler_file(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        found = read_scheduler_file(str(path))
        assert found is not None
        assert found.address == "tcp://10.0.0.5:8786"
        with pytest.raises(ValueError, match=f"this client has a file already; copy {path}$"):
            client.write_scheduler_file(tmp_path / "other.json")
    with open_client(MiniCluster()) as client:
        client.engine.address = "inproc://here"
        with pytest.raises(UsageError, match="runs inside this program"):
            client.write_scheduler_file(path)


async def test_a_client_that_came_by_a_scheduler_file_writes_none(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    async with Scheduler(host="127.0.0.1", scheduler_file=str(file)), AsyncClient(scheduler_file=file) as client:
        with pytest.raises(ValueError, match=f"this client has a file already; copy {file}$"):
            client.write_scheduler_file(tmp_path / "other.json")
        with pytest.raises(ValueError, match="this client has a file already"):
            await trio.to_thread.run_sync(write_as_a_blocking_client, file)


def write_as_a_blocking_client(file: Path) -> None:
    with Client(scheduler_file=file) as client:
        client.write_scheduler_file(file)


def test_cards_and_reprs_say_workers_threads_and_memory() -> None:
    with LocalCluster(2, 3, memory_limit="1GiB", processes=False) as cluster, Client(cluster) as client:
        assert "2 workers, 6 threads, memory 2.00 GiB" in repr(client)
        html = client._repr_html_()
        for text in ("2.00 GiB", ">6<", "local cluster", cluster.scheduler_address):
            assert text in html
        future = client.submit(increment, 1, key="<b>")
        assert "&lt;b&gt;" in future._repr_html_()
    assert "closed" in client._repr_html_()
    assert "closed" in cluster._repr_html_()


def test_all_text_of_a_card_is_escaped() -> None:
    html = card("<script>", {"<i>": '"&'})
    assert "<script>" not in html
    assert "<i>" not in html
    assert "&quot;&amp;" in html
    assert Totals(1, 1, None).text() == "1 worker, 1 thread, memory without a limit"


def test_a_call_on_no_workers_calls_nothing() -> None:
    with LocalCluster(1, 1, processes=False) as cluster, Client(cluster) as client:
        (address,) = client.nthreads()
        assert client.run(increment, 1) == {address: 2}
        assert client.run(increment, 1, workers=[]) == {}


@pytest.mark.parametrize("number", [0, None, 1.0, True, "1"])
def test_waiting_for_what_is_no_number_of_workers_is_refused(number: Any) -> None:
    with open_client(MiniCluster()) as client, pytest.raises(ValueError, match="number"):
        client.wait_for_workers(number)


def test_restarting_a_worker_without_a_nanny_is_refused_with_its_address() -> None:
    with LocalCluster(1, 1, processes=False) as cluster, Client(cluster) as client:
        (address,) = client.nthreads()
        with pytest.raises(ValueError, match=f"requires a nanny, and {address} has none;"):
            client.restart_workers([address])


def test_what_is_neither_an_address_nor_a_cluster_is_refused() -> None:
    with pytest.raises(TypeError, match="not to the class LocalCluster"):
        Client(LocalCluster)
    with open_client(MiniCluster()) as client, pytest.raises(TypeError, match="True or False"):
        client.submit(increment, 1, workers="a", allow_other_workers="yes")  # type: ignore[arg-type]
