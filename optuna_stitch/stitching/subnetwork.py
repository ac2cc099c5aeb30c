"""One setting of the switches as a network: what it computes, costs, and how it leaves us."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from optuna_stitch.stitching.cascade import Exit
from optuna_stitch.stitching.genotype import BOTH, Genotype, Output, Side, heads_of
from optuna_stitch.stitching.program import Operation, Program, Resolved, Step, program_of
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.errors import StudyError


@dataclass(frozen=True)
class Finished:
    """How a network was trained to its end; see `finish`.

    Args:
        settings: As they were given, by name.
        steps: How many steps were done.
        planned: How many there could have been.
        best_step: After how many it was as it is now; 0 where nothing was better than before.
        images: Number of train images.
        loss_before: On validation images, before.
        loss: The same, after.
        labels: Weight of labels in it; the parents have the rest.
        seconds: How long it took.
        halved: How often the learning rate was halved, since the loss was not finite.
        refitted: How many layers got other weights in closed form before; see `Polish`.
        refitted_on: On how many images.
        refitted_loss: On validation images, then; where it was no lower, weights went back.
    """

    settings: Mapping[str, Any]
    steps: int
    planned: int
    best_step: int
    images: int
    loss_before: float
    loss: float
    labels: float
    seconds: float
    halved: int = 0
    refitted: int = 0
    refitted_on: int = 0
    refitted_loss: float | None = None

    @property
    def text(self) -> str:
        """What was done, in a few sentences."""
        said = [self._polished] if self.refitted else []
        if self.planned:
            said.append(self._trained)
        return " ".join(said) or "Nothing of it was trained."

    @property
    def is_polished(self) -> bool:
        """Whether layers that were refitted in closed form were taken."""
        return self.refitted_loss is not None and self.refitted_loss < self.loss_before

    @property
    def _polished(self) -> str:
        layers = f"{self.refitted} layers that follow its stitches were refitted in closed form"
        if self.refitted == 1:
            layers = "The layer that follows its stitches was refitted in closed form"
        if not self.is_polished:
            return f"{layers} and put back: validation images gained nothing."
        return (
            f"{layers} on {self.refitted_on:,} train images (validation loss "
            f"{self.loss_before:.3f} before, {self.refitted_loss:.3f} then)."
        )

    @property
    def _trained(self) -> str:
        batch = self.settings["batch_size"]
        what = "Its stitches and what follows them were"
        if self.settings["trains"] == "all":
            what = "All of its layers were"
        labels = "" if not self.labels else f", and as labels say (weight {self.labels:g})"
        return (
            f"{what} trained for {self.steps:,} steps of {batch} of {self.images:,} train images "
            f"to answer as the parents do{labels}. Its weights are averages; taken are those of "
            f"step {self.best_step:,}, the best on validation images (loss "
            f"{self.loss_before:.3f} before, {self.loss:.3f} now)."
        )


@dataclass(frozen=True)
class Subnetwork:
    """One network out of a supernetwork, as `Supernetwork.subnetwork` makes it.

    It is immutable, and hashable: genotypes that differ only in switches that cannot reach the
    output make equal subnetworks. It is a network of the supernetwork as it was when this was
    made; after `Supernetwork.fit`, make it anew.

    A **cascade** has two stages: what its first head needs, and what its second head needs
    besides. `macs` is the average over images, `worst_macs` what an unsure image costs.

    Args:
        supergraph: The supernetwork's computation.
        genotype: In canonical form: every switch is off that cannot reach the output.
        resolved: What the genotype computes; of a cascade, both heads.
        exit: Of a cascade, when its first answer is enough, as `Evaluator.tune_exits` finds it;
            without it a cascade has costs, and no answers.
        finished: How it was trained to its end, where it was; see `finish`.

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
    exit: Exit | None = field(default=None, compare=False)
    finished: Finished | None = field(default=None, compare=False)

    @staticmethod
    def of(supergraph: Supergraph, genotype: Genotype) -> Subnetwork:
        """The subnetwork of a genotype.

        Args:
            supergraph: The supernetwork's computation.
            genotype: In any form. A cascade that lets no image go on is its first head.

        Raises:
            StudyError: If it is a cascade without a threshold from 0 to 1, or the parents have two
                jobs, and it answers one of them only in part.
        """
        if genotype.output not in (*supergraph.sides, *supergraph.outputs):
            jobs = "two jobs" if supergraph.two_jobs else "one job"
            raise StudyError(
                f"The output {genotype.output!r} is none of parents with {jobs}; there "
                f"{'are' if len(supergraph.outputs) > 1 else 'is'} "
                f"{', '.join(supergraph.outputs)}."
            )
        if genotype.threshold is not None and not 0 <= genotype.threshold <= 1:
            raise StudyError(f"A threshold is from 0 to 1, not {genotype.threshold:g}.")
        if genotype.first is not None and not genotype.threshold:
            if genotype.threshold is None:
                raise StudyError(f"The cascade {genotype.output!r} needs a threshold.")
            genotype = Genotype(genotype.first, genotype.on)
        resolved = supergraph.resolve(Genotype(genotype.output, genotype.on))
        # steps of a twentieth are no round numbers in binary
        threshold = None if genotype.threshold is None else round(genotype.threshold, 6)
        canonical = Genotype(genotype.output, resolved.used, threshold)
        return Subnetwork(supergraph, canonical, resolved)

    @property
    def output(self) -> Output:
        """Who answers: ``a``, ``b``, their ``ensemble``, or one and, where it is unsure, both.

        Of more than two parents also the ensemble of a pair; see `outputs_of`. Of parents with two
        jobs ``both``: each its own question.
        """
        return self.genotype.output

    @property
    def sides(self) -> tuple[Side, ...]:
        """The parents whose heads have a say, in their order; of a cascade two."""
        return heads_of(self.output, self.supergraph.sides)

    @property
    def first_head(self) -> int | None:
        """Of a cascade, the number among `sides` of the head that it asks first, 0 or 1."""
        first = self.genotype.first
        return None if first is None else self.sides.index(first)

    def part(self, side: Side) -> Subnetwork:
        """What one of two answers needs, of parents with two jobs.

        Args:
            side: Whose answer.
        """
        return Subnetwork.of(self.supergraph, Genotype(side, self.on))

    @property
    def is_cascade(self) -> bool:
        """Whether some images cost more than others."""
        return self.genotype.first is not None

    @property
    def heads(self) -> Genotype:
        """What its answers depend on; of a cascade, which answers by itself, all but threshold."""
        return replace(self.genotype, threshold=None)

    @property
    def threshold(self) -> float | None:
        """Of a cascade, the share of images that go on, as the search sees them."""
        return self.genotype.threshold

    @cached_property
    def first(self) -> Subnetwork:
        """What answers every image: a cascade's first head; other subnetworks themselves."""
        side = self.genotype.first
        return self if side is None else Subnetwork.of(self.supergraph, Genotype(side, self.on))

    def with_threshold(self, threshold: float) -> Subnetwork:
        """The same cascade with another threshold; without an exit.

        Args:
            threshold: From 0 to 1.
        """
        return Subnetwork.of(self.supergraph, replace(self.genotype, threshold=threshold))

    def with_exit(self, found: Exit) -> Subnetwork:
        """The same cascade with an exit, so that it has answers.

        Args:
            found: When its first answer is enough.
        """
        one, other = self.sides
        return replace(self, exit=replace(found, sides=(one, other)))

    @property
    def on(self) -> frozenset[int]:
        """Indices of the switches that are on."""
        return self.genotype.on

    @property
    def stitches(self) -> list[str]:
        """Names of the switches that are on, in the supernetwork's order."""
        return [self.supergraph.switches[index].name for index in sorted(self.on)]

    @property
    def params(self) -> dict[str, Any]:
        """The same as Optuna's parameters: every switch by name, the output, the threshold."""
        return self.genotype.params(self.supergraph.switches)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates per image, counted over what the output needs.

        Of a cascade, the average over the images that its threshold is a share of.
        """
        return round(self.average(self.first.worst_macs, self.worst_macs))

    @cached_property
    def worst_macs(self) -> int:
        """Multiply-accumulates of the image that costs most."""
        return sum(operation.macs for operation in self.operations)

    @property
    def operations(self) -> list[Operation]:
        """What is computed where all images go on, in order."""
        return [self.supergraph.operations[place] for place, _ in self.resolved.steps]

    def average(self, first: float, worst: float, share: float | None = None) -> float:
        """What images cost on average, where unsure ones cost more.

        Args:
            first: What a sure image costs.
            worst: What an unsure one costs.
            share: Of the images that go on; if None, the threshold.
        """
        if not self.is_cascade:
            return worst
        return first + (self.threshold or 0.0 if share is None else share) * (worst - first)

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
            supernetwork. It takes one tensor of images per view that it needs (one, where all
            parents see images alike) and returns logits ``(N, classes)``, or
            ``(N, classes, H, W)``. That of a cascade is a `CascadeModule`; that of parents with
            two jobs returns both answers as a dictionary, ``{"a": ..., "b": ...}``.

        Raises:
            StudyError: If it is a cascade without an exit.
        """
        program = self.program()
        with torch.no_grad():
            self.supergraph.recalibrate(program)
        statistics = {program.places[step]: own for step, own in program.statistics.items()}
        if self.output == BOTH:
            *steps, (_, heads) = self.resolved.steps
            return self._assembled(
                statistics, steps, {}, dict(zip(self.sides, heads, strict=True))
            )
        if not self.is_cascade:
            return self._assembled(statistics, self.resolved.steps, {}, [self.resolved.output])
        if self.exit is None:
            raise StudyError(
                "This cascade has no exit yet: `objective.subnetwork(params)`, or "
                "`Evaluator.tune_exits` on validation images, finds when its first answer is "
                "enough."
            )
        stages = self.stages
        handed = {place: f"feature_{number}" for number, place in enumerate(stages.handed)}
        return CascadeModule(
            self._assembled(statistics, stages.first, {}, [stages.heads[0], *stages.handed]),
            self._assembled(statistics, stages.rest, handed, [stages.heads[1]]),
            self.exit,
        )

    def heads_module(self) -> fx.GraphModule:
        """All heads that have a say as one module, which shares the supernetwork's weights.

        It takes images as `extract` does, and returns logits by side: of one head, or of several.
        BatchNorms have their parents' statistics.
        """
        if len(self.sides) == 1:
            heads = {self.output: self.resolved.output}
            return self._assembled({}, self.resolved.steps, {}, heads)
        *steps, (_, several) = self.resolved.steps
        return self._assembled({}, steps, {}, dict(zip(self.sides, several, strict=True)))

    @cached_property
    def stages(self) -> Stages:
        """What a cascade computes for every image, and what for unsure ones only."""
        supergraph, first_head = self.supergraph, self.first_head
        assert first_head is not None, "only cascades have stages"
        order = (self.sides[first_head], self.sides[1 - first_head])
        heads = supergraph.head(order[0]), supergraph.head(order[1])
        needed_first = self.first.resolved.steps
        # of whatever view: all images are given at the start
        images = [step for step in self.resolved.steps if self._is_input(step)]
        first = [*images, *(step for step in needed_first if not self._is_input(step))]
        known = {place for place, _ in first} & supergraph.by_image
        needed, rest = {heads[1]}, []
        for step in reversed(self.resolved.steps):
            if step[0] in needed - known:
                rest.append(step)
                needed.update(step[1])
        return Stages(heads, first, rest[::-1], sorted(needed & known))

    def _is_input(self, step: Step) -> bool:
        return self.supergraph.operations[step[0]].owner == "input"

    def _assembled(
        self,
        statistics: Mapping[int, tuple[Tensor, Tensor]],
        steps: Sequence[Step],
        given: Mapping[int, str],
        outputs: Sequence[int] | Mapping[Side, int],
    ) -> fx.GraphModule:
        """Operations as a module.

        Args:
            statistics: Of BatchNorms that have others than in their parent, by place.
            steps: What is computed, in order.
            given: What are inputs beside images, by place: their names.
            outputs: What is returned; one value where there is one, several by name.
        """
        recalibrated = nn.ModuleDict()
        parts: dict[str, nn.Module] = {s: g.module for s, g in self.supergraph.graphs.items()}
        parts |= {"stitches": self.supergraph.stitches, "recalibrated": recalibrated}
        root = nn.ModuleDict(parts)
        graph = fx.Graph()
        made = {place: graph.placeholder(name) for place, name in given.items()}
        for place, inputs in steps:
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
        if isinstance(outputs, Mapping):
            graph.output({side: made[output] for side, output in outputs.items()})
        else:
            values = [made[output] for output in outputs]
            graph.output(values[0] if len(values) == 1 else tuple(values))
        return fx.GraphModule(root, graph, class_name="Subnetwork").eval()

    def draw(self, *, title: str | None = None) -> Any:
        """Draw all parents, and the path that this subnetwork takes through them.

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


@dataclass(frozen=True)
class Stages:
    """The two stages of a cascade.

    Args:
        heads: The operations of the first and of the second answer.
        first: What every image needs, in order; all images come first, also those that only the
            rest reads.
        rest: What unsure images need besides. Where the first stage's values are no rows by
            image, such as constants and sizes, they are computed again.
        handed: The operations of the first stage whose values the rest reads, images among them;
            of these the rows of unsure images are handed over.
    """

    heads: tuple[int, int]
    first: Sequence[Step]
    rest: Sequence[Step]
    handed: Sequence[int]


class CascadeModule(nn.Module):
    """A cascade as a module: the images that its first head is unsure of go on together.

    Args:
        first: Takes images, returns the first head's logits, and what is handed over.
        rest: Takes the rows of what is handed over, returns the second head's logits.
        exit: When the first answer is enough.

    Attributes:
        went_on: How many images of the last batch went on.
    """

    def __init__(self, first: nn.Module, rest: nn.Module, exit: Exit) -> None:
        super().__init__()
        self.first = first
        self.rest = rest
        self.exit = exit
        self.went_on = 0

    def forward(self, *images: Tensor) -> Tensor:
        """Logits ``(N, classes, ...)``.

        Args:
            *images: One tensor ``(N, C, H, W)`` per view.
        """
        logits: Tensor
        logits, *handed = self.first(*images)
        unsure = self.exit.goes_on(logits).nonzero()[:, 0]
        self.went_on = len(unsure)
        if not self.went_on:
            return logits
        heads = (logits[unsure], self.rest(*[value[unsure] for value in handed]))
        answers = logits.clone()
        answers[unsure] = self.exit.mean(*(heads if self.exit.first == 0 else heads[::-1]))
        return answers


def _copy(graph: fx.Graph, node: fx.Node, side: str, values: list[fx.Node]) -> fx.Node:
    value_of = dict(zip(node.all_input_nodes, values, strict=True))
    target: Any = node.target
    if node.op in ("call_module", "get_attr"):
        target = f"{side}.{target}"
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: value_of[n])
    return graph.create_node(node.op, target, args, kwargs)
