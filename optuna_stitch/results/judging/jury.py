"""Judge networks on the same test images: subnetworks, combinations of parents, other networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from optuna_stitch.errors import DataError
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.latency import measure_alike
from optuna_stitch.evaluation.metrics import AnyMetric, Cost, ImageMetric, LearnedMetric
from optuna_stitch.networks.zoo import Parent
from optuna_stitch.progress import console, track
from optuna_stitch.results.judging.baselines import Combination
from optuna_stitch.results.judging.evidence import Paired
from optuna_stitch.results.judging.front import STITCHED, Entry
from optuna_stitch.results.judging.statistics import wilson_interval
from optuna_stitch.results.judging.witness import Witness
from optuna_stitch.splits import Split
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork

# Networks that run as one plan.
_TOGETHER = 16
# Costs that are paid for the images that ask for them; others for all that is kept ready.
_BY_IMAGE = ("macs", "latency_ms")
_NAMES = {"a": "parent a", "b": "parent b", "ensemble": "ensemble"}
_KINDS = {"a": "parent", "b": "parent", "ensemble": "ensemble"}


class Jury:
    """Judge networks on the same test images.

    Figures are computed as the exported module computes, so that it has the very figures that are
    reported.

    Args:
        supernetwork: Whose subnetworks.
        split: The images.
        metrics: The figures that are wanted.
        quality: Which of them counts in claims.
        batch_size: Images per batch; if None, as the supernetwork says.
        show_progress_bar: Whether to show a progress bar.
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: Split,
        metrics: Sequence[AnyMetric],
        quality: str,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        self._supernetwork = supernetwork
        self._split = split
        self._learned: list[LearnedMetric] = [m for m in metrics if not isinstance(m, Cost)]
        self._costs = [metric for metric in metrics if isinstance(metric, Cost)]
        self._quality = quality
        self._batch_size = batch_size
        self._show_progress_bar = show_progress_bar
        self._guesses: dict[Genotype, Tensor] = {}  # that metrics refer to

    def judge(
        self, genotypes: Sequence[Genotype], combinations: Sequence[Combination] = ()
    ) -> list[Entry]:
        """Entries of networks.

        Args:
            genotypes: Subnetworks; where there are combinations, parent a and parent b first.
            combinations: Answers made of these two's.

        Returns:
            Parents and ensemble, combinations, stitched networks; stitched networks whose answers
            are no finite numbers are left out.

        Raises:
            DataError: If a parent's answers are no finite numbers.
        """
        classes = self._supernetwork.classes
        witnesses = [Witness(self._learned, classes) for _ in genotypes]
        combined = [Witness(self._learned, classes) for _ in combinations]
        asked: list[list[Tensor]] = [[] for _ in combinations]
        for start in range(0, len(genotypes), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            for targets, labels, answers in self._batches(genotypes[part]):
                for witness, logits in zip(witnesses[part], answers, strict=True):
                    witness.update(logits, labels, targets)
                if start == 0 and combinations:  # of the parents, which come first
                    a, b = answers[:2]
                    for place, combination in enumerate(combinations):
                        combined[place].update(combination.answer(a, b), labels, targets)
                        asked[place].append(combination.asks_second(a, b))
        found = [self._subnetwork(g, w) for g, w in zip(genotypes, witnesses, strict=True)]
        made = [
            self._combination(combination, witness, torch.cat(asks))
            for combination, witness, asks in zip(combinations, combined, asked, strict=True)
        ]
        finite = [entry for entry in found if entry is not None]
        stitched = [entry for entry in finite if entry.kind == STITCHED]
        return [*(entry for entry in finite if entry.kind != STITCHED), *made, *stitched]

    def other(self, parent: Parent, name: str) -> Entry:
        """The entry of a network that has nothing to do with the study.

        Args:
            parent: The network.
            name: What to call it.

        Raises:
            DataError: If it tells other classes apart than the parents.
        """
        graph = parent.graph()
        if graph.classes != self._supernetwork.classes:
            raise DataError(
                f"{parent.name} tells {graph.classes} classes apart, the parents "
                f"{self._supernetwork.classes}; a baseline must be trained on the same classes."
            )
        alone = Supernetwork(parent, parent, {"a": graph, "b": graph}, ())
        measure_alike(alone, self._supernetwork)
        jury = Jury(
            alone,
            self._split,
            [*self._learned, *self._costs],
            self._quality,
            batch_size=self._batch_size,
            show_progress_bar=self._show_progress_bar,
        )
        jury._guesses = self._guesses
        entry = jury.judge([Genotype("a")])[0]
        entry.name, entry.kind, entry.genotype = name, "other", None
        return entry

    def _batches(
        self, genotypes: Sequence[Genotype]
    ) -> Iterator[tuple[Tensor, dict[str, Tensor], list[Tensor]]]:
        """Labels of the split, labels by metric, and answers."""
        evaluator = Evaluator(
            self._supernetwork, self._split, (), batch_size=self._batch_size, kernels="plain"
        )
        references = {
            metric.reference
            for metric in self._learned
            if isinstance(metric, ImageMetric) and metric.reference is not None
        }
        for reference in references - self._guesses.keys():
            guesses = [logits.argmax(dim=1) for _, (logits,) in evaluator.answers([reference])]
            self._guesses[reference] = torch.cat(guesses)
        start = 0
        for targets, answers in track(
            evaluator.answers(genotypes),
            f"Test {len(genotypes)} networks",
            total=-(-len(self._split) // evaluator.batch_size),
            show_progress_bar=self._show_progress_bar,
        ):
            labels = {metric.name: targets for metric in self._learned}
            for metric in self._learned:
                if isinstance(metric, ImageMetric) and metric.reference is not None:
                    known = self._guesses[metric.reference]
                    labels[metric.name] = known[start : start + len(targets)]
            start += len(targets)
            yield targets, labels, answers

    def _subnetwork(self, genotype: Genotype, witness: Witness) -> Entry | None:
        costs = self._costs_of(genotype)
        name, kind = _NAMES[genotype.output], _KINDS[genotype.output]
        if genotype.on:
            name, kind = "", STITCHED
        if not witness.finite:
            said = f"answers that are no finite numbers on the {self._split.name} split"
            if not genotype.on:
                raise DataError(f"{_NAMES[genotype.output].capitalize()} gives {said}.")
            console.print(f"A network of {costs['macs'] / 1e6:.3g} M MACs is left out: {said}.")
            return None
        return self._entry(name, kind, witness, costs, genotype)

    def _combination(self, combination: Combination, witness: Witness, asked: Tensor) -> Entry:
        """Costs that are paid by image are averaged over them; both networks are kept ready."""
        both = Genotype("ensemble")
        costs = self._costs_of(both)
        entry = self._entry(combination.name, combination.kind, witness, costs, both)
        entry.genotype, entry.recipe = None, combination.recipe
        if combination.kind == "cascade":
            alone = self._costs_of(min((Genotype("a"), Genotype("b")), key=self._macs))
            share = float(asked.double().mean())
            bounds = wilson_interval(int(asked.sum()), len(asked))
            for name in _BY_IMAGE:
                if name in costs:
                    more = costs[name] - alone[name]
                    entry.test[name] = alone[name] + share * more
                    low, high = (alone[name] + bound * more for bound in bounds)
                    entry.intervals[name] = (low, high)
        return entry

    def _entry(
        self,
        name: str,
        kind: str,
        witness: Witness,
        costs: dict[str, float],
        genotype: Genotype,
    ) -> Entry:
        evidence = witness.evidence()
        entry = Entry(
            name=name,
            kind=kind,
            test={**{figure: said.figure for figure, said in evidence.items()}, **costs},
            metric=self._quality,
            parameters=self._supernetwork.parameters(genotype),
            genotype=genotype,
            guesses=witness.guesses,
            # accuracy and mean IoU, which quality is one of, can be paired
            evidence=cast("Paired", evidence[self._quality]),
        )
        for figure, said in evidence.items():
            interval = said.interval()
            if interval is not None:
                entry.intervals[figure] = interval
        return entry

    def _macs(self, genotype: Genotype) -> int:
        return self._supernetwork.macs(genotype)

    def _costs_of(self, genotype: Genotype) -> dict[str, float]:
        return {
            cost.name: float(cost.compute(self._supernetwork, genotype)) for cost in self._costs
        }
