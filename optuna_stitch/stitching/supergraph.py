"""All parents and all stitches as one graph, and what a genotype needs of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property, lru_cache, reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from optuna_stitch.data.view import View
from optuna_stitch.models.capture import TRACED_BATCH
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.stitching.batch_norm import BatchNorm
from optuna_stitch.stitching.genotype import (
    BOTH,
    ENSEMBLE,
    Genotype,
    Output,
    Side,
    Switch,
    first_of,
    heads_of,
    outputs_of,
)
from optuna_stitch.stitching.layer import Stitch, Stitches
from optuna_stitch.stitching.program import (
    Operation,
    Program,
    Resolved,
    Step,
    program_of,
    shared_program,
)
from optuna_stitch.stitching.recalibration import (
    Calibration,
    Statistics,
    recalibrate,
    statistics_of,
)
from optuna_stitch.utils.device import float32_products
from optuna_stitch.utils.errors import MatchError, first_line
from optuna_stitch.utils.progress import console

# Genotypes of which it is kept what they compute.
_RESOLVED = 256
_LARGEST_BATCH = 100
_FEATURE_BYTES = 1 << 28


class Supergraph:
    """One static order of computation that holds under every genotype.

    A stitch reads the raw feature of its source, before the source's own switch. The graph has
    every edge that any genotype can ask for, and is sorted once; that it can be sorted is the
    proof that no genotype makes a cycle. Where several stitches lead into one point, the first
    one that is on, in the switches' order, replaces it; others have no effect then.

    Args:
        graphs: The parents by side.
        views: How each parent sees images, by side; parents of equal view share their input.
        switches: In the supernetwork's order.
        stitches: One per switch.
        calibration: Images that BatchNorm statistics are estimated on downstream of stitches; None
            where BatchNorms keep their parents' own.
        two_jobs: Whether the parents answer different questions, so that networks answer both.

    Attributes:
        device: Where the weights are, and everything is computed.
        sides: The parents by their letters, in order.
        graphs: As given.
        two_jobs: As given.
        view_of: As given for ``views``.
        views: The distinct ways in which the parents see images; batches hold one tensor for each.
        switches: As given.
        stitches: As a module list.
        operations: Every operation, in an order that serves all genotypes.

    Raises:
        MatchError: If the matches cross, so that some genotype would make a cycle.
    """

    def __init__(
        self,
        graphs: dict[Side, NetworkGraph],
        views: Mapping[Side, View],
        switches: Sequence[Switch],
        stitches: Iterable[Stitch],
        calibration: Calibration | None = None,
        *,
        two_jobs: bool = False,
    ) -> None:
        self.graphs = graphs
        self.sides: tuple[Side, ...] = tuple(graphs)
        self.two_jobs = two_jobs
        self.view_of = dict(views)
        self.views: tuple[View, ...] = tuple(dict.fromkeys(views[side] for side in graphs))
        self.switches = tuple(switches)
        self.stitches = Stitches(stitches)
        self._calibration = calibration
        self.device = next((p.device for p in self._weights()), torch.device("cpu"))
        self._parents_statistics: list[dict[int, Statistics]] = []
        builder = _Builder(graphs, {side: self.views.index(views[side]) for side in graphs})
        builder.add_stitches(self.switches, list(self.stitches))
        self.operations, place_of = builder.sort()
        # by the point that they lead into: the index and the operation of every stitch
        self._stitches_into: dict[int, list[tuple[int, int]]] = {}
        for index, switch in enumerate(self.switches):
            target = place_of[f"{switch.into}.{switch.target}"]
            ways = self._stitches_into.setdefault(target, [])
            ways.append((index, place_of[f"stitch.{index}"]))
        self._heads: dict[Side, int] = {
            side: place_of[f"{side}.{graph.output.name}"] for side, graph in graphs.items()
        }
        self._outputs: dict[Output, int] = {}
        self._add_outputs()
        # one after the other asks for a subnetwork's costs and for its program
        self.resolve = lru_cache(_RESOLVED)(self._resolve)
        self._place_of = place_of

    def _add_outputs(self) -> None:
        """Add the operations that take several heads together."""
        elements = {side: self.operations[head].elements for side, head in self._heads.items()}
        made: dict[str, int] = {}
        for output in (*self.sides, *self.outputs):
            sides = heads_of(output, self.sides)
            heads = tuple(self._heads[side] for side in sides)
            if len(heads) == 1:
                self._outputs[output] = heads[0]
                continue
            if output == BOTH:
                operation = Operation(
                    BOTH, two_answers, heads, 0, sum(elements[side] for side in sides), BOTH
                )
            elif first_of(output) is None:
                run, count = mean_of_probabilities, elements[sides[0]]
                operation = Operation(output, run, heads, 0, count, ENSEMBLE)
            else:
                # both answers of a cascade; `Exit` says which of them counts for which image
                name = "heads" if len(self.sides) == 2 else f"heads {'+'.join(sides)}"
                operation = Operation(name, both_heads, heads, 0, 2 * elements[sides[0]], "heads")
            if operation.name not in made:
                made[operation.name] = len(self.operations)
                self.operations.append(operation)
            self._outputs[output] = made[operation.name]

    def _weights(self) -> Iterator[nn.Parameter]:
        for module in (*(graph.module for graph in self.graphs.values()), self.stitches):
            yield from module.parameters()

    @property
    def calibration(self) -> Calibration | None:
        """Images for BatchNorm statistics downstream of stitches."""
        return self._calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        self._calibration = calibration
        self.forget_statistics()

    def forget_statistics(self) -> None:
        """Measure the parents' own BatchNorm inputs anew: their weights changed."""
        self._parents_statistics = []

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What networks that are searched may answer with."""
        return (BOTH,) if self.two_jobs else outputs_of(self.sides)

    @property
    def whole(self) -> Output:
        """The output for which all parents are computed whole, where no stitch is on."""
        return BOTH if self.two_jobs else ENSEMBLE

    @property
    def classes(self) -> int:
        """Number of classes; of parents with two jobs, see `classes_of`."""
        return self.classes_of("a")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one image's answer: ``(classes,)`` or ``(classes, H, W)``."""
        return self.shape_of("a")

    @property
    def segments(self) -> bool:
        """Whether the parents label every pixel; of parents with two jobs, see `segments_of`."""
        return self.segments_of("a")

    def shape_of(self, side: Side) -> tuple[int, ...]:
        """Shape of a parent's answer to one image: ``(classes,)`` or ``(classes, H, W)``.

        Args:
            side: Which parent.
        """
        shape = self.graphs[side].costs[self.graphs[side].output.name].shape
        assert shape is not None
        return shape[1:]

    def classes_of(self, side: Side) -> int:
        """How many classes a parent tells apart.

        Args:
            side: Which parent.
        """
        return self.graphs[side].classes

    def segments_of(self, side: Side) -> bool:
        """Whether a parent labels every pixel instead of the image.

        Args:
            side: Which parent.
        """
        return len(self.shape_of(side)) == 3

    @property
    def batch_size(self) -> int:
        """How many images at once keep the largest feature within a quarter of a GiB."""
        largest = max(
            math.prod(cost.shape) // TRACED_BATCH
            for graph in self.graphs.values()
            for cost in graph.costs.values()
            if cost.shape is not None
        )
        return max(1, min(_LARGEST_BATCH, _FEATURE_BYTES // (4 * largest)))

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """How images lie in memory: channels last, which is faster, where all parents take it."""
        shapes = [view.input_size for view in self.views]
        images = [
            torch.zeros(2, *shape, device=self.device).contiguous(
                memory_format=torch.channels_last
            )
            for shape in shapes
        ]
        try:
            with torch.no_grad():
                self.parents_program().run(images)
        except RuntimeError as error:
            # a network may rely on where numbers lie, with `Tensor.view`
            console.print(f"Channels stay first in memory: {first_line(error)}")
            return torch.contiguous_format
        return torch.channels_last

    def head(self, side: Side) -> int:
        """The operation of a parent's own answer.

        Args:
            side: Which parent.
        """
        return self._heads[side]

    @cached_property
    def by_image(self) -> Set[int]:
        """The operations whose values have a row per image.

        Others are constants, sizes, and values with images along another dimension. A batch of
        another size than the traced one tells: a dimension may be as long as that by chance.
        """
        count = TRACED_BATCH - 1
        images = [torch.zeros(count, *v.input_size, device=self.device) for v in self.views]
        program = self.parents_program()
        found = {p for p, operation in enumerate(self.operations) if operation.owner == "stitch"}
        with torch.no_grad():
            for step, value in program.values(images):
                if not isinstance(value, Tensor) or value.shape[:1] != (count,):
                    continue
                operation = program.operations[step]
                node = operation.node
                shape = self.graphs[operation.owner].costs[node.name].shape if node else None
                if shape is None or shape[0] == TRACED_BATCH:
                    found.add(program.places[step])
        return found

    def _resolve(self, genotype: Genotype) -> Resolved:
        """Walk back from a genotype's output to all that it needs."""
        instead = {
            place: next(stitch for index, stitch in ways if index in genotype.on)
            for place, ways in self._stitches_into.items()
            if any(index in genotype.on for index, _ in ways)
        }
        output = self._outputs[genotype.output]
        output = instead.get(output, output)  # only where a linear probe gives the answer
        needed = bytearray(output + 1)
        needed[output] = 1
        steps: list[Step] = []
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

        def says(index: int) -> bool:
            if index not in said:
                said[index] = asks(index)
            return said[index]

        for place in range(last, -1, -1):
            if not needed[place]:
                continue
            operation = self.operations[place]
            for read in operation.inputs:
                # a stitch reads the raw source
                ways = () if operation.owner == "stitch" else self._stitches_into.get(read, ())
                needed[next((stitch for index, stitch in ways if says(index)), read)] = 1
        return frozenset(index for index, on in said.items() if on)

    def program(self, genotypes: Sequence[Genotype]) -> Program:
        """Many subnetworks as one program, which computes what they share once.

        Args:
            genotypes: The subnetworks.

        Returns:
            A program with one output per genotype; equal subnetworks share one.
        """
        return shared_program(self.operations, [self.resolve(genotype) for genotype in genotypes])

    def parents_program(self, features: Sequence[tuple[Side, str]] | None = None) -> Program:
        """All parents as a program, without stitches.

        Args:
            features: Sides and nodes whose raw features are wanted; what all answer, if None.
        """
        places = [self._place_of[f"{side}.{node}"] for side, node in features or ()]
        resolved = self.resolve(Genotype(self.whole))
        return program_of(self.operations, resolved, None if features is None else places)

    def recalibrate(
        self, program: Program, given: Sequence[Mapping[int, Tensor]] | None = None
    ) -> list[list[Any]]:
        """Estimate BatchNorm statistics downstream of stitches, where there are images for it.

        Args:
            program: What to change, in place.
            given: For every calibration batch the values of the program's given steps.

        Returns:
            What the program returns on every calibration batch, where it keeps values; nothing
            where there is nothing to estimate.
        """
        if self._calibration is None or not (program.stitched_norms or given is not None):
            return []
        batches = self._calibration.batches(self.memory_format)
        with float32_products(self.device, exact=True):  # the same for every kind of kernels
            if not self._parents_statistics:
                parents = self.parents_program()
                self._parents_statistics = [statistics_of(parents, images) for images in batches]
            return recalibrate(program, batches, self._parents_statistics, given)

    @property
    def targets(self) -> Set[int]:
        """The operations whose values stitches may replace."""
        return self._stitches_into.keys()

    @property
    def points(self) -> Set[int]:
        """The operations whose values stitches read or may replace."""
        stitches = (operation for operation in self.operations if operation.owner == "stitch")
        return {place for stitch in stitches for place in stitch.inputs} | self.targets

    def content_hash(self) -> str:
        """A hash of all that figures depend on: weights, matches, views, calibration images."""
        digest = hashlib.sha256(b"two jobs" if self.two_jobs else b"")
        for graph in self.graphs.values():
            digest.update(repr((graph.name, self.views)).encode())
            _update(digest, graph.module)
        digest.update(repr([switch.name for switch in self.switches]).encode())
        _update(digest, self.stitches)
        if self._calibration is not None:
            for pixels in self._calibration.pixels:
                digest.update(pixels.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def _update(digest: Any, module: nn.Module) -> None:
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())


def mean_of_probabilities(*heads: Tensor) -> Tensor:
    """The ensemble of two or more networks: the mean of their class probabilities, as logits.

    Args:
        *heads: Logits ``(N, classes, ...)`` of each.

    Returns:
        Of two ``log((softmax(a) + softmax(b)) / 2)``, whose softmax is that mean.
    """
    together = reduce(torch.logaddexp, [F.log_softmax(logits, dim=1) for logits in heads])
    return together - math.log(len(heads))


def both_heads(a: Tensor, b: Tensor) -> Tensor:
    """Both answers of a cascade as one value.

    Args:
        a: Logits ``(N, classes, ...)``.
        b: Logits of the same shape.

    Returns:
        ``(N, 2, classes, ...)``.
    """
    return torch.stack((a, b), dim=1)


def two_answers(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The answers of parents with two jobs.

    Args:
        a: Logits ``(N, classes of a, ...)``.
        b: Logits ``(N, classes of b, ...)``.
    """
    return a, b


class _Builder:
    """Collect the operations of all parents and of the stitches by name, then sort them."""

    def __init__(self, graphs: dict[Side, NetworkGraph], view_of: dict[Side, int]) -> None:
        self._graphs = graphs
        self._operations: dict[str, tuple[Operation, list[str]]] = {}
        self._reads: dict[str, list[str]] = {}  # what must come before, under any genotype
        for side, graph in graphs.items():
            self._add_parent(side, graph, view_of[side])

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
            weights = _node_weights(graph.module, node)
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
            self._add(name, operation, [f"{switch.out_of}.{switch.source}"])
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
                "order of all networks."
            )
        place_of = {name: place for place, name in enumerate(order)}
        operations = []
        for name in order:
            operation, inputs = self._operations[name]
            fields = {**vars(operation), "inputs": tuple(place_of[read] for read in inputs)}
            operations.append(Operation(**fields))
        return operations, place_of


def node_operation(module: fx.GraphModule, node: fx.Node) -> Callable[..., Any]:
    """Turn a node of a graph module into a function.

    Args:
        module: The graph module.
        node: One of its nodes.

    Returns:
        Computes the node from the values of its ``all_input_nodes``.
    """
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


def _node_weights(module: fx.GraphModule, node: fx.Node) -> tuple[nn.Parameter, ...]:
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
