"""Clients see where running tasks are, what programs have logged, their versions, and why a task is not done."""

import logging
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster, open_async_client
from trio_dask import AsyncClient, Client, UsageError, open_local_cluster
from trio_dask.client.inspection import differences
from trio_dask.processes.recent_lines import RecentLines, recent_lines

entered, go_on = threading.Event(), threading.Event()


def wait_here(number: int) -> int:
    entered.set()
    go_on.wait(30)
    return number


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        yield client


@pytest.fixture
def lines() -> Iterator[logging.Logger]:
    logger = logging.getLogger("trio_dask.tests.lines")
    handler = RecentLines()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_a_running_task_shows_where_it_is_and_why_others_wait(client: Client) -> None:
    entered.clear()
    go_on.clear()
    running = client.submit(wait_here, 1)
    waiting = client.submit(wait_here, running)
    entered.wait(30)
    try:
        ((address, stacks),) = client.call_stack().items()
        assert address in client.nthreads()
        assert any("in wait_here" in frame for frame in stacks[running.key])
        assert all("executor.py" not in frame for frame in stacks[running.key])
        assert client.call_stack([running]) == client.call_stack(keys=[running.key]) == {address: stacks}
        assert client.call_stack(waiting) == {}
        assert client.explain(running).startswith("is assigned to")
        assert client.explain(waiting).startswith(f"waits for {running.key}, which is assigned to")
        with pytest.raises(TypeError, match="takes a future"):
            client.explain(running.key)
    finally:
        go_on.set()
    assert waiting.result() == 1
    assert client.explain(waiting).startswith("is done, ")
    waiting.cancel()
    assert client.explain(waiting) == "was cancelled"


async def test_a_client_without_a_scheduler_says_so(cluster: MiniCluster) -> None:
    async with open_async_client(cluster) as client:
        cluster.hold = True
        future = client.submit(int)
        await trio.testing.wait_all_tasks_blocked()
        cluster.hangs = True
        cluster.lose()
        await trio.testing.wait_all_tasks_blocked()
        assert await client.explain(future) == "the client is not connected to a scheduler"


def test_programs_tell_their_last_lines_newest_first(client: Client, lines: logging.Logger) -> None:
    for number in range(3):
        lines.warning("line %d", number)
    told = client.get_scheduler_logs(2)
    assert [(level, text.rpartition(" - ")[2]) for level, text in told] == [
        ("WARNING", "line 2"),
        ("WARNING", "line 1"),
    ]
    assert len(client.get_scheduler_logs()) == len(recent_lines()) >= 3
    assert list(client.get_worker_logs(1).values()) == [told[:1]]
    assert client.get_worker_logs(0) == {address: [] for address in client.nthreads()}
    with pytest.raises(UsageError, match="a number of lines"):
        client.get_scheduler_logs(-1)
    assert client.get_worker_logs(nanny=True) == {}  # there are none


async def test_versions_are_those_of_all_programs_for_both_clients(recwarn: pytest.WarningsRecorder) -> None:
    async with (
        open_local_cluster(n_workers=1, threads_per_worker=1, processes=False) as cluster,
        AsyncClient(cluster) as client,
    ):
        found = await client.get_versions(check=True, packages=["pytest", "no-such-package"])
        assert found.keys() == {"scheduler", "workers", "client"}
        assert found["workers"].keys() == (await client.nthreads()).keys()
        assert {str(program) for program in found["workers"].values()} == {str(found["client"])}
        assert found["scheduler"]["packages"]["pytest"] == pytest.__version__
        assert found["scheduler"]["packages"]["no-such-package"] is None
        with pytest.raises(UsageError, match="the name of a package"):
            await client.get_versions(packages=["half a pair: \udcff"])
        with pytest.raises(UsageError, match="ask for fewer"):
            await client.who_has(["x" * 4000] * 15_000)
        assert await client.submit(abs, -1) == 1
    assert not [warning for warning in recwarn if "different versions" in str(warning.message)]


def test_a_difference_of_versions_is_one_line_with_both() -> None:
    def program(numpy: str | None) -> dict[str, dict[str, str | None]]:
        return {"packages": {"dask": "1", "numpy": numpy}}

    found = {"client": program("2.0"), "scheduler": program(None), "workers": {"tcp://a:1": program("1.9")}}
    assert differences(found) == ["different versions of numpy: 2.0 (the client); 1.9 (tcp://a:1)"]
