"""Match the points of two or more networks, keeping the order of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from optuna_stitch.data.splits import Split
from optuna_stitch.data.view import View
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.layouts import resample
from optuna_stitch.models.points import Point
from optuna_stitch.stitching.genotype import SIDES, Side
from optuna_stitch.stitching.settings import PointKind
from optuna_stitch.utils.errors import ConfigError, MatchError

# Features are compared on a grid of at most this many positions a side.
_COARSE_SIDE = 4


class LinearCKA:
    """Linear centred kernel alignment of every pair of points (Kornblith et al., 2019).

    ``CKA(X, Y) = |Yᵀ X|² / (|Xᵀ X| |Yᵀ Y|)`` with Frobenius norms and centred features, here over
    images and positions of a coarse grid. It is 1 for features that a rotation and a scale turn
    into each other, and 0 for unrelated ones.

    Args:
        views: How parent a and parent b see images.
        split: A few images; 32 are enough to rank points.
    """

    def __init__(self, views: tuple[View, View], split: Split) -> None:
        self._views = views
        self._split = split

    def __call__(
        self, a: NetworkGraph, b: NetworkGraph, of_a: Sequence[Point], of_b: Sequence[Point]
    ) -> NDArray[np.float64]:
        """The similarity of every pair of points, ``(len(of_a), len(of_b))``."""
        batch = next(self._split.batches(self._views, len(self._split)))
        features_a = _coarse_features(a, of_a, batch.images[0])
        features_b = _coarse_features(b, of_b, batch.images[1])
        found = np.zeros((len(of_a), len(of_b)))
        for i, p in enumerate(of_a):
            for j, q in enumerate(of_b):
                found[i, j] = linear_cka(features_a[p.node], features_b[q.node])
        return found


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of features on the same images.

    Args:
        x: ``(N, C, H, W)``.
        y: ``(N, C', H', W')``.
    """
    size = min(x.shape[2], y.shape[2], _COARSE_SIDE), min(x.shape[3], y.shape[3], _COARSE_SIDE)
    x, y = (
        resample(feature.double(), size).permute(0, 2, 3, 1).flatten(0, 2) for feature in (x, y)
    )
    x, y = x - x.mean(0), y - y.mean(0)
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).square().sum() / scale) if scale > 0 else 0.0


def _coarse_features(
    graph: NetworkGraph, points: Sequence[Point], images: Tensor
) -> dict[str, Tensor]:
    """The points' features by node, as coarse grids."""
    reader = _CoarseReader(graph.module, {point.node: point for point in points})
    with torch.inference_mode():
        reader.run(images)
    return reader.features


class _CoarseReader(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, points: dict[str, Point]) -> None:
        super().__init__(module)
        self.features: dict[str, Tensor] = {}
        self._points = points

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        point = self._points.get(n.name)
        if point is not None:
            grid, _ = point.layout.split(value)
            height, width = grid.shape[-2:]
            self.features[n.name] = resample(
                grid, (min(height, _COARSE_SIDE), min(width, _COARSE_SIDE))
            )
        return value


# Fewer matches among the dominators than this, and `auto` takes all points.
_FEW = 4


# Takes both networks and the candidates of each, returns (n, m) factors from 0 to 1.
Similarity = Callable[
    [NetworkGraph, NetworkGraph, Sequence[Point], Sequence[Point]], NDArray[np.float64]
]


@dataclass(frozen=True)
class Match:
    """A point of one parent paired with a point of another one.

    Args:
        a: The point of parent a; of more than two parents, of the first one of ``sides``.
        b: The point of parent b; of more than two parents, of the second one.
        sides: Which parents.
    """

    a: Point
    b: Point
    sides: tuple[Side, Side] = SIDES

    @property
    def points(self) -> dict[Side, Point]:
        """Both points by their parents."""
        return dict(zip(self.sides, (self.a, self.b), strict=True))


