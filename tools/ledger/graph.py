"""Draw which equation rests on which: a layered drawing, written as static SVG.

Premises stand to the left of what they prove. The steps are those of Sugiyama's method: layers by
longest path, unit pieces for edges that cross several layers, fewer crossings by barycentres,
then heights that draw neighbours together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

__all__ = ["Node", "draw"]

HEIGHT, GAP, BETWEEN, MARGIN = 26, 10, 56, 8  # of a node; between rows, columns; around all
CHARACTER = 7.3  # width of one at the font size that the style sheet sets
SWEEPS = 12


@dataclass
class Node:
    """One equation in the drawing."""

    key: str
    text: str
    href: str = ""
    title: str = ""
    classes: str = ""
    premises: Sequence[str] = ()

    @property
    def width(self) -> float:
        """Width of its box."""
        return CHARACTER * len(self.text) + 16


@dataclass
class _Layout:
    """Columns of keys; an edge over several has a piece, named ``from→to@column``, in each."""

    columns: list[list[str]]
    links: list[tuple[str, str]]  # between neighbouring columns
    y: dict[str, float] = field(default_factory=dict)

    def height(self, key: str) -> float:
        """Pieces of edges need less room than nodes."""
        return HEIGHT if "@" not in key else 4.0


def draw(nodes: Sequence[Node], name: str, title: str, description: str) -> str:
    """Return the drawing as an SVG element; ``name`` makes its ids unique in a page."""
    known = {node.key: node for node in nodes}
    edges = _edges(known)
    linked = {key for edge in edges for key in edge}
    layout = _layers([node.key for node in nodes if node.key in linked], edges)
    _order(layout)
    _place(layout)
    width, shapes = _columns(layout, known)
    height = max((layout.y[k] + HEIGHT / 2 for c in layout.columns for k in c), default=0.0)
    lines = [_curve(layout, edge, shapes, name) for edge in edges]
    boxes = [_box(known[key], *shapes[key]) for key in shapes if key in known]
    return "\n".join(
        [
            f'<svg class="eq-graph" role="group" aria-labelledby="{name}-title {name}-text" '
            f'viewBox="0 0 {width + MARGIN:.0f} {height + MARGIN:.0f}" '
            f'width="{width + MARGIN:.0f}" height="{height + MARGIN:.0f}">',
            f'<title id="{name}-title">{escape(title)}</title>',
            f'<desc id="{name}-text">{escape(description)}</desc>',
            f'<marker id="{name}-tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker>',
            *lines,
            *boxes,
            "</svg>",
        ]
    )


def _edges(known: Mapping[str, Node]) -> list[tuple[str, str]]:
    """Return the edges between known nodes, without those that close a circle."""
    edges: list[tuple[str, str]] = []
    state: dict[str, int] = {}  # 1 while its premises are followed, 2 after

    def visit(key: str) -> None:
        state[key] = 1
        for premise in known[key].premises:
            if premise in known and state.get(premise) != 1:
                edges.append((premise, key))
                if premise not in state:
                    visit(premise)
        state[key] = 2

    for key in known:
        if key not in state:
            visit(key)
    return edges


def _layers(keys: Sequence[str], edges: Sequence[tuple[str, str]]) -> _Layout:
    """Give each node the column after its last premise, and cut long edges into pieces."""
    column = dict.fromkeys(keys, 0)
    moved = True
    while moved:
        moved = False
        for start, end in edges:
            if column[end] <= column[start]:
                column[end], moved = column[start] + 1, True
    columns: list[list[str]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for key in keys:
        columns[column[key]].append(key)
    links: list[tuple[str, str]] = []
    for start, end in edges:
        chain = _chain(start, end, column[start], column[end])
        for at, piece in enumerate(chain[1:-1], column[start] + 1):
            columns[at].append(piece)
        links += pairwise(chain)
    return _Layout(columns, links)


def _chain(start: str, end: str, first: int, last: int) -> list[str]:
    """Return the stations of an edge, one in each column."""
    return [start, *(f"{start}→{end}@{at}" for at in range(first + 1, last)), end]


def _neighbours(layout: _Layout) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for start, end in layout.links:
        after.setdefault(start, []).append(end)
        before.setdefault(end, []).append(start)
    return before, after


def _order(layout: _Layout) -> None:
    """Sort each column by the mean place of its neighbours, to and fro; keep the best."""
    before, after = _neighbours(layout)
    best, fewest = [list(c) for c in layout.columns], _crossings(layout)
    for sweep in range(SWEEPS):
        forth = sweep % 2 == 0
        near = before if forth else after
        for column in layout.columns if forth else layout.columns[::-1]:
            place = {key: i for c in layout.columns for i, key in enumerate(c)}
            mean = {
                key: sum(place[n] for n in near[key]) / len(near[key])
                if key in near
                else place[key]
                for key in column
            }
            column.sort(key=lambda key: mean[key])
        if (count := _crossings(layout)) < fewest:
            best, fewest = [list(c) for c in layout.columns], count
    layout.columns = best


def _crossings(layout: _Layout) -> int:
    """Count pairs of links between the same two columns that cross."""
    at = {key: (c, i) for c, keys in enumerate(layout.columns) for i, key in enumerate(keys)}
    spans: dict[int, list[tuple[int, int]]] = {}
    for start, end in layout.links:
        spans.setdefault(at[start][0], []).append((at[start][1], at[end][1]))
    return sum(
        (a - c) * (b - d) < 0
        for links in spans.values()
        for i, (a, b) in enumerate(links)
        for c, d in links[:i]
    )


def _place(layout: _Layout) -> None:
    """Set heights: stacked at first, then each near its neighbours, in order and apart."""
    for column in layout.columns:
        _stack(layout, column, dict.fromkeys(column, 0.0))
    before, after = _neighbours(layout)
    for sweep in range(SWEEPS):
        near = before if sweep % 2 == 0 else after
        for column in layout.columns:
            wish = {
                key: sum(layout.y[n] for n in near[key]) / len(near[key])
                if key in near
                else layout.y[key]
                for key in column
            }
            _stack(layout, column, wish)
    top = min((layout.y[key] - HEIGHT / 2 for c in layout.columns for key in c), default=0.0)
    for key in layout.y:
        layout.y[key] += MARGIN - top


def _stack(layout: _Layout, column: Sequence[str], wish: Mapping[str, float]) -> None:
    """Place a column in its order, as near to the wishes as keeping apart allows.

    Keys that would overlap form a block that stands at the mean of what its members wish.
    """
    blocks: list[tuple[list[str], list[float], float]] = []  # keys, wishes of the first, height
    for key in column:
        keys, wishes, size = [key], [wish[key]], layout.height(key) + GAP
        wishes = [wish[key] - size / 2]
        while blocks:
            above, others, tall = blocks[-1]
            if sum(others) / len(others) + tall <= sum(wishes) / len(wishes):
                break
            blocks.pop()
            keys = above + keys
            wishes = others + [w - tall for w in wishes]
            size += tall
        blocks.append((keys, wishes, size))
    for keys, wishes, _ in blocks:
        top = sum(wishes) / len(wishes)
        for key in keys:
            size = layout.height(key) + GAP
            layout.y[key] = top + size / 2
            top += size


Shape = tuple[float, float, float]  # left edge, width, middle height


def _columns(layout: _Layout, known: Mapping[str, Node]) -> tuple[float, dict[str, Shape]]:
    """Return the whole width, and where each node and piece of an edge stands."""
    shapes: dict[str, Shape] = {}
    x = float(MARGIN)
    for column in layout.columns:
        wide = max(known[key].width for key in column if key in known)
        for key in column:
            shapes[key] = (x, wide, layout.y[key])
        x += wide + BETWEEN
    return max(x - BETWEEN, 0.0), shapes


def _curve(layout: _Layout, edge: tuple[str, str], shapes: Mapping[str, Shape], name: str) -> str:
    """Return an edge as a smooth path through its stations."""
    start, end = edge
    at = {key: c for c, keys in enumerate(layout.columns) for key in keys}
    stations = _chain(start, end, at[start], at[end])
    left, width, y = shapes[start]
    path = f"M{left + width:.0f} {y:.0f}"
    for before, key in pairwise(stations):
        right, old = sum(shapes[before][:2]), shapes[before][2]
        left, width, y = shapes[key]
        path += f"C{right + BETWEEN / 2:.0f} {old:.0f} {left - BETWEEN / 2:.0f} {y:.0f} "
        path += f"{left:.0f} {y:.0f}" + (f"H{left + width:.0f}" if key != end else "")
    return f'<path class="eq-edge" d="{path}" marker-end="url(#{name}-tip)"/>'


def _box(node: Node, left: float, width: float, y: float) -> str:
    box = (
        f'<rect x="{left:.0f}" y="{y - HEIGHT / 2:.0f}" width="{width:.0f}" height="{HEIGHT}" '
        f'rx="5"/><text x="{left + width / 2:.0f}" y="{y + 4:.0f}">{escape(node.text)}</text>'
    )
    label = f"<title>{escape(node.title)}</title>" if node.title else ""
    if node.href:
        box = f'<a href="{escape(node.href)}">{label}{box}</a>'
    return f'<g class="eq-node {node.classes}">{box}</g>'
