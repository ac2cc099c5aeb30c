"""Trace a subnetwork down to torch's operators, each knowing which parent it comes from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from optuna_stitch.data.view import View
from optuna_stitch.models.capture import TRACED_BATCH
from optuna_stitch.models.graph import move
from optuna_stitch.stitching.genotype import BOTH, SIDES
from optuna_stitch.stitching.program import Operation
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import node_operation
from optuna_stitch.utils.errors import ExportError, first_line
from optuna_stitch.utils.onnx import quiet

# Where `Subnetwork.extract` puts BatchNorms with other statistics than in their parent.
_RECALIBRATED = "recalibrated."


@dataclass(frozen=True)
class Home:
    """Which part of a supernetwork an operator belongs to.

    Args:
        owner: A parent's letter, ``stitch`` or ``ensemble``.
        block: Path of the parent's module that it is a step of; empty where it is in none.
        number: Index of the switch, where it is a stitch's.
    """

    owner: str
    block: str = ""
    number: int = 0


@dataclass(frozen=True)
class Stage:
    """What is computed of the same images, as a program of torch's operators.

    Args:
        program: It, with a free batch size.
        inputs: Names of what it takes.
        homes: Where operators belong, by the path of the module around them.
        answers: What it returns by name, where it answers two questions.
    """

    program: torch.export.ExportedProgram
    inputs: Sequence[str]
    homes: Mapping[str, Home]
    answers: Sequence[str] = ()

    def home(self, node: fx.Node) -> Home | None:
        """Where an operator of the program belongs; None for what only handles sizes.

        Args:
            node: The operator.
        """
        around = (node.meta.get("nn_module_stack") or {}).values()
        return next((self.homes[path] for path, _ in around if path in self.homes), None)


@dataclass(frozen=True)
class Traced:
    """A subnetwork as programs of torch's operators.

    Args:
        subnetwork: The subnetwork.
        title: What it is, in one line.
        module: The same as a module, as `Subnetwork.extract` returns it.
        stages: The same traced: one stage, or the two of a cascade, of which the first returns
            its logits and what the second takes.
        views: How each input sees images, by the input's name.
        calibration: Train images by input, ``(N, C, H, W)`` each, for formats that ask how large
            values become.
        models: What formats have in common and is made once, by its name.
    """

    subnetwork: Subnetwork
    title: str
    module: nn.Module
    stages: Sequence[Stage]
    views: Mapping[str, View]
    calibration: Sequence[Tensor] = ()
    models: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


def trace(subnetwork: Subnetwork, *, title: str = "A stitched network") -> Traced:
    """Extract a subnetwork and trace it with ``torch.export``.

    Args:
        subnetwork: The subnetwork.
        title: What it is, in one line; the head of the source code.

    Returns:
        Its programs, and where everything in them comes from. A program finishes what one value
        needs before it turns to the next, so that one parent's operators lie together.

    Raises:
        ExportError: If torch cannot trace it.
        StudyError: If it is a cascade without an exit.
    """
    operations = subnetwork.supergraph.operations
    extracted: Any = _on_processor(subnetwork)
    views = {
        name: subnetwork.supergraph.views[operations[place].number]
        for place, name in _names_of_images(subnetwork).items()
    }
    images = zeros(views)
    if not subnetwork.is_cascade:
        places = [place for place, _ in subnetwork.resolved.steps]
        if subnetwork.output == BOTH:
            places.pop()  # the two answers are two values
        return Traced(
            subnetwork, title, extracted, [_stage(extracted, places, subnetwork, images)], views
        )
    stages = subnetwork.stages
    with torch.no_grad():
        _, *handed = extracted.first(*images)
    first = [place for place, _ in stages.first]
    rest = [*stages.handed, *(place for place, _ in stages.rest)]
    traced = [
        _stage(extracted.first, first, subnetwork, images),
        _stage(extracted.rest, rest, subnetwork, tuple(handed)),
    ]
    return Traced(subnetwork, title, extracted, traced, views)


def _on_processor(subnetwork: Subnetwork) -> nn.Module:
    """A subnetwork's module, of whose weights there is a copy where they are elsewhere."""
    module = subnetwork.extract()
    if subnetwork.supergraph.device.type == "cpu":
        return module
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            move(part, torch.device("cpu"))
    return module


def zeros(views: Mapping[str, View], count: int = TRACED_BATCH) -> tuple[Tensor, ...]:
    """Images to trace with, ``(count, C, H, W)`` by input.

    Args:
        views: How each input sees images.
        count: How many.
    """
    return tuple(torch.zeros(count, *view.input_size) for view in views.values())