def select_points(graph: NetworkGraph, kind: PointKind) -> tuple[Point, ...]:
    """The points of a network that are candidates for matching.

    Args:
        graph: The network.
        kind: ``all`` points, the ``dominators`` that everything flows through, or the outputs of
            ``blocks``; ``auto`` starts with the dominators.

    Raises:
        ConfigError: If it is none of these.
    """
    if kind not in get_args(PointKind):
        raise ConfigError(f"Points are {', '.join(get_args(PointKind))}, not {kind!r}.")
    if kind == "all":
        return graph.points
    if kind in ("dominators", "auto"):
        return tuple(point for point in graph.points if point.dominator)
    return tuple(point for point in graph.points if point.block)


def match(
    a: NetworkGraph,
    b: NetworkGraph,
    *,
    points: PointKind = "auto",
    resize: bool = True,
    similarity: Similarity | None = None,
) -> list[Match]:
    """Find the heaviest order-preserving matching, by dynamic programming.

    With points in topological order and weight w(i, j) for a compatible pair, the best total over
    the first i and j points is ``S(i, j) = max(S(i-1, j), S(i, j-1), S(i-1, j-1) + w(i, j))``. The
    weight is one less the difference of the points' relative depths. Order keeps the supernetwork
    acyclic, whatever its switches. Grids are matched with grids and vectors with vectors; only
    where that gives nothing at all, with each other.

    Args:
        a: Parent a.
        b: Parent b.
        points: Which points are candidates: ``all``, ``dominators`` or ``blocks``. ``auto`` takes
            the dominators, or all points where those give few matches.
        resize: Whether grids of different size may be matched; stitches then resample.
        similarity: Weighs pairs by how alike their features are besides; see `LinearCKA`.

    Returns:
        Matches in topological order of both networks.

    Raises:
        MatchError: If no two points are compatible.
    """
    similarities = None if similarity is None else {SIDES: similarity}
    return match_all({"a": a, "b": b}, points=points, resize=resize, similarities=similarities)


def match_all(
    graphs: Mapping[Side, NetworkGraph],
    *,
    points: PointKind = "auto",
    resize: bool = True,
    similarities: Mapping[tuple[Side, Side], Similarity] | None = None,
) -> list[Match]:
    """Match the points of two or more networks, in one order for all of them.

    Matchings of each two networks may make a cycle together, though each of them keeps the order
    of its two. So the points are put into columns, which are in one order, and have one point of
    a network at most: first each point of the first network is a column; every further network is
    aligned with the columns as `match` aligns it with another network, the weight of a column
    being the sum over its points. A point that goes into no column is one of its own, placed by
    its depth. Two points of a column are a match. With the columns' order all edges of the
    supernetwork go forward, those of the stitches included, so that no genotype makes a cycle.

    Args:
        graphs: The networks by side, two at least.
        points: As for `match`.
        resize: As for `match`.
        similarities: As for `match`, by two sides.

    Returns:
        Matches in topological order of all networks; of a column, those of its first points first.

    Raises:
        MatchError: If a network has no point that is compatible with one of another network.
    """
    sides = tuple(graphs)

    def among(kind: PointKind, *, mixed: bool = False) -> list[Match]:
        chosen = {side: select_points(graph, kind) for side, graph in graphs.items()}
        weights: dict[tuple[Side, Side], NDArray[np.float64]] = {}
        for one, other in combinations(sides, 2):
            both = chosen[one], chosen[other]
            found = _weights(*both, resize=resize, mixed=mixed)
            if similarities is not None and found.size:
                found = found * similarities[one, other](graphs[one], graphs[other], *both)
            weights[one, other] = found
        return [
            Match(chosen[one][column[one]], chosen[other][column[other]], (one, other))
            for column in _columns(chosen, weights)
            for one, other in combinations(column, 2)
            if weights[one, other][column[one], column[other]] > 0
        ]

    def fewest(matches: Sequence[Match]) -> tuple[int, Side]:
        counts = Counter(side for pair in matches for side in pair.sides)
        return min((counts[side], side) for side in sides)

    matches = among(points)
    if points == "auto" and fewest(matches)[0] < _FEW:
        points = "all"
        matches = among(points)
    if not fewest(matches)[0]:
        matches = among(points, mixed=True)
    count, lonely = fewest(matches)
    if not count:
        # of two networks both have none
        rest = [side for side in sides if side != lonely]
        order = [lonely, *rest]
        names = " and ".join(graphs[side].name for side in order)
        counts = " and ".join(str(len(select_points(graphs[side], points))) for side in order)
        raise MatchError(
            f"{names} have no compatible points among their {points} ({counts} candidates)"
            + (f": no point of parent {lonely} has a match" if len(sides) > 2 else "")
            + ". `optuna-stitch inspect` shows why; try `points: all`"
            + (" or `resize: true`." if not resize else ".")
        )
    return matches


