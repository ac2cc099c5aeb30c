"""Keep what was measured of a graph, by the graph's content: its costs and its points."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import fx

from optuna_stitch.cache import cache_folder, content_key, write_text
from optuna_stitch.networks.cost import NodeCost
from optuna_stitch.networks.layouts import Layout
from optuna_stitch.networks.points import Point

# Raise it when the same graph starts to give other points or costs.
_VERSION = 1

Measured = tuple[dict[str, NodeCost], tuple[Point, ...], dict[str, str]]


def measured_path(captured: fx.GraphModule, input_shape: tuple[int, ...]) -> Path:
    """Where the costs and points of a graph are kept.

    Args:
        captured: The graph, as traced.
        input_shape: Shape (C, H, W) of one image.
    """
    shapes = {name: tuple(value.shape) for name, value in captured.state_dict().items()}
    versions = [_VERSION, torch.__version__, timm.__version__]
    # the text of a graph module has its code and the settings of its modules
    key = content_key(versions, str(captured), captured.code, shapes, input_shape)
    return cache_folder() / "graphs" / f"{key}.json"


def load_measured(path: Path) -> Measured | None:
    """Read what was kept; None where there is nothing that can be read."""
    try:
        kept = json.loads(path.read_text())
        costs = {name: NodeCost(**_tuples(fields)) for name, fields in kept["costs"].items()}
        points = tuple(
            Point(**{**fields, "layout": Layout(**_tuples(fields["layout"]))})
            for fields in kept["points"]
        )
        return costs, points, kept["excluded"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_measured(path: Path, measured: Measured) -> None:
    """Keep costs, points and excluded values."""
    costs, points, excluded = measured
    kept = {
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "points": [asdict(point) for point in points],
        "excluded": excluded,
    }
    write_text(path, json.dumps(kept))


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
