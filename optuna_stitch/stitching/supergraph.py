"""Both parents and all stitches as one graph, and what a genotype needs of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from optuna_stitch.data.view import View
from optuna_stitch.models.capture import TRACED_BATCH
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.stitching.batch_norm import BatchNorm
from optuna_stitch.stitching.genotype import Genotype, Output, Side, Switch
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.utils.errors import MatchError


@dataclass(frozen=True)
class Operation:
    """One step of the computation.

    Args:
        name: ``a.<node>`` or ``b.<node>``, ``input.<view>``, ``stitch.<index>``, ``ensemble``.
        run: Computes the value from the values of ``inputs`` (an input's own, from the images).
        inputs: Operations it reads, in the order that ``run`` takes them.
        macs: Multiply-accumulates per image.
        elements: Numbers per image that the value consists of.
        node: The parent's node, where it is one.
        owner: ``a``, ``b``, ``input``, ``stitch`` or ``ensemble``.
        number: Index of the view or of the stitch, where it is one.
        weights: The parameters it uses.
        norm: What it normalizes by, where it is a BatchNorm.
    """

    name: str
    run: Callable[..., Any]
    inputs: tuple[int, ...]
    macs: int
    elements: int
    owner: str
    node: fx.Node | None = None
    number: int = 0
    weights: tuple[nn.Parameter, ...] = ()
    norm: BatchNorm | None = None


def node_operation(module: fx.GraphModule, node: fx.Node) -> Callable[..., Any]:
    """A function that computes a node from the values of its ``all_input_nodes``."""
    target: Any = node.target
    if node.op == "get_attr":
        constant = _attribute(module, target)
        return lambda: constant
    if node.op == "placeholder":
        return lambda images: images
    call: Callable[..., Any] = target
    if node.op == "call_module":
        call = module.get_submodule(target)
    elif node.op == "call_method":
        call = _method(target)
    order = {n: place for place, n in enumerate(node.all_input_nodes)}
    if not node.kwargs and tuple(order) == node.args:
        return call

    def run(*inputs: Any) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: inputs[order[n]])
        return call(*args, **kwargs)

    return run


def node_weights(module: fx.GraphModule, node: fx.Node) -> tuple[nn.Parameter, ...]:
    """The parameters that a node uses."""
    if node.op == "call_module":
        return tuple(module.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        value = _attribute(module, str(node.target))
        return (value,) if isinstance(value, nn.Parameter) else ()
    return ()


def _method(name: str) -> Callable[..., Any]:
    def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(owner, name)(*args, **kwargs)

    return call


def _attribute(module: fx.GraphModule, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def mean_of_probabilities(a: Tensor, b: Tensor) -> Tensor:
    """The ensemble of two networks: the mean of their class probabilities, as logits.

    Args:
        a: Logits ``(N, classes, ...)``.
        b: Logits of the same shape.

    Returns:
        ``log((softmax(a) + softmax(b)) / 2)``, whose softmax is that mean.
    """
    return torch.logaddexp(F.log_softmax(a, dim=1), F.log_softmax(b, dim=1)) - math.log(2)


# Genotypes of which it is kept what they compute.
_RESOLVED = 256

SIDES: tuple[Side, Side] = ("a", "b")


@dataclass(frozen=True)
class Resolved:
    """What one genotype computes.

    Args:
        steps: (operation, the operations whose values it reads), in order of computation.
        output: The operation whose value the subnetwork returns.
        used: The switches that are on and reach the output.
    """

    steps: list[tuple[int, tuple[int, ...]]]
    output: int
    used: frozenset[int]


class Supergraph:
    """One static order of computation that holds under every genotype.

    A stitch reads the raw feature of its source, before the source's own switch. The graph has
    every edge that any genotype can ask for, and is sorted once; that it can be sorted is the
    proof that no genotype makes a cycle.

    Args:
        graphs: The parents by side.
        views: How each parent sees images, by side; parents of equal view share their input.
        switches: In the supernetwork's order.
        stitches: One per switch.

    Raises:
        MatchError: If the matches cross, so that some genotype would make a cycle.
    """

    def __init__(
        self,
        graphs: dict[Side, NetworkGraph],
        views: dict[Side, View],
        switches: Sequence[Switch],
        stitches: Sequence[Stitch],
    ) -> None:
        self.views: tuple[View, ...] = tuple(dict.fromkeys(views[side] for side in SIDES))
        builder = _Builder(graphs, {side: self.views.index(views[side]) for side in SIDES})
        builder.add_stitches(switches, stitches)
        self.operations, place_of = builder.sort()
        self._switch_at: dict[int, tuple[int, int]] = {
            place_of[f"{switch.into}.{switch.target}"]: (index, place_of[f"stitch.{index}"])
            for index, switch in enumerate(switches)
        }
        outputs: dict[Output, int] = {
            side: place_of[f"{side}.{graphs[side].output.name}"] for side in SIDES
        }
        outputs["ensemble"] = len(self.operations)
        self.operations.append(
            Operation(
                "ensemble",
                mean_of_probabilities,
                (outputs["a"], outputs["b"]),
                0,
                self.operations[outputs["a"]].elements,
                "ensemble",
            )
        )
        self._outputs = outputs
        # one after the other asks for a genotype's costs, its canonical form and its program
        self.resolve = lru_cache(_RESOLVED)(self._resolve)
        self._place_of = place_of
        self._weights = [
            {id(weight): weight for weight in operation.weights} for operation in self.operations
        ]

    def _resolve(self, genotype: Genotype) -> Resolved:
        """Walk back from a genotype's output to all that it needs."""
        on = genotype.on
        instead = {
            place: stitch for place, (index, stitch) in self._switch_at.items() if index in on
        }
        output = self._outputs[genotype.output]
        needed = bytearray(output + 1)
        needed[output] = 1
        steps: list[tuple[int, tuple[int, ...]]] = []
        used: set[int] = set()
        for place in range(output, -1, -1):
            if not needed[place]:
                continue
            operation = self.operations[place]
            if operation.owner == "stitch":
                used.add(operation.number)
                inputs = operation.inputs  # the raw source
            else:
                inputs = tuple([instead.get(read, read) for read in operation.inputs])
            for read in inputs:
                needed[read] = 1
            steps.append((place, inputs))
        steps.reverse()
        return Resolved(steps, output, frozenset(used))

    def reach(self, output: Output, asks: Callable[[int], bool]) -> frozenset[int]:
        """Walk back from an output, and ask for every switch that it can feel.

        Args:
            output: What the subnetwork returns.
            asks: Told the index of a switch, says whether it is on; never asked twice for one.

        Returns:
            The switches that are on; all of them reach the output.
        """
        last = self._outputs[output]
        needed = bytearray(last + 1)
        needed[last] = 1
        said: dict[int, bool] = {}
        for place in range(last, -1, -1):
            if not needed[place]:
                continue
            operation = self.operations[place]
            for read in operation.inputs:
                if operation.owner != "stitch" and read in self._switch_at:
                    index, stitch = self._switch_at[read]
                    if index not in said:
                        said[index] = asks(index)
                    needed[stitch if said[index] else read] = 1
                else:
                    needed[read] = 1
        return frozenset(index for index, on in said.items() if on)

    @property
    def targets(self) -> Set[int]:
        """The operations whose values stitches may replace."""
        return self._switch_at.keys()

    @property
    def points(self) -> Set[int]:
        """The operations whose values stitches read or may replace."""
        stitches = (operation for operation in self.operations if operation.owner == "stitch")
        return {place for stitch in stitches for place in stitch.inputs} | self.targets

    def raw(self, side: Side, node: str) -> int:
        """The operation of a parent's node."""
        return self._place_of[f"{side}.{node}"]

    def macs(self, resolved: Resolved) -> int:
        """Multiply-accumulates per image of all that a genotype needs."""
        return sum(self.operations[place].macs for place, _ in resolved.steps)

    def parameters(self, resolved: Resolved) -> int:
        """Number of parameters of all that a genotype needs, shared ones counted once."""
        return sum(weight.numel() for weight in self._used(resolved))

    def weight_bytes(self, resolved: Resolved) -> int:
        """Bytes of the same."""
        return sum(weight.numel() * weight.element_size() for weight in self._used(resolved))

    def _used(self, resolved: Resolved) -> Iterable[nn.Parameter]:
        used: dict[int, nn.Parameter] = {}
        for place, _ in resolved.steps:
            used.update(self._weights[place])
        return used.values()


class _Builder:
    """Collect the operations of both parents and of the stitches by name, then sort them."""

    def __init__(self, graphs: dict[Side, NetworkGraph], view_of: dict[Side, int]) -> None:
        self._graphs = graphs
        self._operations: dict[str, tuple[Operation, list[str]]] = {}
        self._reads: dict[str, list[str]] = {}  # what must come before, under any genotype
        for side in SIDES:
            self._add_parent(side, graphs[side], view_of[side])

    def _add_parent(self, side: Side, graph: NetworkGraph, view: int) -> None:
        names: dict[fx.Node, str] = {}
        for node in graph.module.graph.nodes:
            if node.op == "output":
                continue
            name = names[node] = f"{side}.{node.name}"
            inputs = [names[n] for n in node.all_input_nodes]
            cost = graph.costs[node.name]
            elements = math.prod(cost.shape) // TRACED_BATCH if cost.shape else 0
            run = node_operation(graph.module, node)
            if node.op == "placeholder":
                # parents that see images alike share one input
                shared = f"input.{view}"
                operation = Operation(shared, run, (), 0, elements, "input", number=view)
                self._add(shared, operation, [])
                names[node] = shared
                continue
            weights = node_weights(graph.module, node)
            norm = BatchNorm.of(graph.module, node)
            operation = Operation(
                name, run, (), cost.macs, elements, side, node, weights=weights, norm=norm
            )
            self._add(name, operation, inputs)

    def add_stitches(self, switches: Sequence[Switch], stitches: Sequence[Stitch]) -> None:
        readers: dict[str, list[str]] = {}
        for name, (_, inputs) in self._operations.items():
            for read in inputs:
                readers.setdefault(read, []).append(name)
        for index, (switch, stitch) in enumerate(zip(switches, stitches, strict=True)):
            side: Side = "a" if switch.into == "b" else "b"
            name = f"stitch.{index}"
            weights = tuple(stitch.parameters())
            operation = Operation(
                name,
                stitch,
                (),
                stitch.macs,
                stitch.target.channels * (stitch.target.positions + stitch.target.prefix),
                "stitch",
                number=index,
                weights=weights,
            )
            self._add(name, operation, [f"{side}.{switch.source}"])
            for reader in readers.get(f"{switch.into}.{switch.target}", []):
                self._reads[reader].append(name)

    def _add(self, name: str, operation: Operation, inputs: list[str]) -> None:
        self._operations[name] = (operation, inputs)
        self._reads[name] = list(inputs)

    def sort(self) -> tuple[list[Operation], dict[str, int]]:
        waiting = {name: len(set(reads)) for name, reads in self._reads.items()}
        readers: dict[str, list[str]] = {}
        for name, reads in self._reads.items():
            for read in set(reads):
                readers.setdefault(read, []).append(name)
        ready = [name for name, count in waiting.items() if not count][::-1]
        order: list[str] = []
        while ready:
            name = ready.pop()
            order.append(name)
            for reader in readers.get(name, []):
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        if len(order) < len(self._operations):
            raise MatchError(
                "The matches cross: some setting of the switches would make a cycle. Keep the "
                "order of both networks."
            )
        place_of = {name: place for place, name in enumerate(order)}
        operations = []
        for name in order:
            operation, inputs = self._operations[name]
            fields = {**vars(operation), "inputs": tuple(place_of[read] for read in inputs)}
            operations.append(Operation(**fields))
        return operations, place_of
