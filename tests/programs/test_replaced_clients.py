"""`client = Client()`, run again and again as in a notebook: no more clusters than somebody can use."""

import gc
import logging
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.programs.programs import children, program, survivors, until
from trio_dask import Client, get_client

pytestmark = pytest.mark.slow

ONE: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1}


def processes() -> list[psutil.Process]:
    return [process for process in children(os.getpid()) if process.is_running()]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = set(processes())
    yield
    gc.collect()
    assert survivors([process for process in processes() if process not in before], 5) == []


def test_a_client_that_was_replaced_ends_its_cluster_when_nobody_has_it() -> None:
    client = Client(**ONE)
    assert client.submit(abs, -1).result() == 1
    of_one = len(processes())
    for _ in range(3):
        client = Client(**ONE)
        assert get_client() is client
        assert client.submit(abs, -1).result() == 1
        until(lambda: len(processes()) == of_one, 10, "the former cluster has ended")
    client.close()


def test_a_future_keeps_the_cluster_of_a_client_that_was_replaced() -> None:
    client = Client(**ONE)
    of_one = len(processes())
    future = client.submit(abs, -1)
    client = Client(**ONE)
    gc.collect()
    assert future.result() == 1
    assert len(processes()) == 2 * of_one
    del future
    until(lambda: len(processes()) == of_one, 10, "the former cluster has ended")
    client.close()


def test_a_client_that_somebody_has_goes_on_and_is_the_default_one_again() -> None:
    with Client(**ONE) as first:
        with Client(**ONE):
            assert get_client() is not first
        gc.collect()
        assert get_client() is first
        assert first.submit(abs, -1).result() == 1


def test_a_program_with_three_clusters_is_told_how_many_and_how_to_end_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trio_dask.client"):
        clients = [Client(**ONE), Client(**ONE)]
        assert caplog.records == []
        clients.append(Client(**ONE))
    (record,) = caplog.records
    assert record.getMessage().startswith("3 clusters of `Client()` are open in this program")
    assert "client.close()" in record.getMessage()
    for client in clients:
        client.close()


def test_a_default_client_that_nobody_refers_to_stays_until_another_one_comes() -> None:
    Client(**ONE)
    gc.collect()
    assert get_client().submit(abs, -1).result() == 1
    get_client().close()


def test_a_script_that_replaces_its_clients_ends_in_silence_and_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from trio_dask import Client
            kept = []
            for number in range(3):
                client = Client(n_workers=1, threads_per_worker=1)
                kept.append(client.submit(abs, -number))
            print([future.result() for future in kept])
            """
        )
    )
    with program(str(script)) as running:
        assert running.end() == 0
    assert running.output == ["[0, 1, 2]"]
    assert running.errors == [line for line in running.errors if "3 clusters of `Client()`" in line]
