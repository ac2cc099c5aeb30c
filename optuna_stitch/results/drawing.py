"""A pair as a picture: two lanes of points from input to output, and the stitches across."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optuna_stitch.networks.graph import NetworkGraph
from optuna_stitch.networks.points import Point
from optuna_stitch.results import svg
from optuna_stitch.stitching.matching import Match, PointKind, select_points

# All lengths are in pixels. Points are far apart where there are few of them, and close where
# there are many, so that a deep pair still fits a page that one scrolls.
_WIDEST_PITCH, _NARROWEST_PITCH, _LANE = 24.0, 6.0, 1200.0
_LABEL_HEIGHT = 14
_LONGEST_NAME = 36
_WIDEST_BAR, _NARROWEST_BAR = 90.0, 5.0
_BETWEEN = 260.0  # the lanes, for the stitches
_MARGIN, _SPACE = 20.0, 8.0
_HEADER = 150.0
_CANDIDATES: dict[PointKind, str] = {
    "auto": "dominators",
    "all": "points",
    "dominators": "dominators (points that everything flows through)",
    "blocks": "outputs of blocks",
}


@dataclass(frozen=True)
class _Row:
    """What a lane shows at one height: the input, a point, or the output."""

    name: str
    detail: str
    share: float  # of the network's MACs, computed since the row above
    kind: Literal["end", "block", "point"]
    state: Literal["end", "matched", "unmatched"]
    y: float

    @property
    def label(self) -> str:
        """The readable name, cut in its middle where it is very long."""
        half = _LONGEST_NAME // 2
        if len(self.name) <= _LONGEST_NAME:
            return self.name
        return f"{self.name[: half - 1]}…{self.name[-half:]}"

    @property
    def width(self) -> float:
        return svg.LABEL_CHARACTER * (len(self.label) + 2 + len(self.detail))


def draw_pair(
    a: NetworkGraph, b: NetworkGraph, matches: Sequence[Match], *, points: PointKind
) -> ET.Element:
    """Draw both networks side by side, from input (top) to output (bottom).

    Every candidate point is a bar, as wide as its share of its network's multiply-accumulates
    since the point above. A line across stands for the two stitches of a match. Labels are
    thinned out where points are dense, the outputs of blocks last.

    Args:
        a: Parent a, on the left.
        b: Parent b, on the right.
        matches: Pairs of points.
        points: Which points were candidates for matching.

    Returns:
        The root of an SVG document.
    """
    graphs = (a, b)
    candidates = [select_points(graph, points) for graph in graphs]
    matched = [{pair.a.node for pair in matches}, {pair.b.node for pair in matches}]
    dense = max(map(len, candidates)) + 2
    pitch = min(max(_LANE / dense, _NARROWEST_PITCH), _WIDEST_PITCH)
    lanes = [_rows(*side, pitch * dense) for side in zip(graphs, candidates, matched, strict=True)]
    widest = max(row.share for rows in lanes for row in rows)

    title = f"{a.name} × {b.name}"
    subtitle = f"{len(matches)} matches among their {_CANDIDATES[points]}"
    side = max(
        *(row.width + _WIDEST_BAR + _SPACE for rows in lanes for row in rows),
        *(svg.text_width(text) for graph in graphs for text in (graph.name, _sizes(graph))),
        (svg.text_width(title, 18) - _BETWEEN) / 2,
        200.0,
    )
    width = 2 * (_MARGIN + side) + _BETWEEN
    root = svg.document(width, _HEADER + pitch * dense + _MARGIN, f"{title}: {subtitle}")
    svg.text(root, "title", (width / 2, 32), title, "middle")
    svg.text(root, "note", (width / 2, 52), subtitle, "middle")
    _legend(root, width / 2, widest)

    body = ET.SubElement(root, "g", transform=f"translate(0 {_HEADER:.0f})")
    left, right = _MARGIN + side, _MARGIN + side + _BETWEEN
    y_of_a, y_of_b = (
        {point.node: row.y for point, row in zip(of, rows[1:-1], strict=True)}
        for of, rows in zip(candidates, lanes, strict=True)
    )
    for pair in matches:
        _stitches(body, pair, (left, y_of_a[pair.a.node]), (right, y_of_b[pair.b.node]))
    thickness = min(pitch - 1.5, 12.0)
    for graph, rows, x, direction in zip(graphs, lanes, (left, right), (-1, 1), strict=True):
        anchor = _anchor(direction)
        svg.text(root, "parent", (x, _HEADER - 26), graph.name, anchor)
        svg.text(root, "note", (x, _HEADER - 10), _sizes(graph), anchor)
        _lane(body, rows, x, direction, thickness, widest)
    return root


def write_svg(figure: ET.Element, path: Path) -> None:
    """Write a drawing as an SVG file."""
    ET.ElementTree(figure).write(path, encoding="utf-8", xml_declaration=True)


def _rows(
    graph: NetworkGraph, points: Sequence[Point], matched: set[str], length: float
) -> list[_Row]:
    """A lane from its input to its output, evenly spread."""
    since, rest = _macs_since(graph, points)
    whole = max(graph.macs, 1)
    pitch = length / (len(points) + 2)
    shape = "×".join(map(str, graph.input_shape))
    rows = [_Row("images", shape, 0.0, "end", "end", pitch / 2)]
    for place, (point, macs) in enumerate(zip(points, since, strict=True), start=1):
        row = _Row(
            name=point.name,
            detail=str(point.layout),
            share=macs / whole,
            kind="block" if point.block else "point",
            state="matched" if point.node in matched else "unmatched",
            y=pitch * (place + 0.5),
        )
        rows.append(row)
    classes = f"{graph.classes} classes"
    return [*rows, _Row("output", classes, rest / whole, "end", "end", length - pitch / 2)]


def _macs_since(graph: NetworkGraph, points: Sequence[Point]) -> tuple[list[int], int]:
    """What is computed from one point to the next, and after the last of them."""
    place = {point.node: index for index, point in enumerate(points)}
    since = [0] * len(points)
    running = 0
    for name, cost in graph.costs.items():  # in the order of execution
        running += cost.macs
        if name in place:
            since[place[name]], running = running, 0
    return since, running


def _sizes(graph: NetworkGraph) -> str:
    return f"{graph.macs / 1e6:,.1f} M MACs, {graph.parameters / 1e6:,.2f} M parameters"


def _lane(
    parent: ET.Element,
    rows: Sequence[_Row],
    x: float,
    direction: int,
    thickness: float,
    widest: float,
) -> None:
    """Draw a lane: its spine, a bar for each row, and the labels that find room."""
    svg.line(parent, "spine", (x, rows[0].y), (x, rows[-1].y))
    labelled = _room_for_labels(rows)
    edge = x + direction * (_WIDEST_BAR + _SPACE)
    for index, row in enumerate(rows):
        share = row.share / widest if widest else 0.0
        width = direction * (_NARROWEST_BAR + (_WIDEST_BAR - _NARROWEST_BAR) * share)
        bar = svg.bar(parent, row.state, (x, row.y), width, thickness)
        note = ", not matched" if row.state == "unmatched" else ""
        svg.tooltip(bar, f"{row.name}, {row.detail}: {row.share:.2%} of the MACs{note}")
        if index in labelled:
            svg.line(parent, "leader", (x + width, row.y), (edge - direction * 3, row.y))
            _label(parent, row, edge, direction)


def _room_for_labels(rows: Sequence[_Row]) -> set[int]:
    """Which rows are labelled: the ends, then blocks, then others where there is ample room."""
    kept: dict[int, float] = {}
    pitch = rows[1].y - rows[0].y
    ample = _LABEL_HEIGHT if pitch >= _LABEL_HEIGHT else 1.5 * _LABEL_HEIGHT
    for kind, room in (("end", _LABEL_HEIGHT), ("block", _LABEL_HEIGHT), ("point", ample)):
        wanted = [index for index, row in enumerate(rows) if row.kind == kind]
        # what is matched goes first
        for index in sorted(wanted, key=lambda index: rows[index].state == "unmatched"):
            if all(abs(rows[index].y - y) >= room for y in kept.values()):
                kept[index] = rows[index].y
    return set(kept)


def _label(parent: ET.Element, row: _Row, x: float, direction: int) -> None:
    kind = f"label {row.state} {row.kind}"
    label = svg.text(parent, kind, (x, row.y + 4), "", _anchor(direction))
    parts = [("name", row.label), ("detail", row.detail)]
    # names stand next to the bars on both sides
    for place, (part, content) in enumerate(parts[::direction]):
        shift = {"dx": svg.number(2 * svg.LABEL_CHARACTER)} if place else {}
        ET.SubElement(label, "tspan", {"class": part, **shift}).text = content


def _anchor(direction: int) -> str:
    return "end" if direction < 0 else "start"


def _stitches(
    parent: ET.Element, pair: Match, start: tuple[float, float], end: tuple[float, float]
) -> None:
    """Draw one line for the two stitches of a match, with their names as a tooltip."""
    resampled = pair.a.layout.grid != pair.b.layout.grid
    line = svg.line(parent, "stitch resampled" if resampled else "stitch", start, end)
    a, b = f"a.{pair.a.name}", f"b.{pair.b.name}"
    svg.tooltip(line, f"{a} -> {b}\n{b} -> {a}")


def _legend(root: ET.Element, middle: float, widest: float) -> None:
    """Say what the marks mean, centred above the lanes."""
    marks = {
        "stitch": "stitches, same grid",
        "stitch resampled": "stitches, grid resampled",
        "unmatched": "not matched",
    }
    y, mark, space = 74, 22, 44
    x = middle - sum(svg.text_width(text) + space for text in marks.values()) / 2 + 10
    for kind, text in marks.items():
        if kind == "unmatched":
            svg.bar(root, kind, (x, y - 4), mark, 10)
        else:
            # a sample is no stitch of the pair, so it is not in the body
            svg.line(root, kind, (x, y - 4), (x + mark, y - 4))
        svg.text(root, "note", (x + mark + 6, y), text, "start")
        x += svg.text_width(text) + space
    note = f"bar: share of the MACs since the point above; the widest is {widest:.1%}"
    svg.text(root, "note", (middle, y + 20), note, "middle")
