"""Run the subnetworks of a plan over a split, and end each as soon as its figures are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_stitch.data.splits import Batch, Split
from optuna_stitch.evaluation.accumulator import Gatherer
from optuna_stitch.evaluation.activation_cache import ActivationCache
from optuna_stitch.evaluation.engine import KEPT, Engine, Plan, is_finite, no_collection
from optuna_stitch.evaluation.metrics import VOID, ImageMetric, LearnedMetric
from optuna_stitch.evaluation.racing import Race, Rival
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.program import shared_program
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class Measured:
    """What images say of one subnetwork.

    Args:
        figures: By metric.
        outcomes: Right or wrong by image, ``(N,)`` bool in the split's order, of the metrics that
            say so; nothing of a subnetwork that did not see all images.
        images: How many images it saw.
        stopped: Whether it lost a race.
        failed: The operation that made its first value that is no finite number, or nothing.
    """

    figures: dict[str, float]
    outcomes: dict[str, Tensor]
    images: int
    stopped: bool = False
    failed: str = ""


class Runner:
    """Judge subnetworks on the images of a split.

    Args:
        engine: What runs them.
        split: The images.
        metrics: What is wanted.
        race: If given, subnetworks that cannot join its front are stopped early.
    """

    def __init__(
        self,
        engine: Engine,
        split: Split,
        metrics: Sequence[LearnedMetric],
        race: Race | None = None,
    ) -> None:
        self._engine = engine
        self._split = split
        self._metrics = metrics
        self._race = race
        self._order: Sequence[int] = race.order if race else range(len(split))
        self._references: dict[Genotype, Tensor] = {}
        supergraph = engine.supergraph
        images = len(split) + len(supergraph.calibration or ())
        budget = engine.memory * 2**30 * KEPT
        self._activation_cache = ActivationCache(supergraph, budget, images)

    @torch.no_grad()
    def __call__(
        self,
        plan: Plan,
        rivals: Sequence[Rival | None],
        advance: Callable[[], None],
    ) -> Iterator[tuple[Subnetwork, Measured]]:
        """Run one plan.

        Args:
            plan: The subnetworks.
            rivals: Whom each has to beat, in a race.
            advance: Called after every batch.

        Yields:
            Every subnetwork with its figures, as soon as they are known.
        """
        for metric in self._metrics:
            if isinstance(metric, ImageMetric) and metric.reference is not None:
                self._refer_to(metric.reference)
        subnetworks, program = plan.subnetworks, plan.program
        ends = program.outputs
        with no_collection():
            reuse = self._activation_cache.reuse(program)
        self._engine.prepare(program, reuse)
        classes = self._engine.supergraph.classes
        running = {place: Gatherer(self._metrics, classes) for place in range(len(subnetworks))}
        seen = number = 0
        for block in self._race.parts() if self._race else [self._order]:
            for batch in self._batches(block):
                labels = self._labels(batch, block_start=seen)
                seen += len(batch)
                failed: list[int] = []
                given = reuse.given(number)
                number += 1
                answers = self._engine.run(program, batch.images, given)
                reuse.add(answers[len(running) :])
                for (place, gatherer), logits in zip(
                    running.items(), answers[: len(running)], strict=True
                ):
                    if is_finite(logits):
                        gatherer.update(logits.float(), labels)
                    else:
                        failed.append(place)
                for place in failed:
                    node = self._engine.first_bad(program, batch.images, given, ends[place])
                    yield subnetworks[place], self._failed(seen, node)
                    del running[place]
                if not running:
                    return
                if failed:
                    program.outputs = [*[ends[place] for place in running], *reuse.steps]
                advance()
            if self._race and seen < len(self._split):
                for place in list(running):
                    rival, gatherer = rivals[place], running[place]
                    outcomes = self._raced(gatherer, self._race.metric)
                    if rival is not None and self._race.lost(outcomes, rival):
                        figures = {self._race.metric: self._race.estimate(outcomes, rival)}
                        yield subnetworks[place], Measured(figures, {}, seen, stopped=True)
                        del running[place]
                if not running:
                    return
                reuse.only(program.needed_by([ends[place] for place in running]))
                program.outputs = [*[ends[place] for place in running], *reuse.steps]
        reuse.finish()
        for place, gatherer in running.items():
            yield subnetworks[place], self._whole(gatherer)

    @torch.no_grad()
    def answers(self, subnetworks: Sequence[Subnetwork]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Labels and logits, batch by batch, in the split's order.

        Args:
            subnetworks: Whose logits.
        """
        operations = self._engine.supergraph.operations
        program = self._engine.prepare(
            shared_program(operations, [subnetwork.resolved for subnetwork in subnetworks])
        )
        for batch in self._batches(range(len(self._split))):
            logits = self._engine.run(program, batch.images)
            yield batch.targets, [answer.float() for answer in logits]

    def _batches(self, positions: Sequence[int]) -> Iterator[Batch]:
        supergraph = self._engine.supergraph
        views, size = supergraph.views, self._engine.batch_size
        for batch in self._split.batches(views, size, within=positions):
            check_labels(batch.targets, supergraph, self._split)
            yield batch

    def _labels(self, batch: Batch, block_start: int) -> Mapping[str, Tensor]:
        """By metric, what subnetworks should answer on a batch."""
        labels: dict[str, Tensor] = {}
        positions = self._order[block_start : block_start + len(batch)]
        for metric in self._metrics:
            labels[metric.name] = batch.targets
            if isinstance(metric, ImageMetric) and metric.reference is not None:
                labels[metric.name] = self._references[metric.reference][list(positions)]
        return labels

    def _refer_to(self, reference: Genotype) -> None:
        """Find out once what a subnetwork answers that others are compared with."""
        if reference not in self._references:
            subnetwork = Subnetwork.of(self._engine.supergraph, reference)
            guesses = [logits[0].argmax(dim=1) for _, logits in self.answers([subnetwork])]
            self._references[reference] = torch.cat(guesses)

    def _raced(self, gatherer: Gatherer, metric: str) -> Tensor:
        outcomes = gatherer.by_image(metric)
        if outcomes.dtype != torch.bool:
            raise ConfigError(
                f"The metric {metric!r} does not say right or wrong of every image, so that it "
                "cannot be raced. Leave `racing` out."
            )
        return outcomes

    def _whole(self, gatherer: Gatherer) -> Measured:
        outcomes: dict[str, Tensor] = {}
        for metric in self._metrics:
            if isinstance(metric, ImageMetric):
                said = gatherer.by_image(metric.name)
                if said.dtype == torch.bool:
                    outcomes[metric.name] = said
                    if self._race:  # back from the race's order
                        outcomes[metric.name] = torch.empty_like(said)
                        outcomes[metric.name][self._race.order] = said
        return Measured(gatherer.figures(), outcomes, len(self._split))

    def _failed(self, images: int, node: str) -> Measured:
        figures = {metric.name: float("nan") for metric in self._metrics}
        return Measured(figures, {}, images, failed=node)


def check_labels(targets: Tensor, supergraph: Supergraph, split: Split) -> None:
    """Refuse labels that the parents have no class for.

    Args:
        targets: Labels ``(N,)`` or ``(N, H, W)``.
        supergraph: With the parents.
        split: Whose labels they are.

    Raises:
        DataError: If there is one.
    """
    if supergraph.segments:
        targets = targets[targets != VOID]
    if not targets.numel():
        return
    smallest, largest = int(targets.min()), int(targets.max())
    if smallest < 0 or largest >= supergraph.classes:
        wrong = smallest if smallest < 0 else largest
        raise DataError(
            f"The {split.name} split has label {wrong}, but {supergraph.graphs['a'].name} and "
            f"{supergraph.graphs['b'].name} tell only {supergraph.classes} classes apart."
        )
