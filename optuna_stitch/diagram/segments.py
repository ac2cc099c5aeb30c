"""What a subnetwork computes of the parents, from one point to the next."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.points import Point
from optuna_stitch.stitching.genotype import Side, Switch
from optuna_stitch.stitching.subnetwork import Subnetwork


@dataclass
class Segment:
    """A stretch of a parent: what comes after the point above, up to a point of its own.

    Args:
        point: The point it ends with; None for the last, which ends with the output.
        macs: Multiply-accumulates per image of all its operations.
        used: Multiply-accumulates per image of the operations that the subnetwork computes.
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
        switch: Its switch.
        macs: Multiply-accumulates per image.
        at: The index, by its two parents, of the segment whose last value it reads or replaces.
        used: Whether it is on and reaches the output.
    """

    switch: Switch
    macs: int
    at: Mapping[Side, int]
    used: bool


@dataclass(frozen=True)
class Dissection:
    """A subnetwork in its parts.

    Args:
        segments: Of all parents, in order of execution, divided at the outputs of blocks and at
            the points that have a stitch.
        crossings: All stitches of the supernetwork, in the switches' order.
        macs: Multiply-accumulates per image by owner: the parents and ``stitch``.
    """

    segments: Mapping[Side, list[Segment]]
    crossings: list[Crossing]
    macs: Mapping[str, int]


def divide(graph: NetworkGraph, nodes: Collection[str]) -> list[Segment]:
    """Divide a parent into segments, of which nothing is marked as computed.

    Args:
        graph: The parent.
        nodes: Names of the points' nodes that segments end with.

    Returns:
        A segment per point, in order of execution, and the last, which ends with the output.
    """
    points = [point for point in graph.points if point.node in nodes]
    segments = [*map(Segment, points), Segment(None)]
    ends = {point.node: index for index, point in enumerate(points)}
    place = 0
    for node, cost in graph.costs.items():  # in the order of execution
        segments[place].macs += cost.macs
        place = ends.get(node, place - 1) + 1
    return segments


def dissect(subnetwork: Subnetwork) -> Dissection:
    """Find out what a subnetwork computes, and where it crosses.

    Args:
        subnetwork: The subnetwork.
    """
    supergraph = subnetwork.supergraph
    macs: Counter[str] = Counter(dict.fromkeys((*supergraph.sides, "stitch"), 0))
    for step, _ in subnetwork.resolved.steps:
        macs[supergraph.operations[step].owner] += supergraph.operations[step].macs
    segments = {side: _segments(subnetwork, side) for side in supergraph.sides}
    place = {
        side: {s.point.node: index for index, s in enumerate(segments[side]) if s.point}
        for side in supergraph.sides
    }
    crossings = [
        Crossing(
            switch=switch,
            macs=stitch.macs,
            at={
                side: place[side][_node(switch, side)]
                for side in sorted((switch.out_of, switch.into))
            },
            used=number in subnetwork.on,
        )
        for number, (switch, stitch) in enumerate(
            zip(supergraph.switches, supergraph.stitches, strict=True)
        )
    ]
    return Dissection(segments, crossings, macs)


def _segments(subnetwork: Subnetwork, side: Side) -> list[Segment]:
    """A parent's segments, marked with what the subnetwork computes of them."""
    supergraph = subnetwork.supergraph
    graph, operations = supergraph.graphs[side], supergraph.operations
    stitched = {
        _node(switch, side)
        for switch in supergraph.switches
        if side in (switch.out_of, switch.into)
    }
    segments = divide(graph, {p.node for p in graph.points if p.block} | stitched)
    nodes = [segment.point.node if segment.point else graph.output.name for segment in segments]
    order = {node: index for index, node in enumerate(graph.costs)}
    ends = [order[node] for node in nodes[:-1]]
    of_images: set[int] = set()  # a constant needs no way from above
    computed: set[int] = set()
    for step, reads in subnetwork.resolved.steps:
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
                origin = order[supergraph.switches[value.number].target]
                segments[bisect_left(ends, origin)].replaced = True
            else:
                origin = order[value.node.name] if value.node else -1  # -1: the images
            below = bisect_right(ends, origin)
            for segment in segments[below : reader + 1]:
                segment.entered = True
            for segment in segments[below if stitch else bisect_left(ends, origin) : reader]:
                segment.left = True
    for segment, node in zip(segments, nodes, strict=True):
        segment.computed = order[node] in computed
    return segments


def _node(switch: Switch, side: Side) -> str:
    """The end of a switch that is in a parent."""
    return switch.target if switch.into == side else switch.source
