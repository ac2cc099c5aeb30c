"""Evaluate a study's best trials and the baselines again, on the test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import optuna
import pandas as pd
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.latency import measure_alike
from optuna_stitch.evaluation.metrics import (
    AnyMetric,
    Cost,
    ImageMetric,
    LearnedMetric,
    resolve_metrics,
)
from optuna_stitch.models.parent import Parent
from optuna_stitch.report.baselines import Combination, tune_combinations
from optuna_stitch.report.evidence import PairedResult
from optuna_stitch.report.front import STITCHED, Entry, Front, PairedComparison
from optuna_stitch.report.significance import holm, wilson_interval
from optuna_stitch.report.witness import Witness
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.space import baselines
from optuna_stitch.stitching.genotype import Genotype, Side
from optuna_stitch.stitching.supergraph import SIDES
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import DataError, StudyError
from optuna_stitch.utils.progress import console, track

# Networks that run as one plan.
_TOGETHER = 16

# Costs that are paid for the images that ask for them; others for all that is kept ready.
_BY_IMAGE = ("macs", "latency_ms")

_NAMES = {"a": "parent a", "b": "parent b", "ensemble": "ensemble"}

_KINDS = {"a": "parent", "b": "parent", "ensemble": "ensemble"}


class FrontEvaluator:
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
        evaluator = FrontEvaluator(
            alone,
            self._split,
            [*self._learned, *self._costs],
            self._quality,
            batch_size=self._batch_size,
            show_progress_bar=self._show_progress_bar,
        )
        evaluator._guesses = self._guesses
        entry = evaluator.judge([Genotype("a")])[0]
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
        per_image = witness.per_image()
        entry = Entry(
            name=name,
            kind=kind,
            test={**{figure: said.figure for figure, said in per_image.items()}, **costs},
            metric=self._quality,
            parameters=self._supernetwork.parameters(genotype),
            genotype=genotype,
            guesses=witness.guesses,
            # accuracy and mean IoU, which quality is one of, can be paired
            per_image=cast("PairedResult", per_image[self._quality]),
        )
        for figure, said in per_image.items():
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


# So many images of one class only are no labelled test split.
_ENOUGH = 20


def evaluate_front(
    study: optuna.Study,
    objective: Objective,
    split: Split,
    *,
    others: Sequence[Parent] = (),
    only: Sequence[int] | None = None,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
) -> Front:
    """Evaluate the best trials of a study on the test split, beside what one would use otherwise.

    The baselines are the parents, their ensemble, a duo and cascades of them (both tuned on the
    images that the study was judged on), and other networks, if given.

    Args:
        study: Over the switches of the objective's supernetwork.
        objective: What the study optimized.
        split: The test split, seen neither by the fit nor by the search.
        others: Further networks to compare with.
        only: Numbers of the trials to evaluate, instead of the best ones.
        batch_size: Images per batch; if None, as the supernetwork says.
        show_progress_bar: Whether to show a progress bar.

    Raises:
        StudyError: If no trial is complete, or one of ``only`` is not.
        DataError: If the test split has no labels, or another network tells other classes apart.
    """
    supernetwork = objective.supernetwork
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    chosen = _chosen(study, supernetwork, complete, only)
    _check_labelled(split, supernetwork)
    metric = "mean_iou" if supernetwork.segments else "accuracy"
    metrics = _with_basics(objective.metrics, metric)
    evaluator = FrontEvaluator(
        supernetwork,
        split,
        metrics,
        metric,
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )

    first: Side = min(SIDES, key=lambda side: supernetwork.macs(Genotype(side)))
    combinations = tune_combinations(
        supernetwork, objective.evaluator.split, first, batch_size=batch_size
    )
    genotypes = [*baselines(), *(genotype for genotype in chosen if genotype.on)]
    entries = evaluator.judge(genotypes, combinations)
    for entry in entries:
        trial = chosen.get(entry.genotype) if entry.genotype else None
        if trial is not None:
            entry.trial = trial.number
            entry.values = dict(zip(objective.metric_names, trial.values, strict=True))
            if entry.kind == STITCHED:
                entry.name = f"trial {trial.number}"
    first_stitched = sum(entry.kind != STITCHED for entry in entries)
    entries[first_stitched:first_stitched] = [
        evaluator.other(parent, name)
        for parent, name in zip(others, _distinct(others), strict=True)
    ]
    costs = [m.name for m in objective.metrics if isinstance(m, Cost)]
    cost = costs[0] if costs else "macs"
    claim(entries, cost)
    mark_front(entries, objective.metrics)
    return Front(
        entries,
        objective.metric_names,
        pd.DataFrame([trial.values for trial in complete], columns=objective.metric_names),
        len(split),
        metric,
        tuple(switch.name for switch in supernetwork.switches),
        cost,
        None if supernetwork.segments else split.targets,
        split.indices,
    )


def claim(entries: Sequence[Entry], cost: str) -> None:
    """Compare every stitched network with every baseline, corrected for all comparisons.

    Of the cascades with the dearest one that costs no more, or else the cheapest.
    """
    rivals = [entry for entry in entries if entry.kind not in (STITCHED, "cascade")]
    cascades = sorted(
        (entry for entry in entries if entry.kind == "cascade"),
        key=lambda entry: entry.test[cost],
    )
    pairs: list[tuple[Entry, Entry]] = []
    for entry in entries:
        if entry.kind == STITCHED:
            near = [c for c in cascades if c.test[cost] <= entry.test[cost]]
            pairs += [(entry, rival) for rival in [*rivals, *(near[-1:] or cascades[:1])]]
    corrected = holm([_p_value(entry, rival) for entry, rival in pairs])
    for (entry, rival), p_value in zip(pairs, corrected, strict=True):
        entry.comparisons.append(
            PairedComparison(rival.name, entry.quality - rival.quality, p_value)
        )


def _p_value(entry: Entry, rival: Entry) -> float:
    assert entry.per_image is not None, entry
    assert rival.per_image is not None, rival
    return entry.per_image.p_value(rival.per_image)


def mark_front(entries: Sequence[Entry], metrics: Sequence[AnyMetric]) -> None:
    """Mark the entries that no other dominates, on the test split."""
    signs = {metric.name: -1 if metric.direction == "maximize" else 1 for metric in metrics}
    points = [[sign * entry.test[name] for name, sign in signs.items()] for entry in entries]
    for entry, point in zip(entries, points, strict=True):
        entry.on_front = not any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True))
            for other in points
        )


def _distinct(others: Sequence[Parent]) -> list[str]:
    """Names that tell networks apart; a second one of the same name is numbered."""
    named = [parent.name for parent in others]
    counts = [named[:place].count(name) + 1 for place, name in enumerate(named)]
    return [
        name if count == 1 else f"{name} #{count}"
        for name, count in zip(named, counts, strict=True)
    ]


def _chosen(
    study: optuna.Study,
    supernetwork: Supernetwork,
    complete: Sequence[FrozenTrial],
    only: Sequence[int] | None,
) -> dict[Genotype, FrozenTrial]:
    """The first trial of every network that is wanted, by rising cost."""
    if not complete:
        states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
        held = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "none at all"
        raise StudyError(
            f"The study {study.study_name!r} has no complete trial to report (it has {held}); run "
            "the search."
        )
    by_genotype: dict[Genotype, FrozenTrial] = {}
    if only is not None:
        numbered = {trial.number: trial for trial in complete}
        missing = [number for number in only if number not in numbered]
        if missing:
            raise StudyError(f"The study {study.study_name!r} has no complete trial {missing[0]}.")
        wanted = [numbered[number] for number in only]
        for trial in wanted:
            by_genotype[_genotype_of(trial, supernetwork)] = trial
    else:
        best = {trial.number for trial in study.best_trials}
        for trial in complete:
            by_genotype.setdefault(_genotype_of(trial, supernetwork), trial)
        by_genotype = {
            genotype: trial
            for genotype, trial in by_genotype.items()
            if not genotype.on or trial.number in best
        }
    return dict(sorted(by_genotype.items(), key=lambda item: supernetwork.macs(item[0])))


def _genotype_of(trial: FrozenTrial, supernetwork: Supernetwork) -> Genotype:
    return supernetwork.canonical(supernetwork.genotype(trial.params))


def _check_labelled(split: Split, supernetwork: Supernetwork) -> None:
    """Raise where a split's labels say nothing.

    timm gives images without a label -1, and those of a folder without class folders all the same.
    """
    if supernetwork.segments:
        return
    split.pick(range(1), supernetwork.views)  # decodes all, once; their labels come with that
    seen = set(split.targets.tolist())
    if min(seen) < 0 or (len(seen) == 1 < supernetwork.classes and len(split) >= _ENOUGH):
        raise DataError(
            f"The {split.name} split ({split.source}) has no labels: its {len(split)} images are "
            f"all or partly labelled {min(seen)}. Name images with a folder for each class, "
            "or a part of the data set whose labels are public."
        )


def _with_basics(metrics: Sequence[AnyMetric], quality: str) -> list[AnyMetric]:
    """The study's metrics, and quality and cost in any case."""
    known = {metric.name for metric in metrics}
    return [*metrics, *resolve_metrics([m for m in (quality, "macs") if m not in known])]
