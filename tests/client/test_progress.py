"""`progress` shows how many tasks are done, and returns when all are."""

import io
import os
import pty
import re
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster, open_async_client
from tests.untyped_dask import db
from tests.waiting import until
from trio_dask import Client, LocalCluster, UsageError, open_local_cluster, progress, span
from trio_dask.client import progress_views
from trio_dask.client.progress_views import LINE_S, Counts, Lines, NotebookBars, PlainBars

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
    """Opens the door when it shows this text."""

    def __init__(self, sign: str) -> None:
        super().__init__()
        self._sign = sign

    def write(self, text: str) -> int:
        if self._sign in text:
            DOOR.set()
        return super().write(text)


@contextmanager
def terminal() -> Iterator[tuple[TextIO, io.StringIO]]:
    """A terminal to write to; at the end of the block all that was written is in the other."""
    ours, theirs = pty.openpty()
    drawn = io.StringIO()

    def read() -> None:
        with suppress(OSError):  # the terminal was closed
            while True:
                drawn.write(os.read(ours, 4096).decode())

    reader = threading.Thread(target=read)
    with open(theirs, "w", encoding="utf-8") as file:
        reader.start()
        yield file, drawn
    reader.join()
    os.close(ours)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, 2, processes=False) as cluster:
        yield cluster


