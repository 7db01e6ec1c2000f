"""dask's configuration while a client is open, and afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.client.cluster import MiniCluster, open_client
from tests.untyped_dask import delayed
from tests.untyped_dask import whole as dask
from trio_dask import Client
from trio_dask.client import default_clients


@contextmanager
def open_default_client() -> Iterator[Client]:
    with open_client(MiniCluster()) as client:
        default_clients.remember(client)
        yield client


def configured() -> tuple[Any, Any]:
    return dask.config.get("scheduler", None), dask.config.get("dataframe.shuffle.method", None)


def test_dask_is_configured_only_while_a_client_is_open() -> None:
    assert configured() == (None, None)
    with open_client(MiniCluster()) as client:
        assert configured() == (None, None)
        with client.as_current():
            assert dask.base.get_scheduler() == client.get
            assert configured()[1] == "tasks"
        assert configured() == (None, None)
    with open_default_client() as client, open_default_client() as newer:
        assert dask.base.get_scheduler() == newer.get
        assert dask.base.get_scheduler() != client.get
        newer.close()
        assert dask.base.get_scheduler() == client.get
        assert configured()[1] == "tasks"
    assert configured() == (None, None)


def test_what_the_program_has_configured_itself_stays() -> None:
    in_this_thread = delayed(threading.current_thread)()
    with dask.config.set({"scheduler": "sync", "dataframe.shuffle.method": "disk"}), open_default_client():
        assert dask.config.get("dataframe.shuffle.method") == "disk"
        assert in_this_thread.compute() is threading.current_thread()
    with open_default_client():
        assert in_this_thread.compute(scheduler="sync") is threading.current_thread()
        with dask.config.set(scheduler="sync"):
            assert in_this_thread.compute() is threading.current_thread()


def test_dask_takes_a_client_as_its_scheduler() -> None:
    with open_client(MiniCluster()) as client:
        assert not client.asynchronous
        assert dask.base.get_scheduler(scheduler=client) == client.get
