"""Run the subnetworks of a plan over a split, and end each as soon as its figures are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optuna_stitch.data.splits import Batch, Split
from optuna_stitch.evaluation.accumulator import Accumulator, Hits, Labels, PerImageResult
from optuna_stitch.evaluation.activation_cache import ActivationCache
from optuna_stitch.evaluation.cascades import CascadeAccumulator, Curve
from optuna_stitch.evaluation.engine import (
    KEPT,
    Engine,
    Plan,
    PlanMemoryError,
    no_collection,
)
from optuna_stitch.evaluation.metrics import LearnedMetric
from optuna_stitch.evaluation.racing import Race, Rival
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.stitching.program import Program, shared_program
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.device import are_finite, fetch
from optuna_stitch.utils.errors import ConfigError, DataError
from optuna_stitch.utils.text import listed_text

Rivals = Mapping[float | None, Rival]


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
        curve: Of a cascade, what every threshold gives; figures and outcomes are empty then.
    """

    figures: dict[str, float]
    outcomes: dict[str, Tensor]
    images: int
    stopped: bool = False
    failed: str = ""
    curve: Curve | None = None

    def at(self, threshold: float | None) -> Measured:
        """The same of a cascade with a threshold.

        Args:
            threshold: None for what is no cascade.
        """
        if self.curve is None or threshold is None:
            return self
        results = self.curve.results(threshold)
        return replace(self, figures=figures_of(results), outcomes=outcomes_of(results))


