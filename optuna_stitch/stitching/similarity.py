"""How alike the features of two networks are, on a few images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from optuna_stitch.networks.graph import NetworkGraph
from optuna_stitch.networks.layouts import resample
from optuna_stitch.networks.points import Point
from optuna_stitch.networks.view import View
from optuna_stitch.splits import Split

# Features are compared on a grid of at most this many positions a side.
_SIDE = 4


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
        features_a = _features(a, of_a, batch.images[0])
        features_b = _features(b, of_b, batch.images[1])
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
    size = min(x.shape[2], y.shape[2], _SIDE), min(x.shape[3], y.shape[3], _SIDE)
    x, y = (
        resample(feature.double(), size).permute(0, 2, 3, 1).flatten(0, 2) for feature in (x, y)
    )
    x, y = x - x.mean(0), y - y.mean(0)
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).square().sum() / scale) if scale > 0 else 0.0


def _features(graph: NetworkGraph, points: Sequence[Point], images: Tensor) -> dict[str, Tensor]:
    """The points' features by node, as coarse grids."""
    reader = _Reader(graph.module, {point.node: point for point in points})
    with torch.inference_mode():
        reader.run(images)
    return reader.features


class _Reader(fx.Interpreter):
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
            self.features[n.name] = resample(grid, (min(height, _SIDE), min(width, _SIDE)))
        return value
