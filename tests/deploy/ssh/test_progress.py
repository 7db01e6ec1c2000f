"""What the progress of hosts looks like: a table that fits on a terminal, or a line a host."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from rich.console import Console

from trio_dask.deploy.log_formats import TextFormatter
from trio_dask.deploy.log_handler import LogLines
from trio_dask.deploy.ssh import progress
from trio_dask.deploy.ssh.progress import FAILED, JOINED, LOST, VERSION, Board, drawn, open_progress


def board(*places: str, tells_failures: bool = True) -> Board:
    """A board on which each event is half a second after the one before."""
    times = iter(range(10**6))
    return Board(places, JOINED, tells_failures=tells_failures, clock=lambda: next(times) / 2)


def text(of: Board, *, width: int = 80, height: int = 24, complete: bool = True) -> str:
    """The table on a terminal of this size."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(drawn(of, console, complete=complete))
    return capture.get()


def advance(of: Board, place: str, *steps: str) -> None:
    for step in steps:
        of.note(place, step, "")


def test_each_step_has_its_time_and_the_next_one_is_marked() -> None:
    hosts = board("a", "b", "c")
    advance(hosts, "a", *JOINED)
    advance(hosts, "b", "resolve", "login")
    hosts.note("b", FAILED, "python: there is none")
    assert text(hosts) == (
        "HOST  RESOLVE   LOGIN  PYTHON  VERSION  STARTED  JOINED\n"
        "a      0.50 s  1.00 s  1.50 s   2.00 s   2.50 s  3.00 s\n"
        "b      3.50 s  4.00 s  failed                          \n"
        "c         ...                                          \n"
        "b: python: there is none\n"
    )


def test_failures_that_others_tell_are_only_marked() -> None:
    hosts = board("a", tells_failures=False)
    hosts.note("a", FAILED, "connect: refused")
    assert "failed" in text(hosts)
    assert "refused" not in text(hosts)


@pytest.mark.parametrize("height", [10, 24, 60])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_thousand_hosts_fit_on_any_terminal(width: int, height: int) -> None:
    places = [f"host-with-a-long-name-{number:04}.example.org:2222" for number in range(1000)]
    hosts = board(*places)
    for place in places[::3]:
        hosts.note(place, FAILED, f"connect: {'no answer ' * 20}")
    for place in places[1::3]:
        advance(hosts, place, *JOINED)
    lines = text(hosts, width=width, height=height, complete=False).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < height
    assert "fail" in lines[1]
    assert any("more" in line for line in lines)


def test_the_last_table_has_every_failure() -> None:
    places = [f"n{number}" for number in range(1000)]
    hosts = board(*places)
    for place in places[::10]:
        hosts.note(place, FAILED, "connect: refused")
    shown = text(hosts)
    assert all(f"{place}: connect: refused" in shown for place in places[::10])
    assert "900 waiting" in shown


def test_a_host_in_a_line() -> None:
    hosts = board("a", "b")
    hosts.note("a", "resolve", "")
    hosts.note("a", "python", "Python 3.13.1")
    hosts.note("a", "joined", "2 workers")
    assert hosts.line(hosts.rows["a"]) == "a: Python 3.13.1, 2 workers (resolve 0.50 s, python 1.00 s, joined 1.50 s)"
    hosts.note("b", "resolve", "")
    hosts.note("b", FAILED, "login: no")
    assert hosts.line(hosts.rows["b"]) == "b: failed: login: no (until then: resolve 2.00 s)"


def test_a_host_that_is_lost_begins_anew() -> None:
    hosts = board("a")
    advance(hosts, "a", *JOINED)
    assert hosts.is_through(hosts.rows["a"])
    hosts.note("a", LOST, "the connection was lost")
    assert not hosts.is_through(hosts.rows["a"])
    assert hosts.counts(hosts.rows.values()) == "1 waiting"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    caplog.set_level(logging.INFO, "trio_dask.ssh")
    logger = logging.getLogger("trio_dask")
    before, logger.propagate = logger.propagate, True
    yield caplog.messages
    logger.propagate = before


async def test_without_a_terminal_each_host_is_a_log_line_once_it_is_through(
    caplog: pytest.LogCaptureFixture, logged: list[str]
) -> None:
    async with open_progress(Board(["a", "b"], VERSION), live=False) as shown:
        for step in VERSION:
            shown.on_event("a", step, "")
        shown.on_event("b", FAILED, "resolve: unknown")
        shown.finish()
    found = [(record.levelname, record.getMessage().split(" (")[0]) for record in caplog.records]
    assert [(level, text.strip()) for level, text in found] == [
        ("INFO", "a:"),
        ("WARNING", "b: failed: resolve: unknown"),
    ]


async def test_without_rich_a_terminal_gets_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, logged: list[str]
) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    async with open_progress(Board(["a"], VERSION), live=True) as shown:
        shown.on_event("a", "version", "trio_dask 1")
    assert len(caplog.records) == 1


async def test_what_happens_after_the_table_is_news(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, logged: list[str]
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    async with open_progress(Board(["a"], VERSION), live=True) as shown:
        shown.on_event("a", "version", "trio_dask 1")
        assert caplog.records == []
        shown.finish()
        shown.on_event("a", LOST, "")
        shown.on_event("a", "version", "trio_dask 1")
    assert len(caplog.records) == 1


class Terminal(io.StringIO):
    """A file that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


async def test_log_lines_appear_above_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    lines = LogLines(TextFormatter(times=False))
    logger = logging.getLogger("trio_dask")
    logger.addHandler(lines)
    try:
        async with open_progress(Board(["a", "[::1]:22"], VERSION), live=True) as shown:
            logger.warning("[b] is not markup %s", "[/]")
            for step in VERSION:
                shown.on_event("a", step, "")
            await trio.testing.wait_all_tasks_blocked()
            shown.finish()
            table = terminal.getvalue()
            with shown.aside():
                pass
    finally:
        logger.removeHandler(lines)
    assert table.index("[b] is not markup [/]") < table.rindex("HOST")
    assert "[dim]" not in table
    assert "[::1]:22" in table


def test_log_lines_go_their_way_once_the_table_is_finished() -> None:
    lines = LogLines(TextFormatter(times=False))
    taken: list[str] = []

    def write(text: str) -> bool:
        taken.append(text)
        return len(taken) == 1

    with lines.offered_to(write):
        for text in ("one", "two"):
            lines.emit(logging.makeLogRecord({"msg": text}))
    lines.emit(logging.makeLogRecord({"msg": "three"}))
    lines.drain(1)
    assert taken == ["one", "two"]
