"""Parents side by side: a pair with its matches, or the path that a subnetwork takes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from optuna_stitch.diagram import svg
from optuna_stitch.diagram.lanes import (
    BETWEEN,
    DROP,
    Lane,
    Level,
    Shown,
    anchor_of,
    arranged,
    lay_out,
)
from optuna_stitch.diagram.output import draw_output, footer, output_text
from optuna_stitch.diagram.segments import Crossing, Segment, dissect, divide
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.stitching.genotype import LETTERS, SIDES, Side
from optuna_stitch.stitching.matching import Match, candidates_of, select_points
from optuna_stitch.stitching.settings import PointKind
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.text import millions_text

# In pixels.
_MARGIN, _LINE = 20.0, 21.0

_ARROW = 9.0

_BUDGET = 360.0  # width of the bar of all multiply-accumulates

_CANDIDATES: dict[PointKind, str] = {
    "all": "points",
    "dominators": "dominators (points that everything flows through)",
    "blocks": "outputs of blocks",
}


def draw_pair(
    a: NetworkGraph, b: NetworkGraph, matches: Sequence[Match], *, points: PointKind = "auto"
) -> svg.Drawing:
    """Draw both networks side by side, from input (top) to output (bottom).

    Every candidate point is a bar, as wide as its share of its network's multiply-accumulates
    since the point above. Matched points are at one height; a line across stands for the two
    stitches of a match. Labels are thinned out where points are dense, the outputs of blocks last.

    Args:
        a: Parent a, on the left.
        b: Parent b, on the right.
        matches: Pairs of points, in topological order of both networks.
        points: Which points were candidates for matching.

    Example:
        >>> graphs = a.graph(), b.graph()
        >>> matches = supernetwork.matches
        >>> st.draw_pair(*graphs, matches).write(tmp_path / "pair.svg")
    """
    graphs: dict[Side, NetworkGraph] = {"a": a, "b": b}
    points = candidates_of(matches, points)
    segments: dict[Side, list[Segment]] = {}
    place: dict[Side, dict[str, int]] = {}
    for side, graph in graphs.items():
        ends = {"a": {pair.a.node for pair in matches}, "b": {pair.b.node for pair in matches}}
        candidates = {point.node for point in select_points(graph, points)}
        segments[side] = divide(graph, candidates | ends[side])
        place[side] = {s.point.node: index for index, s in enumerate(segments[side]) if s.point}
    levels = [
        frozenset((side, place[side][point.node]) for side, point in pair.points.items())
        for pair in matches
    ]
    last = {side: len(segments[side]) - 1 for side in SIDES}
    heights, pitch = lay_out(last, levels)
    widest = max(
        segment.macs / max(graphs[side].macs, 1) for side in SIDES for segment in segments[side]
    )
    lanes = {
        side: Lane(
            side=side,
            graph=graphs[side],
            segments=segments[side],
            first=segments[side],
            shown=_shown_in_pair(graphs[side], segments[side], _of(levels, side)),
            heights=heights[side],
            crossed=frozenset(),
            pitch=pitch,
            widest=widest * graphs[side].macs,
        )
        for side in SIDES
    }
    title = f"{a.name} × {b.name}"
    subtitle = f"{len(matches)} matches among their {_CANDIDATES[points]}"
    header = _Header(title)
    header.text("note", subtitle)
    header.legend(
        _Mark("stitch", "stitches, same grid", line=True),
        _Mark("stitch resampled", "stitches, grid resampled", line=True),
        _Mark("unused", "not matched"),
    )
    header.text(
        "note", f"bar: share of the MACs since the point above; the widest is {widest:.1%}"
    )
    headings = {side: (graph.name, _sizes(graph)) for side, graph in graphs.items()}
    page = _Page(f"{title}: {subtitle}", header, lanes, headings)
    for pair in matches:
        _draw_match(page.across, pair, heights["a"][place["a"][pair.a.node] + 1])
    return svg.Drawing(page.root)


def draw_subnetwork(subnetwork: Subnetwork, *, title: str | None = None) -> svg.Drawing:
    """Draw what a subnetwork computes: all parents from input (top) to output (bottom).

    What is used has the colour of its parent, all else is grey. A bar is as wide as the
    multiply-accumulates since the row above; where only some of these are computed, that share of
    the bar is coloured. Rows are the outputs of blocks and the points that have a stitch; matched
    ones are at one height. An arrow is a stitch that is on and reaches the output: it begins at
    the value that it reads, and ends below the value that it replaces. Faint lines across are the
    other stitches.

    Of a cascade, what every image needs is drawn as of other subnetworks; what only unsure images
    need besides is lighter and dashed. Below, the exit says which share of the images leaves with
    the first answer, and, where it is known, how sure that answer must be.

    Args:
        subnetwork: The subnetwork.
        title: Above the drawing; the parents' names, if None.

    Example:
        >>> subnetwork = supernetwork.subnetwork({"output": "ensemble"})
        >>> st.draw_subnetwork(subnetwork, title="ensemble").write(tmp_path / "ensemble.svg")
    """
    parts = dissect(subnetwork)
    first = dissect(subnetwork.first) if subnetwork.is_cascade else parts
    graphs = subnetwork.supergraph.graphs
    levels = {frozenset(c.at.items()) for c in parts.crossings}
    crossed = {frozenset(c.at.items()) for c in parts.crossings if c.used}
    last = {side: len(own) - 1 for side, own in parts.segments.items()}
    heights, pitch = lay_out(last, levels, crossed)
    widest = max(segment.macs for own in parts.segments.values() for segment in own)
    lanes = {
        side: Lane(
            side=side,
            graph=graphs[side],
            segments=parts.segments[side],
            first=first.segments[side],
            shown=_shown_in_subnetwork(parts.segments[side], first.segments[side]),
            heights=heights[side],
            crossed=_of(crossed, side),
            pitch=pitch,
            widest=widest,
        )
        for side in graphs
    }
    names = " × ".join(graph.name for graph in graphs.values())
    header = _Header(title or names)
    if title:
        header.text("note", names)
    header.text("figures", _figures(subnetwork))
    header.budget(parts.macs, first.macs, sum(graph.macs for graph in graphs.values()))
    if subnetwork.is_cascade:
        header.legend(*_stage_marks(subnetwork))
    note = f"bar: MACs since the row above, {macs_text(widest)} the widest; grey: not computed"
    header.text("note", note)
    headings = {side: (f"{side}: {graph.name}",) for side, graph in graphs.items()}
    told = f"{title}: {names}" if title else names
    page = _Page(told, header, lanes, headings, footer=footer(subnetwork))
    lanes = page.lanes
    idle: list[str | float] = []
    for level in sorted(levels - crossed, key=sorted):
        (one, index), (other, _) = sorted(level)
        idle += ["M", lanes[one].x, heights[one][index + 1], "H", lanes[other].x]
    if idle:
        svg.path(page.across, "idle", *idle)
    for crossing, at_first in zip(parts.crossings, first.crossings, strict=True):
        if crossing.used:
            ends = lanes[crossing.switch.out_of], lanes[crossing.switch.into]
            kind = "stitch" if at_first.used else "later stitch"
            _draw_stitch(page.stitches, crossing, *ends, kind)
    draw_output(page.output, subnetwork, lanes)
    return svg.Drawing(page.root)


def macs_text(macs: int) -> str:
    """Multiply-accumulates in millions: ``4.223 M``, ``11,513.4 M``.

    Args:
        macs: How many.
    """
    return millions_text(macs, (3 if macs < 10e6 else 1) if macs else 0)


class _Mark(NamedTuple):
    """A mark of a legend: its class, what it means, and whether it is a line or a bar."""

    kind: str
    text: str
    line: bool = False

    @property
    def width(self) -> float:
        return 22.0 if self.line else 10.0


class _Header:
    """What stands above the lanes, centred around x = 0, one line below the other."""

    def __init__(self, title: str) -> None:
        self.group = ET.Element("g", {"class": "header"})
        self.height = 32.0
        self.width = 0.0
        self.text("title", title, svg.TITLE_SIZE)

    def text(self, kind: str, content: str, size: int = svg.TEXT_SIZE) -> None:
        """Add a line of text."""
        svg.text(self.group, kind, (0, self.height), content, "middle")
        self._add(svg.text_width(content, size))

    def legend(self, *marks: _Mark) -> None:
        """Add a line that says what marks mean."""
        gap, space = 6.0, 20.0
        widths = [mark.width + gap + svg.text_width(mark.text) for mark in marks]
        whole = sum(widths) + space * (len(marks) - 1)
        x, y = -whole / 2, self.height - 4
        for mark, width in zip(marks, widths, strict=True):
            if mark.line:
                svg.line(self.group, mark.kind, (x, y), (x + mark.width, y))
            else:
                svg.bar(self.group, mark.kind, (x, y), mark.width, 10)
            svg.text(self.group, "note", (x + mark.width + gap, self.height), mark.text, "start")
            x += width + space
        self._add(whole)

    def budget(self, macs: Mapping[str, int], first: Mapping[str, int], parents: int) -> None:
        """Add what is computed as shares of all parents and the stitches, and its legend.

        Args:
            macs: All that is computed, by owner.
            first: What of it is computed for every image.
            parents: What all parents compute.
        """
        whole = parents + macs["stitch"]
        shares = {**macs, "unused": whole - sum(macs.values())}
        a, *others = (owner for owner in macs if owner in LETTERS)
        legend = {
            a: f"parent {a}",
            "stitch": "stitches",
            **{side: f"parent {side}" for side in others},
            "unused": "not computed",
        }
        x = -_BUDGET / 2
        for kind in legend:
            at_first = first.get(kind, shares[kind])
            for look, part in ((kind, at_first), (f"later {kind}", shares[kind] - at_first)):
                width = _BUDGET * part / max(whole, 1)
                if part or look == kind:
                    svg.bar(self.group, look, (x, self.height - 4), width, 10)
                x += width
        self._add(_BUDGET)
        marks = (_Mark(kind, f"{text} {macs_text(shares[kind])}") for kind, text in legend.items())
        self.legend(*marks)

    def _add(self, width: float) -> None:
        self.height += _LINE
        self.width = max(self.width, width)


class _Page:
    """An empty drawing of lanes under a header, with places for what lies between them."""

    def __init__(
        self,
        told: str,
        header: _Header,
        lanes: Mapping[Side, Lane],
        headings: Mapping[Side, Sequence[str]],
        footer: float = 0.0,
    ) -> None:
        self.lanes = lanes = arranged(lanes)
        reach = {
            side: max(lane.width, *(svg.text_width(text) for text in headings[side]))
            for side, lane in lanes.items()
        }
        left = max(reach[side] - lanes[side].x for side in lanes if lanes[side].direction < 0)
        right = max(reach[side] + lanes[side].x for side in lanes if lanes[side].direction > 0)
        if len(lanes) == 2:
            left = right = max(left, right)
        more = max(header.width - left - right, 0.0) / 2
        middle = _MARGIN + more + left  # between the first two lanes
        width = middle + right + more + _MARGIN
        lines = max(map(len, headings.values()))
        top = header.height + 16 * lines + 8
        self.bottom = top + max(lane.heights[-1] for lane in lanes.values())
        height = self.bottom + (footer or lanes["a"].pitch / 2) + _MARGIN
        self.root = svg.document(width, height, told, lanes)
        header.group.set("transform", f"translate({svg.number(width / 2)} 0)")
        self.root.append(header.group)
        self.across = self._group("across", middle, top)
        for side, lane in lanes.items():
            group = self._group(f"lane {side}", middle + lane.x, top)
            for place, text in enumerate(reversed(headings[side])):
                kind = "parent" if text is headings[side][0] else "note"
                svg.text(group, kind, (0, -10 - 16 * place), text, anchor_of(lane.direction))
            lane.draw(group)
        self.stitches = self._group("stitches", middle, top)
        self.output = self._group("output", middle, self.bottom)

    def _group(self, kind: str, x: float, y: float) -> ET.Element:
        """What is drawn around a place of its own."""
        move = f"translate({svg.number(x)} {svg.number(y)})"
        return ET.SubElement(self.root, "g", {"class": kind, "transform": move})


def _shown_in_pair(
    graph: NetworkGraph, segments: Sequence[Segment], matched: set[int]
) -> list[Shown]:
    shown = [Shown(1.0, used=True)]
    for index, segment in enumerate(segments):
        note = f": {segment.macs / max(graph.macs, 1):.2%} of the MACs"
        if segment.point is None or index in matched:
            shown.append(Shown(1.0, used=True, note=note))
        else:
            shown.append(Shown(0.0, used=False, note=f"{note}, not matched"))
    return shown


def _shown_in_subnetwork(segments: Sequence[Segment], first: Sequence[Segment]) -> list[Shown]:
    """How rows are shown.

    Args:
        segments: With all that is computed.
        first: With what is computed for every image.
    """
    always, some = first[0].entered, segments[0].entered
    shown = [Shown(float(always), some, later=float(some and not always))]
    for segment, at_first in zip(segments, first, strict=True):
        note = f": {macs_text(segment.macs)} MACs"
        if 0 < segment.used < segment.macs:
            note += f", {macs_text(segment.used)} computed"
        elif not segment.used and not segment.computed:
            note += ", not computed"
        if segment.used > at_first.used:
            note += f", {macs_text(segment.used - at_first.used)} for unsure images only"
        note += ", replaced" if segment.replaced else ""
        share, whole = _share(at_first), _share(segment)
        used = segment.computed or segment.replaced
        shown.append(Shown(share, used, note, whole - share))
    return shown


def _share(segment: Segment) -> float:
    """How much of a segment is computed, from 0 to 1."""
    return segment.used / segment.macs if segment.macs else float(segment.computed)


def _stage_marks(subnetwork: Subnetwork) -> list[_Mark]:
    """What solid and light marks mean in the drawing of a cascade."""
    first = subnetwork.genotype.first
    (other,) = [side for side in subnetwork.sides if side != first]
    always = subnetwork.first.worst_macs
    rest = subnetwork.worst_macs - always
    return [
        _Mark(f"path {first}", f"for every image {macs_text(always)}", line=True),
        _Mark(
            f"path later {other}",
            f"for unsure images only {macs_text(rest)}",
            line=True,
        ),
    ]


def _sizes(graph: NetworkGraph) -> str:
    parameters = millions_text(graph.parameters, 2)
    return f"{millions_text(graph.macs)} MACs, {parameters} parameters"


def _figures(subnetwork: Subnetwork) -> str:
    macs = f"{macs_text(subnetwork.macs)} MACs"
    if subnetwork.is_cascade:
        macs += f" on average, {macs_text(subnetwork.worst_macs)} at worst"
    parameters = f"{millions_text(subnetwork.parameters, 2)} parameters"
    stitches = f"{len(subnetwork.on)} of {len(subnetwork.supergraph.switches)} stitches"
    return f"{macs}, {parameters}, {stitches}, {output_text(subnetwork)}"


def _draw_match(parent: ET.Element, pair: Match, y: float) -> None:
    """Draw one line for the two stitches of a match, with their names as a tooltip."""
    resampled = pair.a.layout.grid != pair.b.layout.grid
    kind = "stitch resampled" if resampled else "stitch"
    line = svg.line(parent, kind, (-BETWEEN / 2, y), (BETWEEN / 2, y))
    a, b = f"a.{pair.a.name}", f"b.{pair.b.name}"
    svg.tooltip(line, f"{a} -> {b}\n{b} -> {a}")


def _draw_stitch(
    parent: ET.Element, crossing: Crossing, source: Lane, target: Lane, kind: str
) -> None:
    """Draw an arrow from the value that a stitch reads to below the one that it replaces."""
    direction, start = 1 if target.x > source.x else -1, source.x
    half = (start + target.x) / 2
    tip = target.x - 2 * direction
    neck = tip - direction * _ARROW
    y = source.heights[crossing.at[source.side] + 1]
    to = y + DROP
    arrow = ET.SubElement(parent, "g", {"class": "crossing"})
    svg.tooltip(arrow, f"{crossing.switch.name}\n{macs_text(crossing.macs)} MACs")
    svg.path(arrow, kind, "M", start, y, "C", half, y, half, to, neck, to)
    corners = [(tip, to), (neck, to - _ARROW / 2), (neck, to + _ARROW / 2)]
    svg.polygon(arrow, kind, corners)
    svg.dot(arrow, kind, (start, y))
    label = (start + 12 * direction, y - 4)
    svg.text(arrow, "macs", label, macs_text(crossing.macs), anchor_of(direction))


def _of(levels: Iterable[Level], side: Side) -> set[int]:
    """The segments of one parent among matched ones."""
    return {index for level in levels for one, index in level if one == side}
