"""A captured network with its points: where features can be read or replaced."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import fx, nn

from optuna_stitch.models.capture import (
    Capture,
    ProgramModule,
    capture_error,
    capture_export,
    capture_fx,
    capture_program,
    drop_checks,
)
from optuna_stitch.models.cost import NodeCost, measure, unchanged
from optuna_stitch.models.layouts import Layout
from optuna_stitch.models.points import Point, find_points
from optuna_stitch.utils.errors import CaptureError
from optuna_stitch.utils.files import cache_folder, content_key, write_text
from optuna_stitch.utils.progress import console

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
    """Read costs, points and excluded values.

    Args:
        path: What `measured_path` says.

    Returns:
        None where there is no file, or a broken one.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        costs = {name: NodeCost(**_tuples(fields)) for name, fields in kept["costs"].items()}
        points = tuple(
            Point(**{**fields, "layout": Layout(**_tuples(fields["layout"]))})
            for fields in kept["points"]
        )
        return costs, points, kept["excluded"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_measured(path: Path, measured: Measured) -> None:
    """Write costs, points and excluded values.

    Args:
        path: What `measured_path` says.
        measured: The costs by node, the points, and the reasons of excluded values by name.
    """
    costs, points, excluded = measured
    kept = {
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "points": [asdict(point) for point in points],
        "excluded": excluded,
    }
    write_text(path, json.dumps(kept))


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}


@dataclass(frozen=True)
class NetworkGraph:
    """One network as a functional graph, with its points and costs.

    Args:
        name: What to call the network.
        module: The graph; its parameters are the network's own.
        input_shape: Shape (C, H, W) of one image.
        points: Every point, in topological order.
        costs: Shapes and multiply-accumulates by node name, in order of execution.
        captured_by: ``fx`` for a graph of modules, ``export`` for one of operators.
        excluded: Values that cannot be points, by name, with the reason.

    Example:
        >>> graph = a.graph()
        >>> graph.input_shape, graph.classes
        ((3, 32, 32), 10)
        >>> [point.name for point in graph.points if point.block]
        ['layer1.0', 'layer2.0', 'layer3.0', 'layer4.0']
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
        """Number of classes."""
        shape = self.costs[self.output.name].shape
        assert shape is not None
        return shape[1]

    def to(self, device: torch.device) -> None:
        """Move weights and constants to a device, and what the graph makes there, in place.

        Args:
            device: Where to.
        """
        move(self.module, device)


def move(module: fx.GraphModule, device: torch.device) -> None:
    """Move a graph's weights and constants to a device, and what it makes there, in place.

    Args:
        module: The graph.
        device: Where to.
    """
    module.to(device)
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor):  # a constant that tracing found
                setattr(part, name, value.to(device))
    # a graph of operators says where its constants are made
    for node in module.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs),
            lambda value: device if isinstance(value, torch.device) else value,
        )
    module.recompile()


def capture_graph(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    name: str,
    *,
    output: str | None = None,
) -> NetworkGraph:
    """Capture a network and find its points.

    Costs and points are kept in the cache folder by the graph's content.

    Args:
        module: The network, or an exported program's; put into eval mode.
        input_shape: Shape (C, H, W) of the images it is given.
        name: The network's name.
        output: Key of the output to keep, where the network returns a dictionary.

    Returns:
        The graph. It shares its parameters with ``module``.

    Raises:
        CaptureError: If the network cannot be captured, does not take such images, or has no such
            output.
    """
    if isinstance(module, ProgramModule):
        captured = capture_program(module, name, output)
        try:
            return _graph(name, module, captured, input_shape, "export")
        except CaptureError:
            raise
        except Exception as error:  # the program's own operators may raise anything
            raise capture_error(name, module, input_shape, error) from error
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
            raise capture_error(name, module, input_shape, fx_error, error) from error


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
        try:
            save_measured(path, measured)
        except OSError as error:  # it would only have saved time
            console.print(
                f"What was measured of {name} is not kept for the next time, since {path} cannot "
                f"be written ({error.strerror}); name another folder in $OPTUNA_STITCH_CACHE.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    _, points, excluded = measured
    shape = costs[str(captured.graph.output_node().args[0])].shape
    if shape is None:
        raise CaptureError(
            f"{name} does not return one tensor of logits. Wrap it in a module that does."
        )
    if len(shape) < 2 or (len(shape) == 2 and shape[1] == 1):
        raise CaptureError(
            f"{name} returns one number for an image, not logits of classes. If the sigmoid of "
            "that number z tells two classes apart, let it return `torch.stack([0 * z, z], 1)` "
            "with z of shape (N,), whose softmax says the same. Networks that estimate a number "
            "cannot be stitched."
        )
    return NetworkGraph(name, captured, input_shape, points, costs, captured_by, excluded)
