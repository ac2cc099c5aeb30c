"""Lanes: a network from its input (top) to its output (bottom), as drawings of pairs show it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from optuna_stitch.diagram import svg
from optuna_stitch.diagram.segments import Dissection, Segment
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.stitching.supergraph import SIDES
from optuna_stitch.utils.text import shape_text

# All lengths are in pixels. Rows are far apart where there are few of them, and close where there
# are many, so that a deep pair still fits a page that one scrolls.
_WIDEST_PITCH, _NARROWEST_PITCH, _LENGTH = 24.0, 6.0, 1200.0

LABEL_HEIGHT = 14

_LONGEST_NAME = 36

WIDEST_BAR, _NARROWEST_BAR, _THICKEST_BAR = 90.0, 5.0, 12.0

BETWEEN = 260.0  # the lanes, for the stitches

MARGIN, SPACE = 20.0, 8.0


@dataclass(frozen=True)
class Row:
    """What a lane shows at one height: the input, a point, or the output.

    Args:
        name: The point's.
        detail: What stands beside the name, its layout.
        kind: Whether it is an end of the lane, the output of a block, or another point.
        state: What the style knows besides: ``matched``, ``unused``, ….
        rank: Rows of lower rank are labelled first.
        y: Its height.
    """

    name: str
    detail: str
    kind: Literal["end", "block", "point"]
    state: str
    rank: int
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
        """How wide the label is, in pixels."""
        return svg.LABEL_CHARACTER * (len(self.label) + 2 + len(self.detail))


def pitch_of(rows: int) -> float:
    """How far apart rows are, in pixels, where a lane has so many of them."""
    return min(max(_LENGTH / rows, _NARROWEST_PITCH), _WIDEST_PITCH)


def thickness_of(pitch: float) -> float:
    """How thick bars are, in pixels, at some pitch."""
    return min(pitch - 1.5, _THICKEST_BAR)


def bar_width(share: float) -> float:
    """How wide a bar is, in pixels: from a tick for nothing to the widest for a share of 1."""
    return _NARROWEST_BAR + (WIDEST_BAR - _NARROWEST_BAR) * share


def labelled(rows: Sequence[Row], pitch: float) -> set[int]:
    """Which rows have room for a label: by rank, points that are no blocks where it is ample."""
    ample = LABEL_HEIGHT if pitch >= LABEL_HEIGHT else 1.5 * LABEL_HEIGHT
    kept: dict[int, float] = {}
    for index in sorted(range(len(rows)), key=lambda index: rows[index].rank):
        row = rows[index]
        room = ample if row.kind == "point" else LABEL_HEIGHT
        if all(abs(row.y - y) >= room for y in kept.values()):
            kept[index] = row.y
    return set(kept)


def draw_labels(
    parent: ET.Element, rows: Sequence[tuple[Row, float]], x: float, direction: int
) -> None:
    """Draw the labels of a lane beside its bars.

    Args:
        parent: What they are put into.
        rows: Those that are labelled, each with where its bar ends, in pixels.
        x: The edge of the labels.
        direction: -1 for a lane whose bars and labels go to the left, 1 for the right.
    """
    leaders: list[str | float] = []
    for row, end in rows:
        if direction * (x - end) > SPACE:
            leaders += ["M", end, row.y, "H", x - direction * 3]
    if leaders:
        svg.path(parent, "leader", *leaders)
    for row, _ in rows:
        kind = f"label {row.state} {row.kind}"
        label = svg.text(parent, kind, (x, row.y + 4), "", anchor_of(direction))
        parts = [("name", row.label), ("detail", row.detail)]
        # names stand next to the bars on both sides
        for place, (part, content) in enumerate(parts[::direction]):
            shift = {"dx": svg.number(2 * svg.LABEL_CHARACTER)} if place else {}
            ET.SubElement(label, "tspan", {"class": part, **shift}).text = content


def direction_of(side: Side) -> int:
    """Where a parent's bars and labels go from its spine: -1 to the left, 1 to the right."""
    return -1 if side == "a" else 1


def anchor_of(direction: int) -> str:
    """Which end of a text is next to its lane."""
    return "end" if direction < 0 else "start"


# A stitch drops from where it reads to where it enters the other lane; more room below keeps its
# arrow clear of the next one. In pixels.
DROP, _ROOM = 12.0, 22.0


