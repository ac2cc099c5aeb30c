"""Lanes: a network from its input (top) to its output (bottom), as drawings of pairs show it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optuna_stitch.results.pictures import svg
from optuna_stitch.stitching.genotype import Side

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
