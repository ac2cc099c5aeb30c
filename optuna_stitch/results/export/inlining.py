"""Bring the regions of a traced program into one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_HIGHER = torch.ops.higher_order
# Where a region's own graph stands among the arguments; what it reads comes behind.
_REGIONS: dict[Any, int] = {_HIGHER.wrap_with_set_grad_enabled: 1, _HIGHER.wrap_with_autocast: 4}
_ENABLED = 2  # where autocast says whether it is on


def inlined(program: fx.GraphModule) -> fx.Graph:
    """A program's graph without regions that change nothing of what is computed.

    ``torch.export`` keeps what a network computes without gradients, or without autocast, in
    graphs of their own.

    Args:
        program: The graph module of an exported program.

    Returns:
        A copy in which the operators of such regions stand like all others.
    """
    graph = fx.Graph()
    graph.output(_copy(program, graph, {}))
    return graph


def _copy(owner: fx.GraphModule, graph: fx.Graph, made: dict[fx.Node, Any]) -> Any:
    """Copy the nodes of a graph module; what it returns."""
    for node in owner.graph.nodes:
        if node in made:
            continue
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda read: made[read])
        if _is_region(node):
            place = _REGIONS[node.target]
            region = getattr(owner, str(node.args[place].target))
            inputs = [inner for inner in region.graph.nodes if inner.op == "placeholder"]
            read = [made[outer] for outer in node.args[place + 1 :]]
            made[node] = _copy(region, graph, dict(zip(inputs, read, strict=True)))
        elif node.op == "call_function" and isinstance(made.get(node.args[0]), (tuple, list)):
            made[node] = made[node.args[0]][
                node.args[1]
            ]  # one of the values that a region returns
        else:
            made[node] = graph.node_copy(node, lambda read: made[read])
    raise AssertionError("a graph ends with its output")


def _is_region(node: fx.Node) -> bool:
    autocast = node.target is _HIGHER.wrap_with_autocast
    return node.target in _REGIONS and not (autocast and node.args[_ENABLED])
