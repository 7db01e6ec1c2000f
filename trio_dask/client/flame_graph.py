"""A profile as a flame graph: parts of a page without scripts, see `report_page`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final, NamedTuple

ROW: Final = 18
LEAST_SHARE: Final = 0.001
"""Functions with a smaller part of all samples are not drawn."""

MOST_LISTED: Final = 20

Tree = Mapping[str, Any]


class _Bar(NamedTuple):
    """A function called in one way. `begin` and `width` are parts of the whole."""

    node: Tree
    depth: int
    begin: float
    width: float


def flame_graph(tree: Tree) -> list[str]:
    """A drawing in which a function is as wide as the time spent in it, and the functions with the most own time."""
    total = tree["count"]
    if not total:
        return ["<p>No samples.</p>"]
    bars = list(_bars(tree))
    height = (max(bar.depth for bar in bars) + 1) * ROW
    parts = [
        f"<p>{total} samples. Callers are above what they call; a wider one has taken more time.</p>",
        f'<svg class="flames" width="100%" height="{height}">',
    ]
    for node, depth, begin, width in bars:
        text = _title(node) if depth else "all tasks"
        hue = sum(node["description"]["filename"].encode()) * 47 % 360
        parts.append(
            f'<svg x="{begin:.3%}" y="{depth * ROW}" width="{width:.3%}" height="{ROW}">'
            f"<title>{escape(text)}: {node['count']} samples, {node['count'] / total:.1%}</title>"
            f'<rect width="100%" height="{ROW - 1}" fill="hsl({hue} 65% 75%)"/>'
            f'<text x="3" y="{ROW - 5}">{escape(node["description"]["name"] or text)}</text></svg>'
        )
    return [*parts, "</svg>", *_own_times(tree)]


def _bars(tree: Tree) -> Iterator[_Bar]:
    stack = [_Bar(tree, 0, 0.0, 1.0)]
    while stack:
        bar = stack.pop()
        yield bar
        begin = bar.begin
        for child in sorted(bar.node["children"].values(), key=lambda child: -child["count"]):
            width = child["count"] / tree["count"]
            if width >= LEAST_SHARE:
                stack.append(_Bar(child, bar.depth + 1, begin, width))
            begin += width


def _own_times(tree: Tree) -> Iterator[str]:
    own: dict[str, int] = {}
    stack = [tree]
    while stack:
        node = stack.pop()
        children = list(node["children"].values())
        alone = node["count"] - sum(child["count"] for child in children)
        if alone:
            own[_title(node)] = own.get(_title(node), 0) + alone
        stack += children
    yield '<table><tr><th>time in the function itself</th><th class="n">samples</th><th class="n">share</th></tr>'
    for title in sorted(own, key=lambda title: -own[title])[:MOST_LISTED]:
        share = own[title] / tree["count"]
        yield f'<tr><td>{escape(title)}</td><td class="n">{own[title]}</td><td class="n">{share:.1%}</td></tr>'
    yield "</table>"


def _title(node: Tree) -> str:
    described = node["description"]
    place = f" ({described['filename']}:{described['line_number']})" if described["filename"] else ""
    return f"{described['name']}{place}"
