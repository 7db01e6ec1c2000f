"""`progress` shows how many tasks are done, and returns when all are."""

import io
import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.untyped_dask import db
from trio_dask import Client, LocalCluster, UsageError, open_local_cluster, progress
from trio_dask.client.progress import Bars

DOOR = threading.Event()


def slow_inc(x: int) -> int:
    time.sleep(0.02)
    return x + 1


def fail() -> None:
    raise ZeroDivisionError("as asked")


def wait_for_door(x: int) -> int:
    DOOR.wait(30)
    return x


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Opener(Terminal):
    """Opens the door when it shows six tasks of which none is done."""

    def write(self, text: str) -> int:
        if "0 / 6" in text:
            DOOR.set()
        return super().write(text)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, 2, processes=False) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


def percents(written: str) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+)% Completed", written)]


def test_it_ends_at_a_hundred_percent_and_never_falls(client: Client) -> None:
    file = io.StringIO()
    total = client.compute(db.range(20, npartitions=10).map(slow_inc).sum())
    progress(total, interval=0.01, file=file)
    assert total.done()
    found = percents(file.getvalue())
    assert found == sorted(found)
    assert found[-1] == 100
    assert file.getvalue().endswith("\n")


def test_it_shows_the_tasks_inside_of_a_graph_before_the_result_is_there(client: Client) -> None:
    DOOR.clear()
    bag = db.from_sequence(range(6), npartitions=6).map(wait_for_door)
    file = Opener()
    progress(client.compute(bag.sum()), file=file, interval=0.01)
    assert "0 / 6" in file.getvalue()
    assert percents(file.getvalue())[-1] == 100


def test_a_terminal_shows_a_bar_for_each_function(client: Client) -> None:
    terminal, file = Terminal(), io.StringIO()
    futures = client.map(slow_inc, range(4))
    progress(futures, file=terminal, interval=0.01)
    assert "slow_inc" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    progress(client.map(slow_inc, range(4, 8)), file=file, multi=True)
    assert "slow_inc" not in file.getvalue()
    assert "\x1b[" not in file.getvalue()


def test_what_was_done_before_counts_if_it_is_to(client: Client) -> None:
    done = client.map(slow_inc, range(10, 12))
    client.gather(done)
    file = io.StringIO()
    progress(done, file=file)
    assert percents(file.getvalue()) == [100]
    for complete in (True, False):
        terminal = Terminal()
        progress([*done, client.submit(slow_inc, 20 + complete)], file=terminal, complete=complete)
        assert ("done before" in terminal.getvalue()) is complete


def test_an_error_ends_it_and_is_not_raised(client: Client) -> None:
    failed = client.submit(fail)
    progress(failed, file=io.StringIO())
    assert failed.status == "error"


def test_nothing_to_wait_for_shows_nothing_and_other_things_are_refused(client: Client) -> None:
    file = io.StringIO()
    progress([], file=file)
    assert not file.getvalue()
    with pytest.raises(TypeError, match="takes futures"):
        progress("x", file=file)
    with pytest.raises(UsageError, match="group_by"):
        progress(client.submit(slow_inc, 1), group_by="spans", file=file)


async def test_under_trio_it_is_awaited() -> None:
    async with open_local_cluster(1, 1, processes=False) as cluster, cluster.get_client() as client:
        file = io.StringIO()
        futures = client.map(slow_inc, range(3))
        await client.progress(futures, file=file)
        assert percents(file.getvalue())[-1] == 100
        assert all(future.done() for future in futures)


def test_totals_grow_with_what_is_found_later_and_stay_when_tasks_are_done() -> None:
    bars = Bars(10, by_name=False)
    bars.update({"load": 2}, done=2)
    assert "[#####     ] |  50% Completed" in bars.text()
    bars.update({"load": 4})
    assert " 33% Completed" in bars.text()
    bars.update({"load": 1})
    assert " 83% Completed" in bars.text()
    bars.finish(1)
    assert "[##########] | 100% Completed" in bars.text()
    nothing_counted = Bars(10, by_name=True)
    nothing_counted.finish(1)
    assert "100% Completed" in nothing_counted.text()
    assert "1 / 1" in nothing_counted.text()


def test_lines_are_written_over_the_lines_before() -> None:
    bars = Bars(10, by_name=True)
    bars.update({"load": 2, "add": 1})
    assert bars.text().startswith("\r[")
    assert bars.text().startswith("\r\x1b[2A[")
    assert "load | 0 / 2" in bars.text()
