"""From outcomes to rows, and from rows to text, Markdown and JSON."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .facts import Facts
from .harness import Outcomes
from .model import OURS, Bound, Case, Kind, Metric


def show(value: float, kind: Kind) -> str:
    if kind is Kind.TIME:
        for factor, unit in ((1.0, "s"), (1e3, "ms")):
            if value * factor >= 1:
                return f"{value * factor:,.3g} {unit}"
        return f"{value * 1e6:,.3g} µs"
    if kind is Kind.RATE:
        return f"{value / 1e9:.2f} GB/s"
    if kind is Kind.SIZE:
        return f"{value:,.0f} B"
    return f"{value:.2f} %" if kind is Kind.PERCENT else f"{value:.2f}"


def show_ratio(ratio: float) -> str:
    """``1/80`` says more than ``0.0125``."""
    return f"1/{1 / ratio:.3g}" if 0 < ratio < 0.95 else f"{ratio:.3g}x"


@dataclass
class Row:
    metric: Metric
    cells: dict[str, str]
    remarks: dict[str, str]
    ratios: dict[str, str]
    required: str
    verdict: str
    """pass, fail, "-" where nothing is required, or why it cannot be said."""
    note: str
    data: dict[str, Any]


def _figure(outcomes: Outcomes, case: Case, metric: Metric, rival: str) -> tuple[float | None, str]:
    """The median, and what is to be said about it or about its absence."""
    name, key = case.name, metric.key
    if metric.rivals_key is not None and rival != OURS:
        name, _, key = metric.rivals_key.partition(".")
    outcome = outcomes.get((name, rival))
    if outcome is None:
        return None, ""
    median = outcome.median(key)
    return median, outcome.reason or "no such figure" if median is None else outcome.remark()


def _judge(bound: Bound, ours: float, rivals: dict[str, float | None]) -> bool | None:
    if bound.rival is None:
        return bound.holds(ours)
    theirs = rivals.get(bound.rival)
    return bound.holds(ours / theirs) if theirs else None


def make_rows(cases: Sequence[Case], rivals: Sequence[str], outcomes: Outcomes) -> list[Row]:
    return [_row(case, metric, rivals, outcomes) for case in cases for metric in case.metrics]


def _row(case: Case, metric: Metric, rivals: Sequence[str], outcomes: Outcomes) -> Row:
    figures: dict[str, float | None] = {}
    cells: dict[str, str] = {}
    remarks: dict[str, str] = {}
    ratios: dict[str, str] = {}
    for rival in rivals:
        value, remark = _figure(outcomes, case, metric, rival)
        figures[rival] = value
        if remark:
            remarks[rival] = remark
        cells[rival] = show(value, metric.kind) if value is not None else "n/a" if remark else "-"
    ours = figures.get(OURS)
    for rival in rivals:
        theirs = figures[rival]
        if rival != OURS:
            ratios[rival] = show_ratio(ours / theirs) if ours and theirs else "-"
    judged = [_judge(bound, ours, figures) for bound in metric.bounds] if ours is not None else []
    verdict = "-"
    our_outcome = outcomes.get((case.name, OURS))
    if False in judged or (metric.bounds and our_outcome is not None and our_outcome.failures):
        verdict = "FAIL"
    elif metric.bounds:
        verdict = "pass" if judged and None not in judged else "not measured"
    samples = {
        rival: outcome.samples[metric.key]
        for rival in rivals
        if (outcome := outcomes.get((case.name, rival))) is not None and metric.key in outcome.samples
    }
    return Row(
        metric,
        cells,
        remarks,
        ratios,
        "; ".join(bound.text for bound in metric.bounds) or "-",
        verdict,
        case.note,
        {
            "case": case.name,
            "metric": metric.key,
            "label": metric.label,
            "unit": metric.kind.value,
            "median": figures,
            "samples": samples,
            "remarks": remarks,
            "required": [bound.text for bound in metric.bounds],
            "verdict": verdict,
        },
    )


def _grid(rows: Sequence[Row], rivals: Sequence[str], notes: list[str]) -> list[list[str]]:
    """Header and rows; reasons and remarks become numbered notes, so that columns stay narrow."""

    def noted(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f"[{notes.index(text) + 1}]"

    others = [rival for rival in rivals if rival != OURS]
    with_ratio = others if OURS in rivals else []
    grid = [["case", *rivals, *(f"ours / {rival}" for rival in with_ratio), "required", "verdict"]]
    for row in rows:
        cells = [
            f"{row.cells[rival]} {noted(row.remarks[rival])}" if rival in row.remarks else row.cells[rival]
            for rival in rivals
        ]
        label = f"{row.metric.label} {noted(row.note)}" if row.note else row.metric.label
        grid.append([label, *cells, *(row.ratios[rival] for rival in with_ratio), row.required, row.verdict])
    return grid


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def as_text(rows: Sequence[Row], rivals: Sequence[str], facts: Facts) -> str:
    notes: list[str] = []
    grid = _grid(rows, rivals, notes)
    widths = [max(_width(line[column]) for line in grid) for column in range(len(grid[0]))]
    lines = [
        "  ".join(cell + " " * (widths[i] - _width(cell)) for i, cell in enumerate(line)).rstrip() for line in grid
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    numbered = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*facts.lines(), "", *lines, "", *numbered]).rstrip()


def as_markdown(rows: Sequence[Row], rivals: Sequence[str], facts: Facts) -> str:
    notes: list[str] = []
    grid = [[cell.replace("|", "\\|") for cell in line] for line in _grid(rows, rivals, notes)]
    lines = ["| " + " | ".join(line) + " |" for line in grid]
    lines.insert(1, "|" + "---|" * len(grid[0]))
    numbered = [f"- [{number}] {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*(f"- {line}" for line in facts.lines()), "", *lines, "", *numbered]).rstrip() + "\n"


def as_json(rows: Sequence[Row], facts: Facts) -> dict[str, Any]:
    return {"facts": facts.as_dict(), "rows": [row.data for row in rows]}
