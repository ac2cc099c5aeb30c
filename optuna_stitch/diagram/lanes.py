"""Lanes: a parent from its input (top) to its output (bottom), as all drawings show it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from optuna_stitch.diagram import svg
from optuna_stitch.diagram.segments import Segment
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.utils.text import shape_text

# All lengths are in pixels. Rows are far apart where there are few of them, and close where there
# are many, so that a deep parent still fits a page that one scrolls.
_WIDEST_PITCH, _NARROWEST_PITCH, _LENGTH = 24.0, 6.0, 1200.0

_LABEL_HEIGHT, _LONGEST_NAME = 14, 36

_WIDEST_BAR, _NARROWEST_BAR, _THICKEST_BAR = 90.0, 5.0, 12.0

_SPACE = 8.0  # between the widest bar and the labels

BETWEEN = 260.0  # the lanes, for the stitches

# Segments of different parents whose last points are matched.
Level = frozenset[tuple[Side, int]]

# A stitch drops from where it reads to where it enters the other lane; more room below keeps its
# arrow clear of the next one.
DROP, _ROOM = 12.0, 22.0


class Shown(NamedTuple):
    """How a row is shown.

    Args:
        share: How much of its bar is coloured, from 0 to 1.
        used: Whether its label is as dark as other text.
        note: What its tooltip says after name and layout.
        later: How much of its bar is coloured lightly after that: what unsure images need.
    """

    share: float
    used: bool
    note: str = ""
    later: float = 0.0


@dataclass(frozen=True)
class Row:
    """What a lane shows at one height: the images, a point, or the output.

    Args:
        name: The point's.
        detail: What stands beside the name, its layout.
        kind: Whether it is an end of the lane, the output of a block, or another point.
        rank: Rows of lower rank are labelled first.
        y: Its height, in pixels.
        macs: Multiply-accumulates per image since the row above.
        shown: How it is shown.
    """

    name: str
    detail: str
    kind: Literal["end", "block", "point"]
    rank: int
    y: float
    macs: int
    shown: Shown

    @property
    def label(self) -> str:
        """The readable name, cut in its middle where it is very long."""
        half = _LONGEST_NAME // 2
        if len(self.name) <= _LONGEST_NAME:
            return self.name
        return f"{self.name[: half - 1]}…{self.name[-half:]}"

    @property
    def width(self) -> float:
        """Width of the label, in pixels."""
        return svg.LABEL_CHARACTER * (len(self.label) + 2 + len(self.detail))


@dataclass(frozen=True)
class Lane:
    """A parent as it is drawn, around a spine at x = 0.

    Args:
        side: Which parent.
        graph: The parent.
        segments: What is between its rows, with what is computed of it.
        first: The same with what is computed for every image, where that is less.
        shown: How its rows are shown: the images, then the end of every segment.
        heights: Where its rows are, in pixels.
        crossed: The segments that a stitch which is used reads from, or enters below.
        pitch: Least distance between rows, in pixels.
        widest: The multiply-accumulates that the widest bar stands for.
        x: Where its spine is, in pixels from the middle between the first two lanes.
    """

    side: Side
    graph: NetworkGraph
    segments: Sequence[Segment]
    first: Sequence[Segment]
    shown: Sequence[Shown]
    heights: Sequence[float]
    crossed: AbstractSet[int]
    pitch: float
    widest: float
    x: float = 0.0

    @property
    def direction(self) -> int:
        """Where its bars and labels go: -1 to the left, 1 to the right."""
        return -1 if self.side == "a" else 1

    @cached_property
    def rows(self) -> list[Row]:
        """The images, then a row for the end of every segment."""
        size = shape_text(self.graph.input_shape)
        rows = [Row("images", size, "end", 0, self.heights[0], 0, self.shown[0])]
        for index, segment in enumerate(self.segments):
            point, y, shown = segment.point, self.heights[index + 1], self.shown[index + 1]
            if point is None:
                classes = f"{self.graph.classes} classes"
                rows.append(Row("output", classes, "end", 0, y, segment.macs, shown))
                continue
            # the ends of stitches are labelled first, then what is used
            rank = (2 if point.block else 4) + (not shown.used)
            row = Row(
                name=point.name,
                detail=str(point.layout),
                kind="block" if point.block else "point",
                rank=1 if index in self.crossed else rank,
                y=y,
                macs=segment.macs,
                shown=shown,
            )
            rows.append(row)
        return rows

    @cached_property
    def labelled(self) -> list[Row]:
        """The rows that have room for a label; points other than blocks need ample room."""
        ample = _ample_room(self.pitch)
        kept: list[Row] = []
        for row in sorted(self.rows, key=lambda row: row.rank):
            room = ample if row.kind == "point" else _LABEL_HEIGHT
            if all(abs(row.y - other.y) >= room for other in kept):
                kept.append(row)
        return sorted(kept, key=lambda row: row.y)

    @property
    def width(self) -> float:
        """How far it reaches from its spine, in pixels."""
        return _WIDEST_BAR + _SPACE + max(row.width for row in self.labelled)

    def draw(self, parent: ET.Element) -> None:
        """Draw its spine, bars and labels.

        Args:
            parent: What they are put into.
        """
        self._draw_spine(parent)
        for row in self.rows:
            self._draw_bar(parent, row)
        self._draw_labels(parent)

    def _draw_spine(self, parent: ET.Element) -> None:
        """Colour it where a value flows, cut it where a stitch puts another in its place."""
        kinds = {"": "spine", "later": f"path later {self.side}", "first": f"path {self.side}"}
        pieces: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        y = self.heights[0]
        for index, (segment, first) in enumerate(zip(self.segments, self.first, strict=True)):
            end = self.heights[index + 1]
            pieces[_when(segment.entered, first.entered)].append((y, end))
            y = end
            if index in self.crossed:
                y += DROP
                if segment.left or not segment.replaced:
                    pieces[_when(segment.left, first.left)].append((end, y))
        for when, kind in kinds.items():
            way: list[str | float] = []
            for begin, end in pieces[when]:
                if way and way[-1] == begin:
                    way[-1] = end
                else:
                    way += ["M", 0.0, begin, "V", end]
            if way:
                svg.path(parent, kind, *way)

    def _draw_bar(self, parent: ET.Element, row: Row) -> None:
        """Draw a bar, of which a share is coloured."""
        share, later, end = row.shown.share, row.shown.later, self._end_of(row)
        thickness = min(self.pitch - 1.5, _THICKEST_BAR)
        bar = ET.SubElement(parent, "g")
        svg.tooltip(bar, f"{row.name}, {row.detail}{row.shown.note}")
        if share + later < 1:
            svg.bar(bar, "unused", (0, row.y), end, thickness)
        if later > 0:
            svg.bar(bar, f"later {self.side}", (end * share, row.y), end * later, thickness)
        if share > 0:
            svg.bar(bar, self.side, (0, row.y), end * share, thickness)

    def _end_of(self, row: Row) -> float:
        """Where a row's bar ends: a tick for no multiply-accumulates, up to the widest."""
        share = row.macs / self.widest if self.widest else 0.0
        return self.direction * (_NARROWEST_BAR + (_WIDEST_BAR - _NARROWEST_BAR) * share)

    def _draw_labels(self, parent: ET.Element) -> None:
        """Draw the labels beside the bars, and thin lines to those whose bar is short."""
        x = self.direction * (_WIDEST_BAR + _SPACE)
        leaders: list[str | float] = []
        for row in self.labelled:
            end = self._end_of(row)
            if self.direction * (x - end) > _SPACE:
                leaders += ["M", end, row.y, "H", x - self.direction * 3]
        if leaders:
            svg.path(parent, "leader", *leaders)
        for row in self.labelled:
            kind = f"label {'used' if row.shown.used else 'unused'} {row.kind}"
            label = svg.text(parent, kind, (x, row.y + 4), "", anchor_of(self.direction))
            parts = [("name", row.label), ("detail", row.detail)]
            # names stand next to the bars on both sides
            for place, (part, content) in enumerate(parts[:: self.direction]):
                shift = {"dx": svg.number(2 * svg.LABEL_CHARACTER)} if place else {}
                ET.SubElement(label, "tspan", {"class": part, **shift}).text = content