# Of each network that has a point in it, the number of the point.
_Column = dict[Side, int]


def _columns(
    chosen: Mapping[Side, Sequence[Point]],
    weights: Mapping[tuple[Side, Side], NDArray[np.float64]],
) -> list[_Column]:
    """Points of several networks in columns of one order; see `match_all`."""
    columns: list[_Column] = []
    for side, points in chosen.items():
        heavy = np.zeros((len(columns), len(points)))
        for place, column in enumerate(columns):
            for other, number in column.items():
                heavy[place] += weights[other, side][number]

        def depth(column: _Column) -> float:
            return float(np.mean([chosen[one][number].depth for one, number in column.items()]))

        merged: list[_Column] = []
        place = number = 0
        for i, j in [*heaviest_in_order(heavy), (len(columns), len(points))]:
            own: list[_Column] = [{side: n} for n in range(number, j)]
            merged += _by_depth(columns[place:i], own, depth)
            if i < len(columns):
                merged.append({**columns[i], side: j})
            place, number = i + 1, j + 1
        columns = merged
    return columns


def _by_depth(
    columns: Sequence[_Column], others: Sequence[_Column], depth: Callable[[_Column], float]
) -> list[_Column]:
    """Two runs of columns as one, each in its own order, the shallower column first."""
    merged: list[_Column] = []
    left, right = list(columns), list(others)
    while left and right:
        merged.append((left if depth(left[0]) <= depth(right[0]) else right).pop(0))
    return [*merged, *left, *right]


def candidates_of(matches: Sequence[Match], points: PointKind) -> PointKind:
    """Which points were candidates for these matches, where ``points`` was maybe ``auto``.

    Args:
        matches: What `match` found.
        points: What it was asked for.
    """
    if points != "auto":
        return points
    dominators = all(pair.a.dominator and pair.b.dominator for pair in matches)
    return "dominators" if dominators and len(matches) >= _FEW else "all"


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


def _weights(
    of_a: Sequence[Point], of_b: Sequence[Point], *, resize: bool, mixed: bool
) -> NDArray[np.float64]:
    depth_a = np.array([point.depth for point in of_a])
    depth_b = np.array([point.depth for point in of_b])
    compatible = np.array(
        [[_compatible(p, q, resize=resize, mixed=mixed) for q in of_b] for p in of_a], dtype=bool
    ).reshape(len(of_a), len(of_b))
    # points at opposite ends are still better matched than not at all
    near = np.maximum(1 - np.abs(depth_a[:, None] - depth_b[None, :]), 1e-6)
    return np.where(compatible, near, 0.0)


def _compatible(p: Point, q: Point, *, resize: bool, mixed: bool) -> bool:
    """Whether both are grids or both are vectors, and of a size that may be matched."""
    if (p.layout.positions == 1) != (q.layout.positions == 1) and not mixed:
        return False
    return resize or p.layout.grid == q.layout.grid
