"""What a subnetwork computes of both parents, from one point to the next."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna_stitch.models.points import Point
from optuna_stitch.stitching.genotype import Genotype, Side, Switch
from optuna_stitch.stitching.supergraph import SIDES, Resolved
from optuna_stitch.stitching.supernetwork import Supernetwork


@dataclass
class Segment:
    """A stretch of a parent: what comes after the point above, up to a point of its own.

    Args:
        point: The point it ends with; None for the last, which ends with the output.
        macs: Multiply-accumulates per image of all its operations.
        used: The same of those that the subnetwork computes.
        computed: Whether the value it ends with is computed.
        entered: Whether a value of this parent, or one stitched into it, flows into or past it.
        left: Whether such a value flows on past its end; one that is stitched in there does not
            count.
        replaced: Whether a stitched value takes the place of the one it ends with.
    """

    point: Point | None
    macs: int = 0
    used: int = 0
    computed: bool = False
    entered: bool = False
    left: bool = False
    replaced: bool = False


@dataclass(frozen=True)
class Crossing:
    """A stitch between two segments.

    Args:
        number: Index of its switch.
        switch: The switch.
        macs: Multiply-accumulates per image.
        at: By parent the segment whose last value it reads or replaces.
        used: Whether it is on and reaches the output.
    """

    number: int
    switch: Switch
    macs: int
    at: dict[Side, int]
    used: bool

    @property
    def source(self) -> Side:
        """The parent that it reads from."""
        return "a" if self.switch.into == "b" else "b"


@dataclass(frozen=True)
class Dissection:
    """A subnetwork in its parts.

    Args:
        genotype: With every switch off that cannot reach the output.
        segments: Of both parents, in order of execution, divided at the outputs of blocks and at
            the points that have a stitch.
        crossings: All stitches, in the switches' order.
        macs: Multiply-accumulates per image by owner: ``a``, ``b`` and ``stitch``.
    """

    genotype: Genotype
    segments: dict[Side, list[Segment]]
    crossings: list[Crossing]
    macs: Mapping[str, int]


def dissect(supernetwork: Supernetwork, params: Mapping[str, Any] | Genotype) -> Dissection:
    """Find out what a genotype computes, and where it crosses.

    Args:
        supernetwork: What the subnetwork is of.
        params: A trial's parameters, or a genotype.

    Raises:
        StudyError: If a parameter is no switch of this supernetwork.
    """
    genotype = supernetwork.canonical(supernetwork.genotype(params))
    resolved = supernetwork.supergraph.resolve(genotype)
    operations = supernetwork.supergraph.operations
    macs: Counter[str] = Counter(a=0, b=0, stitch=0)
    for step, _ in resolved.steps:
        macs[operations[step].owner] += operations[step].macs
    segments = {side: _segments(supernetwork, resolved, side) for side in SIDES}
    place = {
        side: {s.point.node: index for index, s in enumerate(segments[side]) if s.point}
        for side in SIDES
    }
    crossings = [
        Crossing(
            number=number,
            switch=switch,
            macs=stitch.macs,
            at={side: place[side][_node(switch, side)] for side in SIDES},
            used=number in resolved.used,
        )
        for number, (switch, stitch) in enumerate(
            zip(supernetwork.switches, supernetwork.laid, strict=True)
        )
    ]
    return Dissection(genotype, segments, crossings, macs)


def _segments(supernetwork: Supernetwork, resolved: Resolved, side: Side) -> list[Segment]:
    graph = supernetwork.graphs[side]
    stitched = {_node(switch, side) for switch in supernetwork.switches}
    points = [point for point in graph.points if point.block or point.node in stitched]
    order = {node: index for index, node in enumerate(graph.costs)}
    ends = [order[point.node] for point in points]
    segments = [*map(Segment, points), Segment(None)]
    for node, cost in graph.costs.items():
        segments[bisect_left(ends, order[node])].macs += cost.macs

    operations = supernetwork.supergraph.operations
    of_images: set[int] = set()  # a constant needs no way from above
    computed: set[int] = set()
    for step, reads in resolved.steps:
        operation = operations[step]
        if operation.owner == "input" or any(read in of_images for read in reads):
            of_images.add(step)
        if operation.owner != side or operation.node is None:
            continue
        place = order[operation.node.name]
        computed.add(place)
        reader = bisect_left(ends, place)
        segments[reader].used += operation.macs
        for value in [operations[read] for read in reads if read in of_images]:
            stitch = value.owner == "stitch"
            if stitch:
                origin = order[supernetwork.switches[value.number].target]
                segments[bisect_left(ends, origin)].replaced = True
            else:
                origin = order[value.node.name] if value.node else -1  # -1: the images
            below = bisect_right(ends, origin)
            for segment in segments[below : reader + 1]:
                segment.entered = True
            for segment in segments[below if stitch else bisect_left(ends, origin) : reader]:
                segment.left = True
    nodes = [*(point.node for point in points), graph.output.name]
    for segment, node in zip(segments, nodes, strict=True):
        segment.computed = order[node] in computed
    return segments


def _node(switch: Switch, side: Side) -> str:
    """The end of a switch that is in a parent."""
    return switch.target if switch.into == side else switch.source
