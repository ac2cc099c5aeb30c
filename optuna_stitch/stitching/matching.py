"""Match the points of two networks, keeping the order of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optuna_stitch.errors import MatchError
from optuna_stitch.networks.graph import NetworkGraph
from optuna_stitch.networks.points import Point

PointKind = Literal["all", "dominators", "blocks"]


@dataclass(frozen=True)
class Match:
    """A point of parent a paired with a point of parent b."""

    a: Point
    b: Point


def select_points(graph: NetworkGraph, kind: PointKind) -> tuple[Point, ...]:
    """The points of a network that are candidates for matching.

    Args:
        graph: The network.
        kind: ``all`` points, the ``dominators`` that everything flows through, or the outputs of
            ``blocks``.
    """
    if kind == "all":
        return graph.points
    if kind == "dominators":
        return tuple(point for point in graph.points if point.dominator)
    return tuple(point for point in graph.points if point.block)


def match(
    a: NetworkGraph, b: NetworkGraph, *, points: PointKind = "dominators", resize: bool = True
) -> list[Match]:
    """Find the heaviest order-preserving matching, by dynamic programming.

    With points in topological order and weight w(i, j) for a compatible pair, the best total over
    the first i and j points is ``S(i, j) = max(S(i-1, j), S(i, j-1), S(i-1, j-1) + w(i, j))``. The
    weight is one less the difference of the points' relative depths. Order keeps the supernetwork
    acyclic, whatever its switches.

    Args:
        a: Parent a.
        b: Parent b.
        points: Which points are candidates: ``all``, ``dominators`` or ``blocks``.
        resize: Whether grids of different size may be matched; stitches then resample.

    Returns:
        Matches in topological order of both networks.

    Raises:
        MatchError: If no two points are compatible.
    """
    of_a, of_b = select_points(a, points), select_points(b, points)
    weights = _weights(of_a, of_b, resize=resize)
    matches = [Match(of_a[i], of_b[j]) for i, j in heaviest_in_order(weights)]
    if not matches:
        raise MatchError(
            f"{a.name} and {b.name} have no compatible points among their {points} "
            f"({len(of_a)} and {len(of_b)} candidates). Try `points: all`"
            + (" or `resize: true`." if not resize else ".")
        )
    return matches


def heaviest_in_order(weights: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The order-preserving matching of largest total weight.

    Args:
        weights: ``(n, m)``; pairs of weight 0 or less are never matched.

    Returns:
        Pairs (i, j), both strictly increasing.
    """
    n, m = weights.shape
    best = np.zeros((n + 1, m + 1))
    for i in range(1, n + 1):
        diagonal = best[i - 1, :-1] + weights[i - 1]
        # the maximum over the row above and the diagonal; then a running one along the row
        row = np.maximum(best[i - 1, 1:], np.where(weights[i - 1] > 0, diagonal, 0))
        best[i, 1:] = np.maximum.accumulate(row)
    pairs: list[tuple[int, int]] = []
    i, j = n, m
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _weights(of_a: Sequence[Point], of_b: Sequence[Point], *, resize: bool) -> NDArray[np.float64]:
    depth_a = np.array([point.depth for point in of_a])
    depth_b = np.array([point.depth for point in of_b])
    compatible = np.array(
        [[_compatible(p, q, resize=resize) for q in of_b] for p in of_a], dtype=bool
    ).reshape(len(of_a), len(of_b))
    return np.where(compatible, 1 - np.abs(depth_a[:, None] - depth_b[None, :]), 0.0)


def _compatible(p: Point, q: Point, *, resize: bool) -> bool:
    """Whether both are grids or both are vectors, and of a size that may be matched."""
    if (p.layout.positions == 1) != (q.layout.positions == 1):
        return False
    return resize or p.layout.grid == q.layout.grid