class Runner:
    """Judge subnetworks on the images of a split.

    Args:
        engine: What runs them.
        split: The images.
        metrics: What is wanted.
        race: If given, subnetworks that cannot join its front are stopped early.
        cascades: How cascades decide and answer.
        side: Whose answers are judged, of parents with two jobs.
    """

    def __init__(
        self,
        engine: Engine,
        split: Split,
        metrics: Sequence[LearnedMetric],
        race: Race | None = None,
        cascades: CascadeSettings | None = None,
        side: Side = "a",
    ) -> None:
        self._side = side
        self._engine = engine
        self._split = split
        self._metrics = metrics
        self._race = race
        self._cascades = cascades or CascadeSettings()
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
        rivals: Sequence[Rivals],
        advance: Callable[[], None],
    ) -> Iterator[tuple[Subnetwork, Measured]]:
        """Run one plan.

        Args:
            plan: The subnetworks.
            rivals: Whom each has to beat, in a race: none, or one for each threshold with which
                a cascade may win, its own first; static networks have the threshold None.
            advance: Called after every batch.

        Yields:
            Every subnetwork with its figures, as soon as they are known.

        Raises:
            PlanMemoryError: If memory does not suffice; a plan of several may be halved.
        """
        self._labels.prepare()  # before other programs take memory
        subnetworks, program = plan.subnetworks, plan.program
        ends = program.outputs
        with no_collection():
            reuse = self.activation_cache.reuse(program)
        self._engine.prepare(program, reuse)
        running = dict(enumerate(map(self._accumulator, subnetworks)))
        seen = number = 0
        for block in self._race.parts() if self._race else [self._order]:
            for batch in self._batches(block):
                positions = self._order[seen : seen + len(batch)]
                labels = self._labels.batch(batch.targets, positions)
                seen += len(batch)
                given = reuse.given(number)
                number += 1
                answers = self._engine.run(program, batch.images, given, whole=len(running) > 1)
                reuse.add(answers[len(running) :])
                del answers[len(running) :]
                for accumulator, logits, finite in zip(
                    running.values(), answers, are_finite(answers), strict=True
                ):
                    if isinstance(accumulator, CascadeAccumulator):
                        accumulator.update(logits, labels, batch.targets, finite=finite)
                    else:
                        accumulator.update(logits, labels, finite=finite)
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
                for place, accumulator in list(running.items()):
                    figure = self._lost(self._race, accumulator, rivals[place])
                    if figure is not None:
                        figures = {self._race.metric: figure}
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
    def answers(
        self, subnetworks: Sequence[Subnetwork], images: int | None = None
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Labels and logits, batch by batch, in the split's order.

        Args:
            subnetworks: Whose logits.
            images: On how many of the first images; on all, if None.
        """
        programs = self._programs(subnetworks)
        count = len(self._split) if images is None else images
        for batch in self._batches(range(count)):
            logits: list[Tensor] = []
            while not logits:
                try:
                    logits = [
                        answer.float()
                        for _, program in programs
                        for answer in self._engine.run(program, batch.images)
                    ]
                except PlanMemoryError:
                    if all(len(some) == 1 for some, _ in programs):
                        raise
                if not logits:
                    halves = [half for some, _ in programs for half in _halves(some)]
                    programs = [entry for half in halves for entry in self._programs(half)]
            targets, *answers = fetch([batch.targets, *logits])
            yield targets, answers

    def _programs(
        self, subnetworks: Sequence[Subnetwork]
    ) -> list[tuple[Sequence[Subnetwork], Program]]:
        """One program for all, or several where memory does not suffice to prepare it."""
        operations = self._engine.supergraph.operations
        program = shared_program(operations, [s.resolved for s in subnetworks])
        try:
            return [(subnetworks, self._engine.prepare(program))]
        except PlanMemoryError:
            if len(subnetworks) == 1:
                raise
        return [entry for half in _halves(subnetworks) for entry in self._programs(half)]

    def _batches(self, positions: Sequence[int]) -> Iterator[Batch]:
        supergraph = self._engine.supergraph
        views, size = supergraph.views, self._engine.batch_size
        where = supergraph.device
        masks_as = supergraph.view_of[self._side] if supergraph.two_jobs else None
        for batch in self._split.batches(
            views, size, within=positions, device=where, masks_as=masks_as
        ):
            check_labels(self._split, supergraph, self._side)
            yield batch

    def _accumulator(self, subnetwork: Subnetwork) -> Accumulator | CascadeAccumulator:
        classes = self._engine.supergraph.classes_of(self._side)
        first = subnetwork.first_head
        if first is None:
            return Accumulator(self._metrics, classes)
        return CascadeAccumulator(self._metrics, classes, first, self._cascades)

    def _lost(
        self, race: Race, accumulator: Accumulator | CascadeAccumulator, rivals: Rivals
    ) -> float | None:
        """The estimate of a subnetwork that has lost; None of one that has not.

        A cascade has lost where it has with every threshold.
        """
        if not rivals:
            return None
        curve = accumulator.curve() if isinstance(accumulator, CascadeAccumulator) else None
        estimates: list[float] = []
        for threshold, rival in rivals.items():
            if isinstance(accumulator, Accumulator):
                results: Mapping[str, PerImageResult] = accumulator.results()
            else:
                assert curve is not None
                assert threshold is not None
                results = curve.results(threshold)
            said = results[race.metric]
            if not isinstance(said, Hits):
                raise ConfigError(
                    f"The metric {race.metric!r} does not say right or wrong of every image, so "
                    "that it cannot be raced. Leave `racing` out."
                )
            if not race.lost(said.right, rival):
                return None
            estimates.append(race.estimate(said.right, rival))
        return estimates[0]

    def _whole(self, accumulator: Accumulator | CascadeAccumulator) -> Measured:
        # back from the race's order
        back = torch.tensor(self._race.order).argsort() if self._race else None
        if isinstance(accumulator, CascadeAccumulator):
            curve = accumulator.curve()
            curve = curve if back is None else curve.take(back)
            return Measured({}, {}, len(self._split), curve=curve)
        results = accumulator.results()
        outcomes = outcomes_of(results)
        if back is not None:
            outcomes = {name: right[back] for name, right in outcomes.items()}
        return Measured(figures_of(results), outcomes, len(self._split))

    def _failed(self, images: int, node: str) -> Measured:
        figures = {metric.name: float("nan") for metric in self._metrics}
        return Measured(figures, {}, images, failed=node)


def figures_of(results: Mapping[str, PerImageResult]) -> dict[str, float]:
    """Figures over all images, by metric.

    Args:
        results: What images say, by metric.
    """
    return {name: said.figure for name, said in results.items()}


def outcomes_of(results: Mapping[str, PerImageResult]) -> dict[str, Tensor]:
    """Right or wrong by image, of the metrics that say so.

    Args:
        results: What images say, by metric.
    """
    return {name: said.right for name, said in results.items() if isinstance(said, Hits)}


def _halves(subnetworks: Sequence[Subnetwork]) -> list[Sequence[Subnetwork]]:
    half = max(1, len(subnetworks) // 2)
    return [some for some in (subnetworks[:half], subnetworks[half:]) if some]


def check_labels(split: Split, supergraph: Supergraph, side: Side = "a") -> None:
    """Refuse labels that the parents have no class for, among the images that were read.

    Args:
        split: The images.
        supergraph: With the parents.
        side: Of parents with two jobs, who shall answer with these labels.

    Raises:
        DataError: If there is one.
    """
    smallest, largest = split.labels_seen
    classes = supergraph.classes_of(side)
    if smallest < 0 or largest >= classes:
        wrong = smallest if smallest < 0 else largest
        names = [graph.name for graph in supergraph.graphs.values()]
        who = f"{listed_text(names)} tell"
        if supergraph.two_jobs:
            who = f"parent {side}, {supergraph.graphs[side].name}, tells"
        raise DataError(
            f"The {split.name} split ({split.source}) has label {wrong}, but {who} only {classes} "
            "classes apart."
        )