def export_program(
    module: nn.Module, inputs: tuple[Tensor, ...], *, free: bool = True
) -> torch.export.ExportedProgram:
    """Trace a module with ``torch.export``.

    Args:
        module: The module.
        inputs: What to trace it with, ``(N, ...)`` each.
        free: Whether N may be any number; else it is that of the inputs.

    Raises:
        ExportError: If torch cannot trace it.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes: Any = ({0: batch},) * len(inputs) if free else None
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # tracing runs the parents' own code
        raise ExportError(
            f"The network cannot be traced by torch.export ({first_line(error)}). Export another "
            "trial, or use `Subnetwork.extract` from Python."
        ) from error


def _names_of_images(subnetwork: Subnetwork) -> dict[int, str]:
    """What the inputs are called, by their operations."""
    operations = subnetwork.supergraph.operations
    steps = subnetwork.resolved.steps
    places = [place for place, _ in steps if operations[place].owner == "input"]
    if len(places) == 1:
        return {places[0]: "images"}
    return {place: f"images_{operations[place].number}" for place in places}


def _stage(
    extracted: fx.GraphModule,
    places: Sequence[int],
    subnetwork: Subnetwork,
    values: tuple[Tensor, ...],
) -> Stage:
    """Trace a stage.

    Args:
        extracted: The stage as a module.
        places: The operations that its nodes stand for, in order.
        subnetwork: Whose stage it is.
        values: What to trace it with.
    """
    nodes = [node for node in extracted.graph.nodes if not _is_extra(node)]
    place_of = dict(zip(nodes, places, strict=True))
    operation_of = {
        node: subnetwork.supergraph.operations[place] for node, place in place_of.items()
    }
    images = _names_of_images(subnetwork)
    inputs = {
        node: images.get(place, node.name)
        for node, place in place_of.items()
        if node.op == "placeholder"
    }
    rewired, homes = _rewire(extracted, operation_of, inputs)
    answers = SIDES if subnetwork.output == BOTH else ()
    return Stage(export_program(rewired, values), list(inputs.values()), homes, answers)


def _is_extra(node: fx.Node) -> bool:
    """Whether a node of an extracted graph stands for no operation of the supernetwork."""
    other = node.op == "get_attr" and str(node.target).startswith(_RECALIBRATED)
    return other or node.op == "output"


def _rewire(
    extracted: fx.GraphModule, operation_of: Mapping[fx.Node, Operation], names: dict[fx.Node, str]
) -> tuple[fx.GraphModule, dict[str, Home]]:
    """Put the operations into another order, and parts under the names of their parents' parts.

    Functions become modules too: torch.export remembers the path of a module.

    Args:
        extracted: The subnetwork.
        operation_of: What its nodes stand for.
        names: What to call the inputs.

    Returns:
        The module, and where its parts belong, by their path.
    """
    graph = fx.Graph()
    parts: dict[str, Any] = {}
    homes: dict[str, Home] = {}
    made: dict[fx.Node, fx.Node] = {}
    paths = _paths(extracted.graph, operation_of)
    for node in _ordered(extracted.graph):
        values = tuple(made[read] for read in node.all_input_nodes)
        if node.op == "placeholder":
            made[node] = graph.placeholder(names[node])
        elif node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], lambda read: made[read]))
        elif node.op == "get_attr":
            path = paths[node]
            parts[path] = attrgetter(str(node.target))(extracted)
            made[node] = graph.get_attr(path)
        else:
            path = paths.get(node, f"steps.{len(homes)}")
            run = node_operation(extracted, node)
            parts[path] = run if node.op == "call_module" else _Function(run)
            homes[path] = _home(operation_of[node])
            made[node] = graph.call_module(path, values)
    return fx.GraphModule(parts, graph, class_name="Subnetwork").eval(), homes


def _ordered(graph: fx.Graph) -> list[fx.Node]:
    """Inputs first, then what the output needs, each value right before it is first needed."""
    ordered = dict.fromkeys(node for node in graph.nodes if node.op == "placeholder")
    waiting = [graph.output_node()]
    while waiting:
        missing = [read for read in waiting[-1].all_input_nodes if read not in ordered]
        if missing:
            waiting.append(missing[0])
        else:
            ordered[waiting.pop()] = None
    return list(ordered)


def _paths(graph: fx.Graph, operation_of: Mapping[fx.Node, Operation]) -> dict[fx.Node, str]:
    """Paths of modules and tensors; what is recalibrated takes its parent's, where it is free."""
    named = [node for node in graph.nodes if node.op in ("call_module", "get_attr")]
    paths = {node: str(node.target) for node in named}
    for node in named:
        if not paths[node].startswith(_RECALIBRATED):
            continue
        # a function reads its statistics, a module has them
        operation = operation_of[node if node.op == "call_module" else next(iter(node.users))]
        statistic = "" if node.op == "call_module" else f".{paths[node].rpartition('.')[2]}"
        wanted = f"{operation.owner}.{_module_of(operation)}{statistic}"
        if not any(_overlap(path, wanted) for path in paths.values()):
            paths[node] = wanted
    return paths


def _overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one is inside the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _home(operation: Operation) -> Home:
    block = _module_of(operation)
    if operation.node is not None and operation.node.op == "call_module":
        block = block.rpartition(".")[0] or block
    return Home(operation.owner, block, operation.number)


def _module_of(operation: Operation) -> str:
    """Path of the module that a parent's node is, or is computed in."""
    module = operation.node.meta.get("module", "") if operation.node is not None else ""
    return str(module).partition("@")[0]  # torch.fx numbers the calls of one module: "act@1"


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: Any) -> Any:
        return self._run(*inputs)
