"""Take one subnetwork out of the supernetwork as a plain module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from optuna_stitch.stitching.genotype import Side
from optuna_stitch.stitching.supergraph import Resolved, Supergraph


def extract(
    supergraph: Supergraph,
    resolved: Resolved,
    modules: dict[Side, fx.GraphModule],
    stitches: nn.ModuleList,
    statistics: Mapping[int, tuple[Tensor, Tensor]],
) -> fx.GraphModule:
    """Build a module of the operations that one genotype needs.

    Args:
        supergraph: The supernetwork's operations.
        resolved: What the genotype computes.
        modules: The parents' graphs by side.
        stitches: The supernetwork's stitches.
        statistics: Mean and variance of BatchNorms that have other ones than in their parent, by
            operation.

    Returns:
        A graph module that shares its weights with the supernetwork.
    """
    recalibrated = nn.ModuleDict()
    parts = {"a": modules["a"], "b": modules["b"], "stitches": stitches}
    root = nn.ModuleDict({**parts, "recalibrated": recalibrated})
    graph = fx.Graph()
    made: dict[int, fx.Node] = {}
    for place, inputs in resolved.steps:
        operation = supergraph.operations[place]
        values = [made[read] for read in inputs]
        if operation.owner == "input":
            several = len(supergraph.views) > 1
            made[place] = graph.placeholder(f"images_{operation.number}" if several else "images")
        elif operation.owner == "stitch":
            made[place] = graph.call_module(f"stitches.{operation.number}", tuple(values))
        elif place in statistics and operation.norm is not None:
            key = operation.name.replace(".", "_")
            recalibrated[key] = operation.norm.module(*statistics[place])
            made[place] = operation.norm.place(graph, f"recalibrated.{key}", values)
        elif operation.node is None:
            made[place] = graph.call_function(operation.run, tuple(values))
        else:
            made[place] = _copy(graph, operation.node, operation.owner, values)
    graph.output(made[resolved.output])
    return fx.GraphModule(root, graph, class_name="Subnetwork").eval()


def _copy(graph: fx.Graph, node: fx.Node, side: str, values: list[fx.Node]) -> fx.Node:
    value_of = dict(zip(node.all_input_nodes, values, strict=True))
    target: Any = node.target
    if node.op in ("call_module", "get_attr"):
        target = f"{side}.{target}"
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: value_of[n])
    return graph.create_node(node.op, target, args, kwargs)