def _when(computed: bool, at_first: bool) -> str:
    """When something is computed: ``first``, ``later`` (for unsure images only), or never."""
    return "first" if computed and at_first else "later" if computed else ""


def anchor_of(direction: int) -> str:
    """Which end of a text is next to its lane.

    Args:
        direction: -1 for a text to the left of it, 1 for one to the right.
    """
    return "end" if direction < 0 else "start"


def _ample_room(pitch: float) -> float:
    """How far apart labels must be, in pixels, where one is of a point that is no block."""
    return _LABEL_HEIGHT if pitch >= _LABEL_HEIGHT else 1.5 * _LABEL_HEIGHT


class Places(NamedTuple):
    """Where rows are.

    Args:
        heights: By parent the heights of the images and of the end of every segment, in pixels.
        pitch: Least distance between rows, in pixels.
    """

    heights: Mapping[Side, list[float]]
    pitch: float


def arranged(lanes: Mapping[Side, Lane]) -> dict[Side, Lane]:
    """The lanes beside each other: bars and labels of the first to its left, of others to theirs.

    Args:
        lanes: By side, in order.
    """
    found: dict[Side, Lane] = {}
    x = -BETWEEN / 2
    for side, lane in lanes.items():
        found[side] = replace(lane, x=x)
        x += BETWEEN + (0.0 if lane.direction < 0 else lane.width)
    return found


