"""One setting of the switches as a network: what it computes, costs, and how it leaves us."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from optuna_stitch.stitching.genotype import SIDES, Genotype, Output
from optuna_stitch.stitching.program import Program, Resolved, program_of
from optuna_stitch.stitching.supergraph import Supergraph


@dataclass(frozen=True)
class Subnetwork:
    """One network out of a supernetwork, as `Supernetwork.subnetwork` makes it.

    It is immutable, and hashable: genotypes that differ only in switches that cannot reach the
    output make equal subnetworks. It is a network of the supernetwork as it was when this was
    made; after `Supernetwork.fit`, make it anew.

    Args:
        supergraph: The supernetwork's computation.
        genotype: In canonical form: every switch is off that cannot reach the output.
        resolved: What the genotype computes.

    Example:
        >>> subnetwork = supernetwork.subnetwork({"output": "a"})
        >>> subnetwork.macs == supernetwork.graphs["a"].macs
        True
        >>> subnetwork.extract()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    supergraph: Supergraph = field(repr=False)
    genotype: Genotype
    resolved: Resolved = field(repr=False, compare=False)

    @staticmethod
    def of(supergraph: Supergraph, genotype: Genotype) -> Subnetwork:
        """The subnetwork of a genotype.

        Args:
            supergraph: The supernetwork's computation.
            genotype: In any form.
        """
        resolved = supergraph.resolve(genotype)
        return Subnetwork(supergraph, Genotype(genotype.output, resolved.used), resolved)

    @property
    def output(self) -> Output:
        """Who answers: parent ``a``, parent ``b`` or their ``ensemble``."""
        return self.genotype.output

    @property
    def on(self) -> frozenset[int]:
        """Indices of the switches that are on."""
        return self.genotype.on

    @property
    def stitches(self) -> list[str]:
        """Names of the switches that are on, in the supernetwork's order."""
        return [self.supergraph.switches[index].name for index in sorted(self.on)]

    @property
    def params(self) -> dict[str, str]:
        """The same as Optuna's parameters: every switch by name, and the output."""
        return self.genotype.params(self.supergraph.switches)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates per image, counted over what the output needs."""
        operations = self.supergraph.operations
        return sum(operations[place].macs for place, _ in self.resolved.steps)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of all that the output needs, shared ones counted once."""
        return sum(weight.numel() for weight in self._weights())

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the same, as they are stored."""
        return sum(weight.numel() * weight.element_size() for weight in self._weights())

    @cached_property
    def activation_bytes(self) -> int:
        """Bytes per image of the values that are alive at once, at most, in 32 bits a number.

        Every value is freed after its last use; views count as values of their own.
        """
        return 4 * self.program().elements

    def program(self) -> Program:
        """A new program that computes it; BatchNorms have their parents' statistics."""
        return program_of(self.supergraph.operations, self.resolved)

    def extract(self) -> nn.Module:
        """Take it out as a plain module that needs none of us to run.

        Returns:
            A module with only what the output needs, which shares its weights with the
            supernetwork. It takes one tensor of images per view that it needs (one, where both
            parents see images alike) and returns logits ``(N, classes)``, or
            ``(N, classes, H, W)``.
        """
        program = self.program()
        with torch.no_grad():
            self.supergraph.recalibrate(program)
        statistics = {program.places[step]: own for step, own in program.statistics.items()}
        recalibrated = nn.ModuleDict()
        parts: dict[str, nn.Module] = {s: self.supergraph.graphs[s].module for s in SIDES}
        parts |= {"stitches": self.supergraph.stitches, "recalibrated": recalibrated}
        root = nn.ModuleDict(parts)
        graph = fx.Graph()
        made: dict[int, fx.Node] = {}
        for place, inputs in self.resolved.steps:
            operation = self.supergraph.operations[place]
            values = [made[read] for read in inputs]
            if operation.owner == "input":
                several = len(self.supergraph.views) > 1
                name = f"images_{operation.number}" if several else "images"
                made[place] = graph.placeholder(name)
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
        graph.output(made[self.resolved.output])
        return fx.GraphModule(root, graph, class_name="Subnetwork").eval()

    def draw(self, *, title: str | None = None) -> Any:
        """Draw both parents, and the path that this subnetwork takes through them.

        Args:
            title: Above the drawing; the parents' names, if None.

        Returns:
            An SVG drawing, which notebooks show, and which ``.write(path)`` writes.
        """
        # pictures are made in a room above this one: the public name leads there
        import optuna_stitch

        return optuna_stitch.draw_subnetwork(self, title=title)

    def export(self, to: str | Path, **options: Any) -> Path:
        """Write it into a folder, in formats that need none of us to run.

        Args:
            to: The folder.
            **options: As for `export_subnetwork`: ``formats``, ``split``, ``force``.

        Returns:
            The folder.

        Raises:
            ExportError: As `export_subnetwork` says.
        """
        # as for `draw`
        import optuna_stitch

        return optuna_stitch.export_subnetwork(self, to, **options)

    def _weights(self) -> Iterable[nn.Parameter]:
        used: dict[int, nn.Parameter] = {}
        for place, _ in self.resolved.steps:
            weights = self.supergraph.operations[place].weights
            used.update((id(weight), weight) for weight in weights)
        return used.values()


def _copy(graph: fx.Graph, node: fx.Node, side: str, values: list[fx.Node]) -> fx.Node:
    value_of = dict(zip(node.all_input_nodes, values, strict=True))
    target: Any = node.target
    if node.op in ("call_module", "get_attr"):
        target = f"{side}.{target}"
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: value_of[n])
    return graph.create_node(node.op, target, args, kwargs)
