"""Infer how the features of a graph lie in their tensors."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from optuna_stitch.networks.cost import TRACED_BATCH, NodeCost
from optuna_stitch.networks.layouts import Layout

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
_CHANNELS_FIRST_FUNCTIONS = {
    F.conv2d,
    F.batch_norm,
    F.group_norm,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.interpolate,
}
_CHANNELS_LAST_FUNCTIONS = {F.linear, F.layer_norm}

# Class, distillation and register tokens; more than this and the grid is not what we think.
_MOST_PREFIX_TOKENS = 16


def infer_layouts(
    captured: fx.GraphModule, costs: dict[str, NodeCost]
) -> tuple[dict[str, Layout], dict[str, str]]:
    """Infer the layout of every tensor, from the operation that made it and from its inputs.

    Args:
        captured: The graph.
        costs: Figures by node name.

    Returns:
        Layouts by node name, and for every tensor without one the reason.
    """
    modules = dict(captured.named_modules())
    layouts: dict[str, Layout] = {}
    grids: dict[str, tuple[int, int]] = {}  # the last grid known on the way to a node
    reasons: dict[str, str] = {}
    for node in captured.graph.nodes:
        known = [grids[n.name] for n in node.all_input_nodes if n.name in grids]
        if known:
            grids[node.name] = known[0]
        shape = costs[node.name].shape if node.op != "output" else None
        if shape is None:
            continue
        inherited = [layouts[n.name] for n in node.all_input_nodes if n.name in layouts]
        order = _channel_order(node, modules)
        layout = _layout(shape, order, inherited, grids.get(node.name))
        if isinstance(layout, str):
            reasons[node.name] = layout
            continue
        layouts[node.name] = layout
        if layout.kind != "NC":
            grids[node.name] = layout.grid
    return layouts, reasons


def _channel_order(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """Return "first" or "last" where the operation says where its channels are."""
    target: Any = modules[str(node.target)] if node.op == "call_module" else node.target
    if node.op == "placeholder":
        return "first"
    if node.op == "call_module":
        # timm's 2d variants of LayerNorm permute inside and keep the channels first
        if isinstance(target, _CHANNELS_FIRST_MODULES) or type(target).__name__.endswith("2d"):
            return "first"
        if isinstance(target, _CHANNELS_LAST_MODULES):
            return "last"
    elif node.op == "call_function":
        if target in _CHANNELS_FIRST_FUNCTIONS:
            return "first"
        if target in _CHANNELS_LAST_FUNCTIONS:
            return "last"
    if node.op == "call_method" and target == "permute":
        dims = node.args[1:] if len(node.args) > 2 else node.args[1]
        return {(0, 2, 3, 1): "last", (0, 3, 1, 2): "first"}.get(tuple(dims))  # type: ignore[arg-type]
    return None


def _layout(
    shape: tuple[int, ...],
    order: str | None,
    inherited: list[Layout],
    grid: tuple[int, int] | None,
) -> Layout | str:
    """The layout of a tensor of this shape, or why it has none."""
    if not shape or shape[0] != TRACED_BATCH:
        return "its first dimension is not the batch (windows, or a constant)"
    if len(shape) == 2:
        return Layout("NC", shape[1], (1, 1))
    if len(shape) == 4:
        return _grid_layout(shape, order, inherited)
    if len(shape) == 3:
        return _token_layout(shape, order, inherited, grid)
    return f"has {len(shape)} dimensions; grids have 4, tokens 3 and vectors 2"


def _grid_layout(
    shape: tuple[int, ...], order: str | None, inherited: list[Layout]
) -> Layout | str:
    first = Layout("NCHW", shape[1], (shape[2], shape[3]))
    last = Layout("NHWC", shape[3], (shape[1], shape[2]))
    if order is not None:
        return first if order == "first" else last
    for layout in inherited:
        # an elementwise operation keeps the layout; one that changes channels keeps the grid
        if layout.kind == "NCHW" and layout.grid == first.grid:
            return first
        if layout.kind == "NHWC" and layout.grid == last.grid:
            return last
    if shape[2] == shape[3] and shape[1] != shape[2]:
        return first
    if shape[1] == shape[2] and shape[2] != shape[3]:
        return last
    return "its operation does not tell which dimensions are the grid"


def _token_layout(
    shape: tuple[int, ...],
    order: str | None,
    inherited: list[Layout],
    grid: tuple[int, int] | None,
) -> Layout | str:
    if grid is None:
        return "tokens without a grid behind them"
    prefix = shape[1] - grid[0] * grid[1]
    channels_first = shape[2] == grid[0] * grid[1] and any(
        layout.kind == "NCHW" and layout.channels == shape[1] for layout in inherited
    )
    if channels_first and order != "last":
        return "a flattened grid with channels first"
    if not 0 <= prefix <= _MOST_PREFIX_TOKENS:
        return f"{shape[1]} tokens are no grid of {grid[0]}×{grid[1]} with prefix tokens"
    return Layout("NLC", shape[2], grid, prefix)