def lay_out(
    last: Mapping[Side, int],
    matched: Collection[Level],
    crossed: AbstractSet[Level] = frozenset(),
) -> Places:
    """Place the rows of all parents.

    Matched points are at one height; rows between two matches are spread evenly. Below a stitch
    that is used there is room for where it enters.

    Args:
        last: Index of the last segment, by parent.
        matched: Segments whose last points are matched. They keep one order of all parents.
        crossed: Those of them with a stitch that is used.
    """
    columns = _columns(last, matched)
    steps = _descend(columns, last, 1.0, {})
    pitch = min(max(_LENGTH / (steps[-1] + 1), _NARROWEST_PITCH), _WIDEST_PITCH)
    y = pitch / 2
    # the row below the images has a label too
    below = {0: max(_ample_room(pitch) - pitch, 0.0)}
    ends = {end for level in crossed for end in level}
    below |= {place: _ROOM for place, column in enumerate(columns) if place and column & ends}
    levels = _descend(columns, last, pitch, below)
    heights: dict[Side, list[float]] = {}
    for side in last:
        own = [
            (dict(column)[side], level, below.get(place, 0.0))
            for place, (column, level) in enumerate(zip(columns, levels, strict=True))
            if side in dict(column)
        ]
        heights[side] = [y]
        for (begin, top, room), (end, bottom, _) in pairwise(own):
            step = (bottom - top - room) / (end - begin)
            heights[side] += [y + top + room + step * row for row in range(1, end - begin + 1)]
    return Places(heights, pitch)


def _columns(last: Mapping[Side, int], matched: Collection[Level]) -> list[Level]:
    """Matched points that are at one height, from the images of all parents to their outputs."""
    joined: list[Level] = []
    for level in matched:
        whole = frozenset(level).union(*(other for other in joined if other & level))
        joined = [other for other in joined if not other & level]
        joined.append(whole)
    found = [frozenset((side, -1) for side in last)]
    waiting = {side: sorted(i for level in joined for s, i in level if s == side) for side in last}
    while joined:
        # one whose points are the next of their parents: there is one, since matches do not cross
        column = min(
            (c for c in joined if all(waiting[side][0] == index for side, index in c)), key=sorted
        )
        joined.remove(column)
        for side, _ in column:
            waiting[side].pop(0)
        found.append(column)
    return [*found, frozenset(last.items())]


def _descend(
    columns: Sequence[Level], last: Mapping[Side, int], pitch: float, below: Mapping[int, float]
) -> list[float]:
    """How far down columns are, with a pitch between rows and room below some columns."""
    reached = dict.fromkeys(last, (-1, 0.0))
    found: list[float] = []
    for place, column in enumerate(columns):
        y = max(reached[side][1] + pitch * (index - reached[side][0]) for side, index in column)
        found.append(y)
        reached |= {side: (index, y + below.get(place, 0.0)) for side, index in column}
    return found
