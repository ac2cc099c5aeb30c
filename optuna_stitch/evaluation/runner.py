"""Run the subnetworks of a plan over a split, and end each as soon as its figures are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_stitch.data.splits import Batch, Split
from optuna_stitch.evaluation.accumulator import Accumulator, Hits, Labels
from optuna_stitch.evaluation.activation_cache import ActivationCache
from optuna_stitch.evaluation.engine import KEPT, Engine, Plan, no_collection
from optuna_stitch.evaluation.metrics import VOID, LearnedMetric
from optuna_stitch.evaluation.racing import Race, Rival
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
        self._labels = Labels(metrics, engine.supergraph, self.answers)
        supergraph = engine.supergraph
        images = len(split) + len(supergraph.calibration or ())
        budget = engine.memory * 2**30 * KEPT
        self.activation_cache = ActivationCache(supergraph, budget, images)

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
        self._labels.prepare()  # before other programs take memory
        subnetworks, program = plan.subnetworks, plan.program
        ends = program.outputs
        with no_collection():
            reuse = self.activation_cache.reuse(program)
        self._engine.prepare(program, reuse)
        classes = self._engine.supergraph.classes
        running = {place: Accumulator(self._metrics, classes) for place in range(len(subnetworks))}
        seen = number = 0
        for block in self._race.parts() if self._race else [self._order]:
            for batch in self._batches(block):
                positions = self._order[seen : seen + len(batch)]
                labels = self._labels.batch(batch.targets, positions)
                seen += len(batch)
                given = reuse.given(number)
                number += 1
                answers = self._engine.run(program, batch.images, given)
                reuse.add(answers[len(running) :])
                for accumulator, logits in zip(
                    running.values(), answers[: len(running)], strict=True
                ):
                    accumulator.update(logits, labels)
                failed = [place for place in running if not running[place].finite]
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
                    rival = rivals[place]
                    outcomes = _raced(running[place], self._race.metric)
                    if rival is not None and self._race.lost(outcomes, rival):
                        figures = {self._race.metric: self._race.estimate(outcomes, rival)}
                        yield subnetworks[place], Measured(figures, {}, seen, stopped=True)
                        del running[place]
                if not running:
                    return
                reuse.only(program.needed_by([ends[place] for place in running]))
                program.outputs = [*[ends[place] for place in running], *reuse.steps]
        reuse.finish()
        for place, accumulator in running.items():
            yield subnetworks[place], self._whole(accumulator)

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

    def _whole(self, accumulator: Accumulator) -> Measured:
        results = accumulator.results()
        outcomes = {name: said.right for name, said in results.items() if isinstance(said, Hits)}
        if self._race:  # back from the race's order
            for name, right in outcomes.items():
                outcomes[name] = torch.empty_like(right)
                outcomes[name][self._race.order] = right
        figures = {name: said.figure for name, said in results.items()}
        return Measured(figures, outcomes, len(self._split))

    def _failed(self, images: int, node: str) -> Measured:
        figures = {metric.name: float("nan") for metric in self._metrics}
        return Measured(figures, {}, images, failed=node)


def _raced(accumulator: Accumulator, metric: str) -> Tensor:
    outcomes = accumulator.by_image(metric)
    if outcomes.dtype != torch.bool:
        raise ConfigError(
            f"The metric {metric!r} does not say right or wrong of every image, so that it "
            "cannot be raced. Leave `racing` out."
        )
    return outcomes


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