@dataclass(frozen=True)
class Lane:
    """A parent as it is drawn, around a spine at x = 0.

    Args:
        side: Which parent.
        graph: The parent.
        segments: What is computed of it.
        crossed: The segments that a stitch which is used reads from, or enters below.
        heights: Where the images are, then where each segment ends, in pixels.
        pitch: How far apart rows are, at least, in pixels.
    """

    side: Side
    graph: NetworkGraph
    segments: list[Segment]
    crossed: set[int]
    heights: list[float]
    pitch: float

    @property
    def direction(self) -> int:
        """Where its bars and labels go: -1 to the left, 1 to the right."""
        return direction_of(self.side)

    @cached_property
    def rows(self) -> list[Row]:
        """The images, then a row for the end of every segment."""
        images, *heights = self.heights
        state = _state(self.segments[0].entered)
        rows = [Row("images", shape_text(self.graph.input_shape), "end", state, 0, images)]
        for index, (segment, y) in enumerate(zip(self.segments, heights, strict=True)):
            point, state = segment.point, _state(segment.computed or segment.replaced)
            if point is None:
                rows.append(Row("output", f"{self.graph.classes} classes", "end", state, 0, y))
                continue
            # the ends of stitches are labelled first, then what is used
            rank = (2 if point.block else 4) + (state == "unused")
            row = Row(
                name=point.name,
                detail=str(point.layout),
                kind="block" if point.block else "point",
                state=state,
                rank=1 if index in self.crossed else rank,
                y=y,
            )
            rows.append(row)
        return rows

    @cached_property
    def labelled(self) -> list[int]:
        """The rows that have a label."""
        return sorted(labelled(self.rows, self.pitch))

    @property
    def width(self) -> float:
        """How far it reaches from its spine, in pixels."""
        return WIDEST_BAR + SPACE + max(self.rows[index].width for index in self.labelled)

    def draw(self, parent: ET.Element, widest: int) -> None:
        """Draw its spine, bars and labels.

        Args:
            parent: What they are put into.
            widest: The multiply-accumulates of the widest bar.
        """
        self._draw_spine(parent)
        images = self.direction * bar_width(0)
        self._draw_bar(parent, self.rows[0], 1.0 if self.segments[0].entered else 0.0, images)
        ends = [images]
        for segment, row in zip(self.segments, self.rows[1:], strict=True):
            end = self.direction * bar_width(segment.macs / max(widest, 1))
            share = segment.used / segment.macs if segment.macs else float(segment.computed)
            self._draw_bar(parent, row, share, end, _tip(segment))
            ends.append(end)
        edge = self.direction * (WIDEST_BAR + SPACE)
        rows = [(self.rows[index], ends[index]) for index in self.labelled]
        draw_labels(parent, rows, edge, self.direction)

    def _draw_spine(self, parent: ET.Element) -> None:
        """Colour it where a value flows, cut it where a stitch puts another in its place."""
        used: list[tuple[float, float]] = []
        unused: list[tuple[float, float]] = []
        y = self.heights[0]
        for index, (segment, end) in enumerate(zip(self.segments, self.heights[1:], strict=True)):
            (used if segment.entered else unused).append((y, end))
            y = end
            if index in self.crossed:
                y += DROP
                if segment.left or not segment.replaced:
                    (used if segment.left else unused).append((end, y))
        for kind, pieces in (("spine", unused), (f"path {self.side}", used)):
            way: list[str | float] = []
            for begin, end in pieces:
                if way and way[-1] == begin:
                    way[-1] = end
                else:
                    way += ["M", 0.0, begin, "V", end]
            if way:
                svg.path(parent, kind, *way)

    def _draw_bar(
        self, parent: ET.Element, row: Row, share: float, end: float, told: str = ""
    ) -> None:
        """Draw a bar of which a share is coloured."""
        thickness = thickness_of(self.pitch)
        bar = ET.SubElement(parent, "g")
        svg.tooltip(bar, f"{row.name}, {row.detail}{told}")
        if share < 1:
            svg.bar(bar, "unused", (0, row.y), end, thickness)
        if share > 0:
            svg.bar(bar, self.side, (0, row.y), end * share, thickness)


def lay_out(graphs: dict[Side, NetworkGraph], parts: Dissection) -> dict[Side, Lane]:
    """Place the rows of both parents.

    Matched points are at one height; rows between two matches are spread evenly. Below a stitch
    that is used there is room for where it enters.

    Args:
        graphs: The parents by side.
        parts: What the subnetwork computes of them.

    Returns:
        The lanes by side.
    """
    crossed = {
        side: {crossing.at[side] for crossing in parts.crossings if crossing.used}
        for side in SIDES
    }
    matched = {(crossing.at["a"], crossing.at["b"]) for crossing in parts.crossings}
    last = (len(parts.segments["a"]) - 1, len(parts.segments["b"]) - 1)
    levels = [(-1, -1), *sorted(matched), last]
    steps = [max(q - p for p, q in zip(*both, strict=True)) for both in pairwise(levels)]
    pitch = pitch_of(sum(steps) + 1)
    y = pitch / 2
    heights: dict[Side, list[float]] = {"a": [y], "b": [y]}
    y += max(LABEL_HEIGHT - pitch, 0.0)  # so that the first row can have a label, as the images do
    for (above, below), step in zip(pairwise(levels), steps, strict=True):
        y += _ROOM if above[0] in crossed["a"] else 0.0
        for side, begin, end in zip(SIDES, above, below, strict=True):
            count = end - begin
            heights[side] += [y + pitch * step * row / count for row in range(1, count + 1)]
        y += pitch * step
    return {
        side: Lane(side, graphs[side], parts.segments[side], crossed[side], heights[side], pitch)
        for side in SIDES
    }


def millions(macs: int) -> str:
    """Multiply-accumulates as people read them: ``4.223 M``, ``11,513.4 M``."""
    decimals = (3 if macs < 10e6 else 1) if macs else 0
    return f"{macs / 1e6:,.{decimals}f} M"


def _state(used: bool) -> str:
    return "used" if used else "unused"


def _tip(segment: Segment) -> str:
    told = f": {millions(segment.macs)} MACs"
    if 0 < segment.used < segment.macs:
        told += f", {millions(segment.used)} computed"
    elif not segment.used and not segment.computed:
        told += ", not computed"
    return f"{told}, replaced" if segment.replaced else told
