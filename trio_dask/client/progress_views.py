"""What `progress` draws: bars on a terminal or in a notebook, else a line now and then."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TextIO

from trio_dask.html_cards import bar_card

if TYPE_CHECKING:
    from rich.table import Table

LINE_S: Final = 30.0
"""Where there is no terminal, a line is written this often."""
MOST_ROWS: Final = 20


class Row(NamedTuple):
    """One bar, and what stands beside it."""

    done: int
    total: int
    text: str

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 0.0

    def line(self, width: int) -> str:
        """As plain text."""
        full = int(width * self.share)
        return f"[{'#' * full}{' ' * (width - full)}] | {self.text}"


class Counts:
    """How many tasks there are and how many are done, by name."""

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._left: Mapping[str, int] = {}
        self._failed = 0
        self._is_known = True
        self.elapsed_s = 0.0
        self.is_over = False

    def update(self, left: Mapping[str, int], elapsed_s: float, done: int = 0) -> None:
        """Take how many tasks are left, by name, and how many were `done` before the first count."""
        if done:
            self._totals["done before"] = done
        self._left = left
        self._is_known = True
        self.elapsed_s = elapsed_s
        for name, number in left.items():
            self._totals[name] = max(self._totals.get(name, 0), number)

    def miss(self, elapsed_s: float) -> None:
        """Too many tasks are left to count them."""
        self._is_known = False
        self.elapsed_s = elapsed_s

    def finish(self, number: int, failed: int, elapsed_s: float) -> None:
        """Nothing is left of what was counted, which is at least this number; so many have `failed`."""
        self._left = {}
        self._is_known = True
        self._failed = failed
        self.elapsed_s = elapsed_s
        self.is_over = True
        if (missed := number - sum(self._totals.values())) > 0:  # they were done before the first answer
            self._totals["done"] = missed

    def rows(self, *, by_name: bool, most: int = MOST_ROWS) -> list[Row]:
        """One for all tasks, then perhaps one for each name, the most frequent first."""
        if not self._is_known:
            return [Row(0, 0, f"too many tasks left to count | {self.elapsed_s:6.1f} s")]
        total = sum(self._totals.values())
        done = max(total - sum(self._left.values()) - self._failed, 0)
        percent = 100 * done // total if total else 0
        failed = f", {self._failed} failed" if self._failed else ""
        rows = [Row(done, total, f"{percent:3}% Completed | {self.elapsed_s:6.1f} s{failed}")]
        if by_name:
            names = sorted(self._totals, key=lambda name: -self._totals[name])[: max(most, 1)]
            digits = max((len(str(self._totals[name])) for name in names), default=1)
            for name in names:
                number = self._totals[name]
                finished = number - self._left.get(name, 0)
                rows.append(Row(finished, number, f"{finished:{digits}} / {number:<{digits}} | {name}"))
        return rows


class View(Protocol):
    """Shows counts. Its methods may block, and are not called by two threads at once.

    `pause_s` is the shortest time between two counts.
    """

    @property
    def pause_s(self) -> float: ...
    def open(self) -> None: ...
    def show(self, counts: Counts) -> None: ...
    def close(self) -> None: ...


class Lines:
    """A line now and then, and one at the end."""

    pause_s = LINE_S

    def __init__(self, stream: TextIO, width: int) -> None:
        self._stream = stream
        self._width = width

    def open(self) -> None:
        pass

    def show(self, counts: Counts) -> None:
        if counts.elapsed_s >= LINE_S or counts.is_over:
            (row,) = counts.rows(by_name=False)
            self._stream.write(f"{row.line(self._width)}\n")
            self._stream.flush()

    def close(self) -> None:
        pass


class PlainBars:
    """Bars on a terminal, written over those before."""

    def __init__(self, stream: TextIO, width: int, pause_s: float, *, by_name: bool) -> None:
        self.pause_s = pause_s
        self._stream = stream
        self._width = width
        self._by_name = by_name
        self._lines = 0

    def open(self) -> None:
        pass

    def show(self, counts: Counts) -> None:
        columns, lines = shutil.get_terminal_size()
        rows = counts.rows(by_name=self._by_name, most=min(MOST_ROWS, lines - 2))
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._lines = len(rows) - 1
        width = min(self._width, columns // 3)
        # A line that is as long as the terminal is wide would wrap, and the next would be drawn below.
        self._write(f"\r{up}" + "\n".join(f"{row.line(width)[: columns - 1]}\x1b[K" for row in rows))

    def close(self) -> None:
        self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class RichBars:
    """The same with rich; what the program prints meanwhile appears above them."""

    def __init__(self, stream: TextIO, width: int, pause_s: float, *, by_name: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.pause_s = pause_s
        self._width = width
        self._by_name = by_name
        self._console = Console(file=stream)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )

    def open(self) -> None:
        self._live.start()

    def show(self, counts: Counts) -> None:
        self._live.update(self._drawn(counts), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _drawn(self, counts: Counts) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.add_column(width=min(self._width, self._console.width // 3))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for row in counts.rows(by_name=self._by_name, most=min(MOST_ROWS, self._console.height - 2)):
            table.add_row(ProgressBar(row.total or 1, row.done), Text(row.text))
        return table


class NotebookBars:
    """What `progress` gives in a notebook: bars that go on where this is shown, after the cell has ended."""

    def __init__(self, width: int, pause_s: float, *, by_name: bool) -> None:
        self.pause_s = pause_s
        self._width = width
        self._by_name = by_name
        self._lock = Lock()
        self._rows = Counts().rows(by_name=by_name)
        self._shown: list[Any] = []
        """Where it is shown, which can be in several places."""

    def __repr__(self) -> str:
        return self._rows[0].line(self._width)

    def _repr_html_(self) -> str:
        return bar_card([(row.share, row.text) for row in self._rows])

    def _ipython_display_(self, **options: Any) -> None:
        from IPython.display import display  # type: ignore[import-not-found, unused-ignore] # a notebook has it

        with self._lock:
            self._shown.append(display(self._bundle(), raw=True, display_id=True))

    def _bundle(self) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def open(self) -> None:
        pass

    def show(self, counts: Counts) -> None:
        with self._lock:
            self._rows = counts.rows(by_name=self._by_name)
            for place in self._shown:
                place.update(self._bundle(), raw=True)

    def close(self) -> None:
        pass


def is_terminal(stream: TextIO) -> bool:
    """Whether lines on it can be written over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def view_of(stream: TextIO, width: int, pause_s: float, *, by_name: bool) -> View:
    """What suits this stream."""
    if not is_terminal(stream):
        return Lines(stream, width)
    bars = PlainBars if find_spec("rich") is None else RichBars
    return bars(stream, width, pause_s, by_name=by_name)
