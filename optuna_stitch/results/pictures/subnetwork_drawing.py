"""A subnetwork as a picture: both parents as lanes, and the path that its genotype takes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from optuna_stitch.results.pictures import svg
from optuna_stitch.results.pictures.lanes import BETWEEN, MARGIN, anchor_of
from optuna_stitch.results.pictures.segments import Crossing, Dissection, dissect
from optuna_stitch.results.pictures.subnetwork_lanes import DROP, Lane, lay_out, millions
from optuna_stitch.stitching.genotype import Genotype, Output, Side
from optuna_stitch.stitching.supernetwork import Supernetwork

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
