from __future__ import annotations

import itertools

import numpy as np
import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import nn

from optuna_stitch.models.graph import NetworkGraph, capture_graph
from optuna_stitch.stitching.matching import heaviest_in_order, match
from optuna_stitch.utils.errors import MatchError


def _best_total(weights: NDArray[np.float64]) -> float:
    """The heaviest order-preserving matching by trying all of them."""
    n, m = weights.shape
    best = 0.0
    for size in range(min(n, m) + 1):
        for rows in itertools.combinations(range(n), size):
            for columns in itertools.combinations(range(m), size):
                chosen = weights[list(rows), list(columns)]
                if (chosen > 0).all():
                    best = max(best, float(chosen.sum()))
    return best


@settings(deadline=None)
@given(
    arrays.arrays(
        float,
        some.tuples(some.integers(1, 5), some.integers(1, 5)),
        elements=some.sampled_from([0.0, 0.25, 0.5, 1.0]),
    )
)
def test_matching_is_optimal_and_keeps_order(weights: NDArray[np.float64]) -> None:
    pairs = heaviest_in_order(weights)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(pairs))
    assert all(weights[i, j] > 0 for i, j in pairs)
    assert sum(weights[i, j] for i, j in pairs) == pytest.approx(_best_total(weights))


def _graph(name: str, **arguments: object) -> NetworkGraph:
    module = timm.create_model(name, **arguments)
    return capture_graph(module, module.pretrained_cfg["input_size"], name)


def test_identical_networks_match_themselves() -> None:
    graph = _graph("test_resnet")
    pairs = match(graph, graph, points="all")
    assert [(pair.a.name, pair.b.name) for pair in pairs] == [
        (point.name, point.name) for point in graph.points
    ]


def test_points_can_be_chosen() -> None:
    a, b = _graph("resnet18"), _graph("resnet34")
    counts = {kind: len(match(a, b, points=kind)) for kind in ("all", "dominators", "blocks")}
    assert counts["blocks"] == 8
    assert counts["blocks"] < counts["dominators"] < counts["all"]


def test_without_resizing_grids_are_equal() -> None:
    a, b = _graph("test_resnet"), _graph("test_vit")
    for pair in match(a, b, points="all", resize=False):
        assert pair.a.layout.grid == pair.b.layout.grid


def test_no_compatible_points_is_an_error_that_names_both() -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    a, b = capture_graph(plain.eval(), (3, 32, 32), "plain"), _graph("test_resnet")
    with pytest.raises(MatchError, match="plain and test_resnet have no compatible points"):
        match(a, b, points="blocks")
