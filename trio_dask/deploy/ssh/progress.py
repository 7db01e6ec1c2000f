"""How far each host is: a live table on a terminal that `rich` can draw on, else one log line a host.

A launcher calls `on_event` with a host, a step and a text. The table is drawn again soon after that; log lines appear
above it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import RLock
from typing import TYPE_CHECKING, Final, Protocol

import trio

from trio_dask.deploy.log_handler import stderr_lines
from trio_dask.parsing import counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

VERSION: Final = ("resolve", "login", "python", "version")
"""The steps of a host that is only looked at."""
REACHED: Final = (*VERSION, "reach")
"""The steps of a host that is checked: the last is its way to the scheduler's address."""
JOINED: Final = (*VERSION, "started", "joined")
"""The steps of a host that runs workers."""
FAILED: Final = "failed"
LOST: Final = "lost"

LONGEST_PAUSE_S = 0.25
"""The clock of the table runs even where nothing happens."""
SHORTEST_PAUSE_S = 0.05
TOLD = 4
"""Failures whose words are below a table that is not complete yet."""
OTHER_LINES = TOLD + 5
"""Lines of a terminal that the rows of hosts leave free."""

log = logging.getLogger("trio_dask.ssh")


@dataclass
class Row:
    """One host: the steps that are done, each with its time since the start and a text, and why it failed, if so."""

    place: str
    done: dict[str, tuple[float, str]] = field(default_factory=dict[str, tuple[float, str]])
    failure: str = ""


class Board:
    """What is known of each host. The host is through when the last of the `steps` is done, or when it has failed.

    It `tells_failures` unless the launcher does that: then it only counts them.
    """

    def __init__(
        self,
        places: Sequence[str],
        steps: Sequence[str],
        *,
        tells_failures: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps = steps
        self.tells_failures = tells_failures
        self.rows = {place: Row(place) for place in places}
        self._clock = clock
        self._began_at = clock()

    @property
    def elapsed_s(self) -> float:
        """The time since the start."""
        return self._clock() - self._began_at

    def note(self, place: str, step: str, text: str) -> bool:
        """Take an event in; returns whether the host is through with it."""
        row = self.rows.setdefault(place, Row(place))
        if step == FAILED:
            row.failure = text
        elif step == LOST:
            row.done.clear()
        elif step in self.steps:
            row.done[step] = self.elapsed_s, text
        return step in (FAILED, self.steps[-1])

    def is_through(self, row: Row) -> bool:
        """Whether nothing more is expected of this host."""
        return bool(row.failure) or self.steps[-1] in row.done

    def line(self, row: Row) -> str:
        """One host in a line of a log."""
        times = ", ".join(f"{step} {at:.2f} s" for step, (at, _) in row.done.items())
        if row.failure:
            return f"{row.place}: failed: {row.failure}" + (f" (until then: {times})" if times else "")
        texts = ", ".join(text for _, text in row.done.values() if text)
        return f"{row.place}: {texts} ({times})"

    def counts(self, rows: Iterable[Row]) -> str:
        """How many of these hosts are where: `3 joined, 1 login, 2 failed`."""
        numbers = dict.fromkeys((*reversed(self.steps), "waiting", FAILED), 0)
        for row in rows:
            numbers[FAILED if row.failure else next(reversed(row.done), "waiting")] += 1
        return ", ".join(f"{number} {step}" for step, number in numbers.items() if number)


class Progress(Protocol):
    """Shows how far the hosts are."""

    def on_event(self, place: str, step: str, text: str) -> object:
        """Take an event in."""
        ...

    def finish(self) -> None:
        """All hosts are through: what comes now is news of a running cluster."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """For the block, which may be in another thread, somebody else writes to the terminal."""
        ...


@asynccontextmanager
async def open_progress(board: Board, *, live: bool) -> AsyncGenerator[Progress]:
    """What shows the progress of hosts for as long as the block lasts; as a table if `live` and possible."""
    if not live or find_spec("rich") is None:
        yield _Lines(board)
        return
    table = _LiveTable(board)
    with table.shown():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.keep_fresh)
            yield table
            nursery.cancel_scope.cancel()


class _Lines:
    """A log line for each host that is through."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def on_event(self, place: str, step: str, text: str) -> None:
        is_through, row = self._board.note(place, step, text), self._board.rows[place]
        if is_through and (self._board.tells_failures or not row.failure):
            log.log(logging.WARNING if row.failure else logging.INFO, "%s", self._board.line(row))

    def finish(self) -> None:
        pass

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()


class _LiveTable:
    """A table on a terminal, drawn in place until all hosts are through."""

    def __init__(self, board: Board) -> None:
        from rich.console import Console
        from rich.live import Live

        self._board = board
        self._lines = _Lines(board)
        self._changed = trio.Event()
        self._finished = False
        self._lock = RLock()
        self._console = Console(stderr=True)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=lambda: drawn(board, self._console, complete=self._finished),
        )

    @contextmanager
    def shown(self) -> Generator[None]:
        """For the block the table is on the terminal, unless `finish` ends it before."""
        with stderr_lines(self._write):
            self._live.start()
            try:
                yield
            finally:
                self.finish()

    def _write(self, text: str) -> bool:
        """Write a log line above the table, from any thread; False if there is none any more."""
        from rich.text import Text

        with self._lock:
            if self._finished:
                return False
            self._console.print(Text(text), soft_wrap=True)
            return True

    async def keep_fresh(self) -> None:
        """Draw the table again after each event, and from time to time."""
        while not self._finished:
            with trio.move_on_after(LONGEST_PAUSE_S):
                await self._changed.wait()
            self._changed = trio.Event()
            with self._lock:
                if not self._finished:
                    self._live.refresh()
            await trio.sleep(SHORTEST_PAUSE_S)

    def on_event(self, place: str, step: str, text: str) -> None:
        if self._finished:
            self._lines.on_event(place, step, text)
            return
        self._board.note(place, step, text)
        self._changed.set()

    def finish(self) -> None:
        with self._lock:
            if not self._finished:
                self._finished = True
                self._live.stop()
                self._console.print()

    @contextmanager
    def aside(self) -> Generator[None]:
        with self._lock:  # nothing is drawn, and no log line written
            yield


