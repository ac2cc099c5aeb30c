"""A captured network with its points: where features can be read or replaced."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from optuna_stitch.errors import CaptureError
from optuna_stitch.networks.capture import (
    Capture,
    ProgramModule,
    capture_export,
    capture_fx,
    capture_program,
    drop_checks,
    refusal,
)
from optuna_stitch.networks.cost import NodeCost, measure, unchanged
from optuna_stitch.networks.measured import load_measured, measured_path, save_measured
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
    captured_by: Capture
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


def capture_graph(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    name: str,
    *,
    output: str | None = None,
) -> NetworkGraph:
    """Capture a network and find its points.

    What is measured of a graph is kept in the cache folder by the graph's content.

    Args:
        module: The network, or an exported program's; put into eval mode.
        input_shape: Shape (C, H, W) of the images it is given.
        name: What to call it.
        output: Key of the output to keep, where the network returns a dictionary.

    Returns:
        The graph. It shares its parameters with ``module``.

    Raises:
        CaptureError: If the network cannot be captured, refuses such images, or has no such
            output.
    """
    if isinstance(module, ProgramModule):
        captured = capture_program(module, name, output)
        try:
            return _graph(name, module, captured, input_shape, "export")
        except Exception as error:  # the program's own operators may raise anything
            raise refusal(name, error, error) from error
    try:
        captured = capture_fx(module, name, output)
        return _graph(name, module, captured, input_shape, "fx")
    except CaptureError:
        raise
    except Exception as fx_error:  # both ways run the network's own code, which may raise anything
        try:
            with unchanged(module):
                captured = capture_export(module, input_shape, name, output)
            return _graph(name, module, captured, input_shape, "export")
        except CaptureError:
            raise
        except Exception as error:
            raise refusal(name, fx_error, error) from error


def _graph(
    name: str,
    module: nn.Module,
    captured: fx.GraphModule,
    input_shape: tuple[int, int, int],
    captured_by: Capture,
) -> NetworkGraph:
    path = measured_path(captured, input_shape)
    measured = load_measured(path)
    costs = measured[0] if measured else measure(captured, input_shape)
    drop_checks(captured)
    if measured is None:
        measured = costs, *find_points(captured, module, costs)
        save_measured(path, measured)
    _, points, excluded = measured
    return NetworkGraph(name, captured, input_shape, points, costs, captured_by, excluded)
