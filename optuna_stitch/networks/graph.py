"""A captured network with its points: where features can be read or replaced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import fx, nn

from optuna_stitch.networks.capture import capture, drop_checks
from optuna_stitch.networks.cost import NodeCost, measure
from optuna_stitch.networks.points import Point, find_points


@dataclass(frozen=True)
class NetworkGraph:
    """One network as a functional graph, with its points and costs.

    Args:
        name: What to call the network.
        module: The graph; its parameters are the network's own.
        input_shape: Shape (C, H, W) of one image.
        points: Every point, in topological order.
        costs: Shape and multiply-accumulates by node name.
        captured_by: ``fx`` for a graph of modules, ``export`` for one of operators.
        excluded: Values that cannot be points, by name, with the reason.
    """

    name: str
    module: fx.GraphModule
    input_shape: tuple[int, int, int]
    points: tuple[Point, ...]
    costs: dict[str, NodeCost]
    captured_by: Literal["fx", "export"]
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def output(self) -> fx.Node:
        """The node whose value the network returns."""
        returned = self.module.graph.output_node().args[0]
        assert isinstance(returned, fx.Node)
        return returned

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole network per image."""
        return sum(cost.macs for cost in self.costs.values())

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole network."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def classes(self) -> int:
        """Number of classes the network tells apart."""
        shape = self.costs[self.output.name].shape
        assert shape is not None
        return shape[1]


def capture_graph(module: nn.Module, input_shape: tuple[int, int, int], name: str) -> NetworkGraph:
    """Capture a network and find its points.

    Args:
        module: The network; put into eval mode.
        input_shape: Shape (C, H, W) of the images it is given.
        name: What to call it.

    Returns:
        The graph. It shares its parameters with ``module``.

    Raises:
        CaptureError: If the network cannot be captured, or refuses such images.
    """
    captured = capture(module, name)
    costs = measure(captured, input_shape, name)
    drop_checks(captured)
    points, excluded = find_points(captured, module, costs)
    return NetworkGraph(name, captured, input_shape, points, costs, "fx", excluded)