def drawn(board: Board, console: Console, *, complete: bool) -> RenderableType:
    """The table, with as many hosts as fit; a `complete` one has all failures."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    room = max(1, console.height - OTHER_LINES)
    rows = sorted(board.rows.values(), key=lambda row: (not row.failure, board.is_through(row)))
    if len(rows) <= room:
        rows = list(board.rows.values())
    shown, hidden = rows[:room], rows[room:]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("HOST", no_wrap=True, overflow="ellipsis", max_width=max(12, console.width // 3))
    for step in board.steps:
        table.add_column(step.upper(), justify="right", no_wrap=True)
    for row in shown:
        table.add_row(Text(row.place), *(_cell(board, row, step) for step in board.steps))
    failed = [row for row in board.rows.values() if row.failure] if board.tells_failures else []
    told = failed if complete else failed[:TOLD]
    lines = [Text(f"{row.place}: {row.failure}", "red", no_wrap=not complete, overflow="ellipsis") for row in told]
    if len(told) < len(failed):
        lines.append(Text(f"and {len(failed) - len(told)} more", "red"))
    if hidden:
        lines.insert(0, Text(f"and {counted(len(hidden), 'more host')}: {board.counts(hidden)}", "dim"))
    if not complete:
        lines.append(Text(f"{board.counts(board.rows.values())}  {board.elapsed_s:.1f} s", "dim"))
    return Group(table, *lines)


def _cell(board: Board, row: Row, step: str) -> Text:
    from rich.text import Text

    if step in row.done:
        return Text(f"{row.done[step][0]:.2f} s", "green")
    reached = max((number for number, each in enumerate(board.steps) if each in row.done), default=-1)
    if board.steps.index(step) != reached + 1:
        return Text()
    return Text("failed", "red") if row.failure else Text("...", "dim")
