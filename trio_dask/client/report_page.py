"""A page about the runs of tasks: one HTML file without scripts, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from trio_dask.ids import name_of

MOST_DRAWN: Final = 20_000
"""Runs that are drawn; of more, the longest."""

LEAST_OVERLAP: Final = 0.001
OVERLAP_SHARE: Final = 0.25
"""Of two runs that overlap by less than these seconds, or this part of the second, one thread may have run both."""

WIDTH: Final = 1000
ROW: Final = 14

_STYLE: Final = (
    "body{font:14px sans-serif;margin:2em;max-width:1200px}table{border-collapse:collapse;margin-bottom:2em}"
    "td,th{padding:.2em 1em .2em 0;text-align:left}td.n,th.n{text-align:right}svg{background:#f6f6f6}"
    ".stream{width:100%}.flames text{font:11px sans-serif}"
)


def page(
    title: str, summary: Sequence[tuple[str, str]], runs: Sequence[Mapping[str, Any]], more: Sequence[str] = ()
) -> str:
    """A page about these runs, with `more` parts of it at the end."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in summary)
    parts = [
        f"<table>{rows}</table>",
        *_totals("Functions", [name_of(run["key"]) for run in runs], runs),
        *_span_totals(runs),
        *_totals("Workers", [str(run["worker"]) for run in runs], runs),
        *_stream(runs),
        *more,
    ]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page."""
    head = f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    return "\n".join(
        [f"{head}<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>", *parts, "</body></html>\n"]
    )


def _times(run: Mapping[str, Any]) -> tuple[float, float]:
    (span,) = run["startstops"]
    return span["start"], span["stop"]


def _span_totals(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each span has the runs of those within it."""
    pairs = [(" / ".join(run["span"][:depth]), run) for run in runs for depth in range(1, len(run.get("span", ())) + 1)]
    return _totals("Spans", [name for name, _ in pairs], [run for _, run in pairs]) if pairs else []


def _totals(title: str, names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    counts: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for name, run in zip(names, runs, strict=True):
        start, stop = _times(run)
        counts[name] = counts.get(name, 0) + 1
        seconds[name] = seconds.get(name, 0.0) + stop - start
    rows = [
        f'<tr><td>{escape(name)}</td><td class="n">{counts[name]}</td><td class="n">{seconds[name]:.3f} s</td></tr>'
        for name in sorted(counts, key=lambda name: -seconds[name])
    ]
    head = '<tr><th></th><th class="n">runs</th><th class="n">time</th></tr>'
    return [f"<h2>{title}</h2><table>{head}", *rows, "</table>"]


def lanes(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """A row for each run: its worker, and a number that no other run has there at the same time."""
    chosen: list[tuple[str, int]] = [("", 0)] * len(runs)
    free_at: dict[str, list[float]] = {}
    for number in sorted(range(len(runs)), key=lambda number: _times(runs[number])):
        start, stop = _times(runs[number])
        worker = str(runs[number]["worker"])
        ends = free_at.setdefault(worker, [])
        # Ends are taken when the report arrives, so a run may seem to begin before the last one there has ended.
        overlap_s = max(LEAST_OVERLAP, OVERLAP_SHARE * (stop - start))
        lane = next((lane for lane, end in enumerate(ends) if end <= start + overlap_s), len(ends))
        ends[lane : lane + 1] = [stop]
        chosen[number] = worker, lane
    return chosen


def _stream(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not runs:
        return ["<p>No task ran.</p>"]
    longest = sorted(runs, key=lambda run: _times(run)[0] - _times(run)[1])
    drawn = longest[:MOST_DRAWN]
    begin, end = min(_times(run)[0] for run in drawn), max(_times(run)[1] for run in drawn)
    scale = WIDTH / max(end - begin, 1e-6)
    placed = lanes(drawn)
    rows = {place: number for number, place in enumerate(sorted(set(placed)))}
    left_out = f" (the {MOST_DRAWN} longest of {len(runs)} runs)" if len(runs) > len(drawn) else ""
    parts = [
        f"<h2>Task stream, {end - begin:.2f} s{left_out}</h2>",
        f'<svg class="stream" viewBox="0 0 {WIDTH} {len(rows) * ROW}" preserveAspectRatio="none">',
    ]
    for run, place in zip(drawn, placed, strict=True):
        start, stop = _times(run)
        name = name_of(run["key"])
        color = f"hsl({sum(name.encode()) * 47 % 360} 60% 55%)" if run["status"] == "OK" else "#000"
        parts.append(
            f'<rect x="{(start - begin) * scale:.2f}" y="{rows[place] * ROW + 1}" '
            f'width="{max((stop - start) * scale, 0.5):.2f}" height="{ROW - 2}" fill="{color}">'
            f"<title>{escape(str(run['key']))}, {stop - start:.3f} s on {escape(place[0])}</title></rect>"
        )
    return [*parts, "</svg><p>Runs at the same time on one worker have rows of their own. Failed runs are black.</p>"]
