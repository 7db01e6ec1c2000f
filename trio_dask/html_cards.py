"""What a notebook shows of a client, a cluster or a future: a small table, as HTML. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final, NamedTuple

from trio_dask.parsing import counted, format_bytes

_CARD: Final = """\
<div style="font-family: sans-serif; font-size: 13px; margin: 4px 0;
  border-left: 4px solid #5b8def; padding: 2px 0 2px 12px;">
<div style="font-weight: 600; margin-bottom: 4px;">{title}</div>
<table style="border-collapse: collapse; text-align: left; margin: 0;">
{rows}
</table>
{inside}</div>
"""
_ROW: Final = """\
<tr><th style="text-align: left; font-weight: normal; opacity: 0.65; padding: 1px 16px 1px 0;">{name}</th>\
<td style="text-align: left; padding: 1px 0;">{value}</td></tr>"""

_BARS: Final = """\
<table style="font-family: sans-serif; font-size: 13px; border-collapse: collapse; text-align: left; margin: 4px 0;">
{rows}
</table>
"""
_BAR: Final = """\
<tr><td style="padding: 2px 12px 2px 0;"><div style="width: 300px; background: rgba(128, 128, 128, 0.25);">\
<div style="width: {percent}%; height: 12px; background: #5b8def;"></div></div></td>\
<td style="text-align: left; padding: 2px 0; white-space: pre;">{text}</td></tr>"""


class Totals(NamedTuple):
    """How much a cluster has. `memory_bytes` is None if not every worker has a limit."""

    workers: int
    threads: int
    memory_bytes: int | None

    @classmethod
    def of(cls, workers: Iterable[Mapping[str, Any]]) -> Totals:
        """Of workers as `scheduler_info` describes them."""
        described = list(workers)
        limits = [worker.get("memory_limit") or 0 for worker in described]
        threads = sum(worker["nthreads"] for worker in described)
        return cls(len(described), threads, sum(limits) if all(limits) else None)

    def text(self) -> str:
        """In one line."""
        return f"{counted(self.workers, 'worker')}, {counted(self.threads, 'thread')}, memory {self._memory()}"

    def rows(self) -> dict[str, str]:
        """For a card."""
        return {"workers": str(self.workers), "threads": str(self.threads), "memory": self._memory()}

    def _memory(self) -> str:
        return "without a limit" if self.memory_bytes is None else format_bytes(self.memory_bytes)


class SchedulerInfo(dict[str, Any]):
    """What a scheduler is and has, as `scheduler_info` gives it; a notebook shows a card."""

    def _repr_html_(self) -> str:
        workers: Mapping[str, Mapping[str, Any]] = self["workers"]
        return card("Scheduler", {"address": str(self["address"]), **Totals.of(workers.values()).rows()})


class Logs(dict[str, str]):
    """What the programs of a cluster have logged: a text for each; a notebook shows them folded."""

    def _repr_html_(self) -> str:
        return "\n".join(
            f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
            for name, text in self.items()
        )


def card(title: str, rows: Mapping[str, str], inside: str = "") -> str:
    """A table with a title; `inside` is another card, as HTML."""
    lines = "\n".join(_ROW.format(name=escape(name), value=escape(value)) for name, value in rows.items())
    return _CARD.format(title=escape(title), rows=lines, inside=inside)


def bar_card(bars: Iterable[tuple[float, str]]) -> str:
    """Bars, each with the share of it that is full, from 0 to 1, and what stands beside it."""
    return _BARS.format(
        rows="\n".join(_BAR.format(percent=f"{100 * share:.1f}", text=escape(text)) for share, text in bars)
    )
