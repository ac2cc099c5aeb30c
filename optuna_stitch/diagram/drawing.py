"""A subnetwork as a picture: both parents as lanes, and the path that its genotype takes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from optuna_stitch.diagram import svg
from optuna_stitch.diagram.lanes import (
    BETWEEN,
    DROP,
    MARGIN,
    SPACE,
    WIDEST_BAR,
    Lane,
    Row,
    anchor_of,
    bar_width,
    direction_of,
    draw_labels,
    labelled,
    lay_out,
    millions,
    pitch_of,
    thickness_of,
)
from optuna_stitch.diagram.segments import Crossing, Dissection, dissect
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.points import Point
from optuna_stitch.stitching.genotype import Genotype, Output, Side
from optuna_stitch.stitching.matching import Match, PointKind, select_points
from optuna_stitch.stitching.supergraph import SIDES
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.text import shape_text

_PAIR_HEADER = 150.0

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
    root = svg.document(width, _PAIR_HEADER + pitch * dense + MARGIN, f"{title}: {subtitle}")
    svg.text(root, "title", (width / 2, 32), title, "middle")
    svg.text(root, "note", (width / 2, 52), subtitle, "middle")
    _legend(root, width / 2, widest)

    body = ET.SubElement(root, "g", transform=f"translate(0 {_PAIR_HEADER:.0f})")
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
        svg.text(root, "parent", (x, _PAIR_HEADER - 26), graph.name, anchor)
        svg.text(root, "note", (x, _PAIR_HEADER - 10), _sizes(graph), anchor)
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


# In pixels.
_HEADER, _FOOTER = 184.0, 92.0

_BUDGET = 360.0  # width of the bar of all multiply-accumulates

_ARROW = 9.0

_OUTPUTS: dict[Output, str] = {
    "a": "output of a",
    "b": "output of b",
    "ensemble": "ensemble of a and b",
}


def draw_subnetwork(
    supernetwork: Supernetwork, params: Mapping[str, Any] | Genotype, *, title: str | None = None
) -> svg.Drawing:
    """Draw what a genotype computes: both parents from input (top) to output (bottom).

    What is used has the colour of its parent, all else is grey. A bar is as wide as the
    multiply-accumulates since the row above; where only some of these are computed, so much of
    the bar is coloured. Rows are the outputs of blocks and the points that have a stitch; matched
    ones are at one height. An arrow is a stitch that is on and reaches the output: it begins at
    the value that it reads, and ends below the value whose place it takes. Faint lines across are
    the other stitches.

    Args:
        supernetwork: What the subnetwork is of.
        params: A trial's parameters, or a genotype.
        title: Above the drawing; the parents' names, if None.

    Raises:
        StudyError: If a parameter is no switch of this supernetwork.
    """
    parts = dissect(supernetwork, params)
    graphs = supernetwork.graphs
    lanes = lay_out(graphs, parts)
    names = f"{graphs['a'].name} × {graphs['b'].name}"
    figures = _figures(supernetwork, parts)
    beside = max(
        *(lane.width for lane in lanes.values()),
        *(svg.text_width(_name(lane)) for lane in lanes.values()),
        *((svg.text_width(text) - BETWEEN) / 2 for text in (names, figures)),
        (svg.text_width(title or names, svg.TITLE_SIZE) - BETWEEN) / 2,
    )
    middle = MARGIN + beside + BETWEEN / 2
    bottom = _HEADER + lanes["a"].heights[-1]
    root = svg.document(2 * middle, bottom + _FOOTER, f"{title}: {names}" if title else names)
    svg.text(root, "title", (middle, 32), title or names, "middle")
    if title:
        svg.text(root, "note", (middle, 53), names, "middle")
    svg.text(root, "figures", (middle, 78), figures, "middle")
    _draw_budget(root, middle, parts.macs, sum(graph.macs for graph in graphs.values()))

    across = _group(root, "across", middle, _HEADER)
    _draw_idle(across, parts.crossings, lanes)
    widest = max(segment.macs for lane in lanes.values() for segment in lane.segments)
    for side, lane in lanes.items():
        group = _group(root, f"lane {side}", middle + lane.direction * BETWEEN / 2, _HEADER)
        svg.text(group, "parent", (0, -14), _name(lane), anchor_of(lane.direction))
        lane.draw(group, widest)
    stitches = _group(root, "stitches", middle, _HEADER)
    for crossing in parts.crossings:
        if crossing.used:
            _draw_stitch(stitches, crossing, lanes)
    _draw_output(_group(root, "output", middle, bottom), parts.genotype.output, lanes)
    note = f"bar: MACs since the row above, {millions(widest)} the widest; grey: not computed"
    svg.text(root, "note", (middle, bottom + _FOOTER - 16), note, "middle")
    return svg.Drawing(root)


def _figures(supernetwork: Supernetwork, parts: Dissection) -> str:
    genotype = parts.genotype
    macs = f"{millions(supernetwork.macs(genotype))} MACs"
    parameters = f"{supernetwork.parameters(genotype) / 1e6:,.2f} M parameters"
    stitches = f"{len(genotype.on)} of {len(parts.crossings)} stitches"
    return f"{macs}, {parameters}, {stitches}, {_OUTPUTS[genotype.output]}"


def _name(lane: Lane) -> str:
    return f"{lane.side}: {lane.graph.name}"


def _group(root: ET.Element, kind: str, x: float, y: float) -> ET.Element:
    """What is drawn around a place of its own."""
    move = f"translate({svg.number(x)} {svg.number(y)})"
    return ET.SubElement(root, "g", {"class": kind, "transform": move})


def _draw_budget(root: ET.Element, middle: float, macs: Mapping[str, int], parents: int) -> None:
    """Draw what is computed as shares of both parents and the stitches, with a legend."""
    whole = parents + macs["stitch"]
    shares = {**macs, "unused": whole - sum(macs.values())}
    legend = {
        "a": "parent a",
        "stitch": "stitches",
        "b": "parent b",
        "unused": "not computed",
    }
    texts = {kind: f"{text} {millions(shares[kind])}" for kind, text in legend.items()}
    mark, space = 10.0, 26.0
    x = middle - _BUDGET / 2
    of_text = middle - sum(svg.text_width(t) + mark + space for t in texts.values()) / 2
    for kind, text in texts.items():
        width = _BUDGET * shares[kind] / max(whole, 1)
        svg.bar(root, kind, (x, 98), width, 10)
        svg.bar(root, kind, (of_text, 120), mark, mark)
        svg.text(root, "note", (of_text + mark + 6, 124), text, "start")
        x += width
        of_text += svg.text_width(text) + mark + space


def _draw_idle(
    parent: ET.Element, crossings: Sequence[Crossing], lanes: Mapping[Side, Lane]
) -> None:
    """Draw the matches without a stitch that is used, as lines across."""
    idle = {crossing.at["a"] for crossing in crossings} - lanes["a"].crossed
    levels = sorted(lanes["a"].heights[index + 1] for index in idle)
    if levels:
        half = BETWEEN / 2
        ways = [part for y in levels for part in ("M", -half, y, "H", half)]
        svg.path(parent, "idle", *ways)


def _draw_stitch(parent: ET.Element, crossing: Crossing, lanes: Mapping[Side, Lane]) -> None:
    """Draw an arrow from the value that a stitch reads to below the one that it replaces."""
    direction = lanes[crossing.switch.into].direction
    start, tip = -direction * BETWEEN / 2, direction * (BETWEEN / 2 - 2)
    neck = tip - direction * _ARROW
    y = lanes["a"].heights[crossing.at["a"] + 1]
    to = y + DROP
    arrow = ET.SubElement(parent, "g", {"class": "crossing"})
    svg.tooltip(arrow, f"{crossing.switch.name}\n{millions(crossing.macs)} MACs")
    svg.path(arrow, "stitch", "M", start, y, "C", 0.0, y, 0.0, to, neck, to)
    corners = [(tip, to), (neck, to - _ARROW / 2), (neck, to + _ARROW / 2)]
    svg.polygon(arrow, "stitch", corners)
    svg.dot(arrow, "stitch", (start, y))
    label = (start + 12 * direction, y - 4)
    svg.text(arrow, "macs", label, millions(crossing.macs), anchor_of(direction))


def _draw_output(parent: ET.Element, output: Output, lanes: Mapping[Side, Lane]) -> None:
    """Draw the output, and the lanes that lead to it."""
    text = _OUTPUTS[output]
    half, y, turn = svg.text_width(text) / 2 + 10, 36.0, 10.0
    for side, lane in lanes.items():
        if output in (side, "ensemble"):
            x = lane.direction * BETWEEN / 2
            way = ("M", x, 0.0, "V", y - turn, "Q", x, y, x - lane.direction * turn, y)
            svg.path(parent, f"path {side}", *way, "H", lane.direction * half)
    place = {"x": -half, "y": y - 13, "width": 2 * half, "height": 26, "rx": 13}
    box = {"class": f"answer {output}", **{k: svg.number(v) for k, v in place.items()}}
    ET.SubElement(parent, "rect", box)
    svg.text(parent, "figures", (0, y + 4), text, "middle")
