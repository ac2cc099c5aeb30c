"""A pair as a picture: two lanes of points from input to output, and the stitches across."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from optuna_stitch.networks.graph import NetworkGraph
from optuna_stitch.networks.points import Point
from optuna_stitch.results.inspection import shape_text
from optuna_stitch.results.pictures import svg
from optuna_stitch.results.pictures.lanes import (
    BETWEEN,
    MARGIN,
    SPACE,
    WIDEST_BAR,
    Row,
    anchor_of,
    bar_width,
    direction_of,
    draw_labels,
    labelled,
    pitch_of,
    thickness_of,
)
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.stitching.matching import Match, PointKind, select_points
from optuna_stitch.stitching.supergraph import SIDES

_HEADER = 150.0
_CANDIDATES: dict[PointKind, str] = {
    "auto": "dominators",
    "all": "points",
    "dominators": "dominators (points that everything flows through)",
    "blocks": "outputs of blocks",
}


def draw_pair(
    a: NetworkGraph, b: NetworkGraph, matches: Sequence[Match], *, points: PointKind
) -> svg.Drawing:
    """Draw both networks side by side, from input (top) to output (bottom).

    Every candidate point is a bar, as wide as its share of its network's multiply-accumulates
    since the point above. A line across stands for the two stitches of a match. Labels are
    thinned out where points are dense, the outputs of blocks last.

    Args:
        a: Parent a, on the left.
        b: Parent b, on the right.
        matches: Pairs of points.
        points: Which points were candidates for matching.
    """
    graphs = (a, b)
    candidates = [select_points(graph, points) for graph in graphs]
    matched = [{pair.a.node for pair in matches}, {pair.b.node for pair in matches}]
    dense = max(map(len, candidates)) + 2
    pitch = pitch_of(dense)
    lanes = [_rows(*of, pitch * dense) for of in zip(graphs, candidates, matched, strict=True)]
    shares = [_shares(*of) for of in zip(graphs, candidates, strict=True)]
    widest = max(share for of_lane in shares for share in of_lane)

    title = f"{a.name} × {b.name}"
    subtitle = f"{len(matches)} matches among their {_CANDIDATES[points]}"
    beside = max(
        *(row.width + WIDEST_BAR + SPACE for rows in lanes for row in rows),
        *(svg.text_width(text) for graph in graphs for text in (graph.name, _sizes(graph))),
        (svg.text_width(title, svg.TITLE_SIZE) - BETWEEN) / 2,
        200.0,
    )
    width = 2 * (MARGIN + beside) + BETWEEN
    root = svg.document(width, _HEADER + pitch * dense + MARGIN, f"{title}: {subtitle}")
    svg.text(root, "title", (width / 2, 32), title, "middle")
    svg.text(root, "note", (width / 2, 52), subtitle, "middle")
    _legend(root, width / 2, widest)

    body = ET.SubElement(root, "g", transform=f"translate(0 {_HEADER:.0f})")
    left, right = MARGIN + beside, MARGIN + beside + BETWEEN
    y_of_a, y_of_b = (
        {point.node: row.y for point, row in zip(of, rows[1:-1], strict=True)}
        for of, rows in zip(candidates, lanes, strict=True)
    )
    for pair in matches:
        _stitches(body, pair, (left, y_of_a[pair.a.node]), (right, y_of_b[pair.b.node]))
    for side, graph, rows, of_lane, x in zip(
        SIDES, graphs, lanes, shares, (left, right), strict=True
    ):
        anchor = anchor_of(direction_of(side))
        svg.text(root, "parent", (x, _HEADER - 26), graph.name, anchor)
        svg.text(root, "note", (x, _HEADER - 10), _sizes(graph), anchor)
        _draw_lane(body, side, rows, of_lane, x, widest, pitch)
    return svg.Drawing(root)


def _rows(
    graph: NetworkGraph, points: Sequence[Point], matched: set[str], length: float
) -> list[Row]:
    """A lane from its input to its output, evenly spread."""
    pitch = length / (len(points) + 2)
    rows = [Row("images", shape_text(graph.input_shape), "end", "end", 0, pitch / 2)]
    for place, point in enumerate(points, start=1):
        row = Row(
            name=point.name,
            detail=str(point.layout),
            kind="block" if point.block else "point",
            state="matched" if point.node in matched else "unused",
            rank=(1 if point.block else 3) + (point.node not in matched),
            y=pitch * (place + 0.5),
        )
        rows.append(row)
    return [*rows, Row("output", f"{graph.classes} classes", "end", "end", 0, length - pitch / 2)]


def _shares(graph: NetworkGraph, points: Sequence[Point]) -> list[float]:
    """The share of a network's MACs that each row of its lane is preceded by."""
    place = {point.node: index for index, point in enumerate(points, start=1)}
    since = [0] * (len(points) + 1)
    running = 0
    for name, cost in graph.costs.items():  # in the order of execution
        running += cost.macs
        if name in place:
            since[place[name]], running = running, 0
    return [macs / max(graph.macs, 1) for macs in (*since, running)]


def _draw_lane(
    body: ET.Element,
    side: Side,
    rows: Sequence[Row],
    shares: Sequence[float],
    x: float,
    widest: float,
    pitch: float,
) -> None:
    """Draw a lane: its spine, a bar for each row, and the labels that find room."""
    direction = direction_of(side)
    svg.line(body, "spine", (x, rows[0].y), (x, rows[-1].y))
    ends = []
    for row, share in zip(rows, shares, strict=True):
        width = direction * bar_width(share / widest if widest else 0.0)
        kind = f"{row.state} {side}" if row.state == "matched" else row.state
        bar = svg.bar(body, kind, (x, row.y), width, thickness_of(pitch))
        note = ", not matched" if row.state == "unused" else ""
        svg.tooltip(bar, f"{row.name}, {row.detail}: {share:.2%} of the MACs{note}")
        ends.append(x + width)
    edge = x + direction * (WIDEST_BAR + SPACE)
    draw_labels(body, [(rows[i], ends[i]) for i in sorted(labelled(rows, pitch))], edge, direction)


def _sizes(graph: NetworkGraph) -> str:
    return f"{graph.macs / 1e6:,.1f} M MACs, {graph.parameters / 1e6:,.2f} M parameters"


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
        "unused": "not matched",
    }
    y, mark, space = 74, 22, 44
    x = middle - sum(svg.text_width(text) + space for text in marks.values()) / 2 + 10
    for kind, text in marks.items():
        if kind == "unused":
            svg.bar(root, kind, (x, y - 4), mark, 10)
        else:
            # a sample is no stitch of the pair, so it is not in the body
            svg.line(root, kind, (x, y - 4), (x + mark, y - 4))
        svg.text(root, "note", (x + mark + 6, y), text, "start")
        x += svg.text_width(text) + space
    note = f"bar: share of the MACs since the point above; the widest is {widest:.1%}"
    svg.text(root, "note", (middle, y + 20), note, "middle")
