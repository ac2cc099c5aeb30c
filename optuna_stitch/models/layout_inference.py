"""Infer how the features of a graph lie in their tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from optuna_stitch.models.capture import TRACED_BATCH
from optuna_stitch.models.cost import NodeCost, image_dependent
from optuna_stitch.models.layouts import Layout

# Operations by the name that modules, functions and exported operators share.
_CHANNELS_FIRST = {
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "group_norm",
    "interpolate",
    "max_pool2d",
    "upsample_bilinear2d",
    "upsample_nearest2d",
}

_CHANNELS_LAST = {"layer_norm", "linear"}

# After one of these a grid may be back that was cut into windows or tokens before.
_RESHAPES = {
    "cat",
    "contiguous",
    "flatten",
    "permute",
    "reshape",
    "unflatten",
    "view",
    "window_reverse",
}

_CHANNELS_FIRST_MODULES = (
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Upsample,
)

_CHANNELS_LAST_MODULES = (nn.Linear, nn.LayerNorm)

# Class, distillation and register tokens; with more than this, the grid is taken to be another.
_MOST_PREFIX_TOKENS = 16


def infer_layouts(
    captured: fx.GraphModule, costs: dict[str, NodeCost]
) -> tuple[dict[str, Layout], dict[str, str]]:
    """Infer the layout of every tensor, from the operation that made it and from its inputs.

    Args:
        captured: The graph.
        costs: Shapes and costs by node name.

    Returns:
        Layouts by node name, and the reason for every tensor without one.
    """
    modules = dict(captured.named_modules())
    depends = image_dependent(captured, costs)
    image = _image_size(captured, costs)
    layouts: dict[str, Layout] = {}
    reasons: dict[str, str] = {}
    # the grids on the way to a node: its tokens or windows may form one of them again
    grids: dict[fx.Node, list[tuple[int, int]]] = {}
    for node in captured.graph.nodes:
        met = dict.fromkeys(grid for n in node.all_input_nodes for grid in grids.get(n, []))
        if node in depends:
            grids[node] = list(met)
        shape = costs[node.name].shape if node.op != "output" else None
        if shape is None:
            continue
        inherited = [layouts[n.name] for n in node.all_input_nodes if n.name in layouts]
        order = _channel_order(node, modules, inherited)
        if not shape or shape[0] != TRACED_BATCH:
            layout: Layout | str = "its first dimension is not the batch (windows, or a constant)"
        elif len(shape) == 2:
            layout = Layout("NC", shape[1], (1, 1))
        elif len(shape) == 4:
            near = list(met) if operation_name(node) in _RESHAPES else []
            layout = _grid_layout(shape, order, inherited, near)
        elif len(shape) == 3:
            layout = _token_layout(shape, order, inherited, list(met), image)
        else:
            layout = f"has {len(shape)} dimensions; grids have 4, tokens 3 and vectors 2"
        if isinstance(layout, str):
            reasons[node.name] = layout
            continue
        layouts[node.name] = layout
        if layout.kind != "NC":
            grids[node] = [layout.grid]
    return layouts, reasons


def _image_size(captured: fx.GraphModule, costs: dict[str, NodeCost]) -> tuple[int, int]:
    images = next(node for node in captured.graph.nodes if node.op == "placeholder")
    shape = costs[images.name].shape
    assert shape is not None
    return shape[2], shape[3]


def _channel_order(
    node: fx.Node, modules: dict[str, nn.Module], inherited: list[Layout]
) -> str | None:
    """Return "first" or "last" where the operation says where its channels are."""
    if node.op == "placeholder":
        return "first"
    if node.op == "call_module":
        target = modules[str(node.target)]
        # timm's 2d variants of LayerNorm permute inside and keep the channels first
        if isinstance(target, _CHANNELS_FIRST_MODULES) or type(target).__name__.endswith("2d"):
            return "first"
        return "last" if isinstance(target, _CHANNELS_LAST_MODULES) else None
    operation = operation_name(node)
    if operation in _CHANNELS_FIRST:
        return "first"
    if operation in _CHANNELS_LAST:
        return "last"
    if operation == "permute":
        dims: Any = node.args[1:] if len(node.args) > 2 else node.args[1]
        kind = inherited[0].kind if inherited else None
        if tuple(dims) == (0, 2, 3, 1) and kind == "NCHW":
            return "last"
        if tuple(dims) == (0, 3, 1, 2) and kind == "NHWC":
            return "first"
    return None


def operation_name(node: fx.Node) -> str:
    """The name of what a node calls, without its namespace and overload: ``conv2d``.

    Args:
        node: A node of any kind.
    """
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target)).rpartition(".")[2]


def _grid_layout(
    shape: tuple[int, ...],
    order: str | None,
    inherited: list[Layout],
    near: list[tuple[int, int]],
) -> Layout | str:
    """The layout of a tensor of 4 dimensions, or why it has none; ``near`` are likely grids."""
    first = Layout("NCHW", shape[1], (shape[2], shape[3]))
    last = Layout("NHWC", shape[3], (shape[1], shape[2]))
    if order == "first":
        return first
    if order == "last" and inherited:
        return last
    for layout in inherited:
        # an elementwise operation keeps the layout; one that changes channels keeps the grid, and
        # one that merges or splits neighbouring positions its aspect
        if layout.kind == "NCHW" and _same_aspect(layout.grid, first.grid):
            return first
        if layout.kind == "NHWC" and _same_aspect(layout.grid, last.grid):
            return last
    for grid in near:
        # a grid is back that was cut into windows or tokens; it did not become finer by that
        fits = [
            layout
            for layout in (first, last)
            if layout.grid[0] <= grid[0] and _same_aspect(layout.grid, grid)
        ]
        if len(fits) == 1:
            return fits[0]
    return "its operation does not tell which dimensions are the grid"


def _token_layout(
    shape: tuple[int, ...],
    order: str | None,
    inherited: list[Layout],
    grids: list[tuple[int, int]],
    image: tuple[int, int],
) -> Layout | str:
    """The layout of a tensor of 3 dimensions, or why it has none."""
    tokens = shape[1]
    if grids == [image]:
        # no feature with a grid was seen yet: patches were cut from the image itself
        whole = _grid_of_tokens(tokens, image)
        grids = [whole] if whole else []
    for grid in grids:
        positions = grid[0] * grid[1]
        flat = shape[2] == positions and any(
            layout.kind == "NCHW" and layout.channels == tokens for layout in inherited
        )
        if flat and order != "last":
            return "a flattened grid with channels first"
    fits = [g for g in grids if 0 <= tokens - g[0] * g[1] <= _MOST_PREFIX_TOKENS]
    if not fits:
        known = " or ".join(f"{height}×{width}" for height, width in grids) or "any known size"
        return f"{tokens} tokens are no grid of {known} with prefix tokens"
    grid = max(fits, key=lambda g: g[0] * g[1])
    return Layout("NLC", shape[2], grid, tokens - grid[0] * grid[1])


def _grid_of_tokens(tokens: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """The grid of an image's aspect that has so many positions, with as few prefix tokens."""
    for prefix in range(_MOST_PREFIX_TOKENS + 1):
        height = math.isqrt((tokens - prefix) * image[0] // image[1]) if tokens > prefix else 0
        if height and (tokens - prefix) % height == 0:
            grid = height, (tokens - prefix) // height
            if grid[0] > 1 and _same_aspect(grid, image):
                return grid
    return None


def _same_aspect(grid: tuple[int, int], other: tuple[int, int]) -> bool:
    return grid[0] * other[1] == grid[1] * other[0]