@pytest.fixture(params=["with rich", "without rich"])
def rich(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of bars on a terminal."""
    if request.param == "without rich":
        monkeypatch.setattr(progress_views, "find_spec", lambda name: None)


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


@pytest.mark.usefixtures("rich")
def test_it_shows_the_tasks_inside_of_a_graph_before_the_result_is_there(client: Client) -> None:
    DOOR.clear()
    bag = db.from_sequence(range(6), npartitions=6).map(wait_for_door)
    file = Opener("0 / 6")
    progress(client.compute(bag.sum()), file=file, interval=0.01)
    assert "0 / 6" in file.getvalue()
    assert percents(file.getvalue())[-1] == 100


@pytest.mark.usefixtures("rich")
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


@pytest.mark.usefixtures("rich")
def test_an_error_ends_it_and_is_counted_and_is_not_raised(client: Client) -> None:
    failed, file = client.submit(fail), Terminal()
    progress([failed, client.submit(slow_inc, 30)], file=file)
    assert failed.status == "error"
    assert percents(file.getvalue())[-1] == 50
    assert ", 1 failed" in file.getvalue()


def test_nothing_to_wait_for_shows_nothing_and_other_things_are_refused(client: Client) -> None:
    file = io.StringIO()
    progress([], file=file)
    assert not file.getvalue()
    with pytest.raises(TypeError, match="takes futures"):
        progress("x", file=file)
    nonsense: Any
    for nonsense in ("colours", ["prefix"]):
        with pytest.raises(UsageError, match="groups tasks by"):
            progress(client.submit(slow_inc, 1), group_by=nonsense, file=file)


async def test_under_trio_it_is_awaited() -> None:
    async with open_local_cluster(1, 1, processes=False) as cluster, cluster.get_client() as client:
        file = io.StringIO()
        futures = client.map(slow_inc, range(3))
        await client.progress(futures, file=file)
        assert percents(file.getvalue())[-1] == 100
        assert all(future.done() for future in futures)


def test_a_group_is_what_a_function_says_of_each_key_and_each_is_asked_about_once(client: Client) -> None:
    asked: list[str] = []

    def group(key: str) -> str:
        asked.append(key)
        return "even" if key == "e" else "odd"

    futures = [client.submit(slow_inc, number, key=key) for number, key in ((40, "e"), (41, "o"))]
    terminal = Terminal()
    progress(futures, file=terminal, interval=0, group_by=group)
    assert "even" in terminal.getvalue()
    assert "odd" in terminal.getvalue()
    assert sorted(asked) == ["e", "o"]


def test_a_group_is_a_span(client: Client) -> None:
    DOOR.clear()
    with span("load"), span("january"):
        futures = client.map(wait_for_door, range(80, 83))
    futures += client.map(wait_for_door, range(83, 86))
    file = Opener("3 | load/january")
    progress(futures, file=file, interval=0.01, group_by="spans")
    assert "3 / 3 | load/january" in file.getvalue()
    assert "3 / 3 | wait_for_door" in file.getvalue()


@pytest.mark.usefixtures("rich")
def test_bars_are_on_stderr_if_it_is_a_terminal_and_leave_stdout_alone(
    client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with terminal() as (file, drawn):
        monkeypatch.setattr(sys, "stderr", file)
        progress(client.map(slow_inc, range(50, 54)), interval=0.01)
    assert percents(drawn.getvalue())[-1] == 100
    assert "4 / 4" in drawn.getvalue()
    assert drawn.getvalue().endswith(("\n", "\x1b[?25h"))
    assert not capfd.readouterr().out


@pytest.mark.parametrize("kind", ["pipe", "dumb terminal"])
def test_elsewhere_there_is_one_line_at_the_end(
    client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    terminal = Terminal()
    if kind == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(sys, "stderr", terminal)
    progress(client.map(slow_inc, range(60, 64)), interval=0.01)
    written = capfd.readouterr()
    assert re.fullmatch(r"\[#{40}\] \| 100% Completed \| +\d+\.\d s\n", terminal.getvalue() or written.err)
    assert not written.out


async def test_elsewhere_there_is_a_line_every_30_s(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call_here(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
        """The clock would jump while a thread writes."""
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", call_here)
    cluster = MiniCluster(hold=True)
    async with open_async_client(cluster) as client:
        futures = client.map(slow_inc, range(4))
        file = io.StringIO()

        async def finish_one_by_one() -> None:
            for future in futures:
                await trio.sleep(25)
                cluster.finish(future.key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish_one_by_one)
            await client.progress(futures, file=file)
    lines = [(int(percent), float(at)) for percent, at in re.findall(r"(\d+)% Completed \| +(\S+) s", file.getvalue())]
    assert [percent for percent, _ in lines] == [25, 50, 75, 100]
    assert [at for _, at in lines] == pytest.approx([LINE_S, 2 * LINE_S, 3 * LINE_S, 100.0], abs=3)


class Place:
    """Where a notebook shows something."""

    def __init__(self, shown: dict[str, str]) -> None:
        self.shown = [shown]

    def update(self, shown: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(shown)


def test_in_a_notebook_it_returns_at_once_and_its_bars_go_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Place] = []

    def display(shown: dict[str, str], *, raw: bool, display_id: bool) -> Place:
        assert raw
        assert display_id
        places.append(Place(shown))
        return places[-1]

    module: Any = types.ModuleType("IPython.display")
    module.display = display
    notebook: Any = types.ModuleType("IPython")
    notebook.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    DOOR.clear()
    futures = client.map(wait_for_door, range(70, 73))
    bars = progress(futures, interval=0.01)
    assert isinstance(bars, NotebookBars)
    assert not any(future.done() for future in futures)
    bars._ipython_display_()
    bars._ipython_display_()
    until(lambda: "0 / 3 | wait_for_door" in bars._repr_html_())
    DOOR.set()
    client.gather(futures)
    until(lambda: all("100% Completed" in place.shown[-1]["text/html"] for place in places))
    for place in places:
        assert "3 / 3 | wait_for_door" in place.shown[-1]["text/html"]
        assert place.shown[-1]["text/plain"].startswith("[####")
    assert "100% Completed" in bars._repr_html_()
    assert "100% Completed" in repr(bars)
    assert progress(futures, notebook=False, file=io.StringIO()) is None


def test_names_in_a_notebook_are_escaped() -> None:
    bars = NotebookBars(40, 0.1, by_name=True)
    counts = Counts()
    counts.update({"<b>": 2}, 0.0)
    bars.show(counts)
    assert "0 / 2 | &lt;b&gt;" in bars._repr_html_()


def test_totals_grow_with_what_is_found_later_and_stay_when_tasks_are_done() -> None:
    counts = Counts()

    def line() -> str:
        return counts.rows(by_name=False)[0].line(10)

    counts.update({"load": 2}, 1.0, done=2)
    assert "[#####     ] |  50% Completed |    1.0 s" in line()
    counts.update({"load": 4}, 2.0)
    assert " 33% Completed" in line()
    counts.update({"load": 1}, 3.0)
    assert " 83% Completed" in line()
    counts.finish(1, 0, 4.0)
    assert "[##########] | 100% Completed" in line()
    nothing_counted = Counts()
    nothing_counted.finish(1, 0, 0.0)
    assert [row.text.strip() for row in nothing_counted.rows(by_name=True)] == [
        "100% Completed |    0.0 s",
        "1 / 1 | done",
    ]


def test_tasks_that_were_done_before_the_first_answer_are_done() -> None:
    counts = Counts()
    counts.update({"load": 1}, 0.0)
    counts.finish(4, 1, 1.0)
    assert [(row.done, row.total) for row in counts.rows(by_name=True)] == [(3, 4), (3, 3), (1, 1)]


def test_what_cannot_be_counted_is_said_until_it_can() -> None:
    file, counts = io.StringIO(), Counts()
    lines = Lines(file, 4)
    counts.miss(5.0)
    lines.show(counts)
    counts.miss(31.0)
    lines.show(counts)
    counts.update({"load": 3}, 60.0, done=1)
    lines.show(counts)
    assert file.getvalue().splitlines() == [
        "[    ] | too many tasks left to count |   31.0 s",
        "[#   ] |  25% Completed |   60.0 s",
    ]


def test_what_failed_is_not_completed() -> None:
    counts = Counts()
    counts.update({"load": 4}, 0.0)
    counts.finish(4, 1, 1.0)
    assert counts.rows(by_name=False)[0].text == " 75% Completed |    1.0 s, 1 failed"


def test_nearly_all_is_not_all() -> None:
    counts = Counts()
    counts.update({"load": 1000}, 0.0)
    counts.update({"load": 1}, 0.0)
    assert " 99% Completed" in counts.rows(by_name=False)[0].text


def test_lines_are_written_over_the_lines_before_and_none_is_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "5")
    file, counts = Terminal(), Counts()
    bars = PlainBars(file, 10, 0.1, by_name=True)
    counts.update({"load": 2, "add": 1, "x" * 100: 9, **{f"f{number}": 1 for number in range(9)}}, 0.0)
    bars.show(counts)
    first = file.getvalue()
    assert first.startswith("\r[")
    assert "x" * 40 not in first
    assert [len(line.removesuffix("\x1b[K").lstrip("\r")) <= 39 for line in first.split("\n")] == [True] * 4
    bars.show(counts)
    assert file.getvalue().removeprefix(first).startswith("\r\x1b[3A[")
