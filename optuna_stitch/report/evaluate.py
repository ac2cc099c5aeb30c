"""Evaluate a study's best trials and the baselines again, on the test split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import moocore
import numpy as np
import optuna
import pandas as pd
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Accumulator, Confusions, Hits, Labels
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.latency import measure_alike, worst_latency_ms
from optuna_stitch.evaluation.metrics import (
    AnyMetric,
    Cost,
    LearnedMetric,
    StudyMetric,
    metrics_of_one_job,
    quality_metric,
)
from optuna_stitch.evaluation.significance import (
    holm,
    interval_of,
    paired_p_value,
    wilson_interval,
)
from optuna_stitch.evaluation.two_jobs import TwoJobEvaluator
from optuna_stitch.models.parent import Parent
from optuna_stitch.report.baselines import Duo, cheapest, tune_cascades, tune_duo
from optuna_stitch.report.entries import (
    FINISHED,
    STITCHED,
    Entry,
    PairedComparison,
    baseline_name,
)
from optuna_stitch.report.front import Front
from optuna_stitch.report.two_jobs import evaluate_two_jobs
from optuna_stitch.search.objective import Objective, violation
from optuna_stitch.search.space import baselines
from optuna_stitch.stitching.genotype import ENSEMBLE, OUTPUT, SIDES, Genotype, Side, first_of
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import ConfigError, DataError, StudyError
from optuna_stitch.utils.progress import console, track
from optuna_stitch.utils.text import number_text, percent_text

# Networks that run as one plan.
_TOGETHER = 16

# Costs that are paid for the images that ask for them, and what an image costs that goes on;
# others are paid for all that is kept ready.
_PER_IMAGE: dict[str, Callable[[Subnetwork], float]] = {
    "macs": lambda subnetwork: subnetwork.worst_macs,
    "latency_ms": worst_latency_ms,
}


def evaluate_front(
    study: optuna.Study,
    objective: Objective,
    split: Split | SplitPair,
    *,
    train: SplitPair | None = None,
    others: Sequence[Parent] = (),
    only: Sequence[int] | None = None,
    finished: Mapping[int | str, Subnetwork] | None = None,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
) -> Front:
    """Evaluate the best trials of a study on the test split, beside what one would use otherwise.

    The baselines are the parents, their ensemble, a duo and cascades of them (both tuned on the
    images that the study was judged on), and other networks, if given; of more than two parents
    also the ensemble of each pair. Of parents with two jobs
    they are both parents side by side, linear probes (one parent whole, the other's answers by
    ridge regression from one of its features), and one parent for both where it can be.

    Args:
        study: Over the switches of the objective's supernetwork.
        objective: What the study optimized.
        split: The test split, seen neither by the fit nor by the search.
        train: Of two jobs, the train split, on whose images the linear probes are fitted.
        others: Further networks to compare with.
        only: Numbers of the trials to evaluate, instead of the best ones.
        finished: What `finish` returned: of found networks by the number of their trial, which is
            evaluated as it was found as well; of what was finished to compare them with, by name.
        batch_size: Images per batch; if None, as the supernetwork says.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        The baselines and the networks of the trials, each with intervals and paired comparisons.

    Raises:
        StudyError: If no trial is complete, or one of ``only`` is not.
        DataError: If the test split has no labels, another network tells other classes apart, or a
            parent's answers are no finite numbers.
        ConfigError: If there is no train split for two jobs, or other networks shall be compared
            with, which is not there for two jobs.

    Example:
        >>> front = st.evaluate_front(study, objective, data.test)
        >>> {"parent", "ensemble", "duo"} <= {entry.kind for entry in front.baselines}
        True
    """
    supernetwork = objective.supernetwork
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    finished = finished or {}
    trials = [key for key in finished if isinstance(key, int)]
    chosen = _chosen(study, supernetwork, complete, only, trials)
    if isinstance(split, SplitPair):
        if train is None or others:
            raise ConfigError(
                "Other networks as baselines are not there for two jobs; leave them out."
                if others
                else "Of two jobs `evaluate_front` needs the `train` split too: linear probes, "
                "with which networks are compared, are fitted on its images."
            )
        for side in SIDES:
            _check_labelled(split.of(side), supernetwork, side)
        front = evaluate_two_jobs(
            objective,
            chosen,
            complete,
            split,
            train,
            finished=finished,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        mark_front(front.entries, objective.metrics)
        return front
    validator = objective.evaluator
    if isinstance(validator, TwoJobEvaluator):
        raise ConfigError(
            f"The parents have two jobs, but there is one {split.name} split: give that of "
            "`DataPair(a, b)`."
        )
    _check_labelled(split, supernetwork)
    metrics = _with_basics(validator.metrics[: len(objective.metrics)], supernetwork)
    evaluator = FrontEvaluator(
        supernetwork, split, metrics, batch_size=batch_size, show_progress_bar=show_progress_bar
    )

    validation, cascades = validator.split, validator.settings.cascades
    subnetworks = [
        *(supernetwork.subnetwork(genotype) for genotype in baselines(supernetwork.sides)),
        *tune_cascades(supernetwork, validation, cascades, batch_size=batch_size),
        *chosen,
    ]
    # by the same kernels as on the test split
    tuner = Evaluator(
        supernetwork,
        validation,
        (),
        batch_size=batch_size,
        kernels="plain",
        cascades=cascades,
    )
    duo = tune_duo(supernetwork, validation, batch_size=batch_size)
    entries = evaluator.evaluate(tuner.tune_exits(list(dict.fromkeys(subnetworks))), duo)
    for entry in entries:
        trial = chosen.get(entry.subnetwork) if entry.subnetwork else None
        if trial is not None:
            entry.trial = trial.number
            entry.values = dict(zip(objective.metric_names, trial.values, strict=True))
            if entry.kind == STITCHED:
                entry.name = f"trial {trial.number}"
    first_stitched = sum(entry.kind != STITCHED for entry in entries)
    entries[first_stitched:first_stitched] = [
        evaluator.evaluate_other(parent, name)
        for parent, name in zip(others, _distinct(others), strict=True)
    ]
    for key, network in finished.items():
        around = Supernetwork.around(network, *supernetwork.parents.values())
        if network.is_cascade:
            own = Evaluator(around, validation, (), kernels="plain", cascades=cascades)
            (network,) = own.tune_exits([network])
        entry = evaluator.evaluate_elsewhere(around, network)
        _add_finished(entries, entry, key)
    costs = [metric.name for metric in objective.metrics if isinstance(metric, Cost)]
    cost = costs[0] if costs else "macs"
    compare_in_pairs(entries, cost)
    mark_front(entries, objective.metrics)
    return Front(
        entries,
        objective.metric_names,
        pd.DataFrame([trial.values for trial in complete], columns=objective.metric_names),
        len(split),
        evaluator.quality,
        cost,
        None if supernetwork.segments else split.targets,
        split.indices,
        {metric.name: metric.unit for metric in metrics if metric.unit is not None},
    )


class FrontEvaluator:
    """Evaluates networks on the same test images.

    Figures are computed as the exported module computes, so that it has the very figures that are
    reported.

    Args:
        supernetwork: Whose subnetworks.
        split: The images.
        metrics: The figures that are wanted, accuracy or mean IoU among them.
        batch_size: Images per batch; if None, as the supernetwork says.
        show_progress_bar: Whether to show a progress bar.

    Attributes:
        quality: Which figure networks are compared by: ``accuracy``, or ``mean_iou`` where pixels
            are labelled.
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: Split,
        metrics: Sequence[AnyMetric],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        self.quality = quality_metric(segments=supernetwork.segments).name
        self._supernetwork = supernetwork
        self._split = split
        self._learned: list[LearnedMetric] = [m for m in metrics if not isinstance(m, Cost)]
        self._costs = [metric for metric in metrics if isinstance(metric, Cost)]
        costs = {metric.name for metric in self._costs}
        self._worst = {name: worst for name, worst in _PER_IMAGE.items() if name in costs}
        self._batch_size = batch_size
        self._show_progress_bar = show_progress_bar
        self._evaluator = Evaluator(
            supernetwork, split, (), batch_size=batch_size, kernels="plain"
        )
        self._labels = Labels(self._learned, supernetwork.supergraph, self._evaluator.answers)

    def evaluate(self, subnetworks: Sequence[Subnetwork], duo: Duo | None = None) -> list[Entry]:
        """Entries of networks.

        Args:
            subnetworks: Where there is a duo, all parents first, in order. Cascades have exits.
            duo: An answer made of theirs.

        Returns:
            Parents and ensemble, duo, plain cascades, stitched networks; stitched networks whose
            answers are no finite numbers are left out.

        Raises:
            DataError: If a parent's answers are no finite numbers.
        """
        accumulators = [self._accumulator() for _ in subnetworks]
        went_on: list[list[Tensor]] = [[] for _ in subnetworks]
        weighted = self._accumulator()
        for start in range(0, len(subnetworks), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            for labels, answers in self._batches(subnetworks[part]):
                for subnetwork, accumulator, unsure, logits in zip(
                    subnetworks[part], accumulators[part], went_on[part], answers, strict=True
                ):
                    if subnetwork.is_cascade:
                        assert subnetwork.exit is not None, subnetwork
                        unsure.append(subnetwork.exit.asks_second(logits))
                        logits = subnetwork.exit.answer(logits)
                    accumulator.update(logits, labels)
                if start == 0 and duo is not None:  # of the parents, which come first
                    weighted.update(duo.answer(answers[: len(duo.weights)]), labels)
        found = [
            self._subnetwork_entry(subnetwork, accumulator, unsure)
            for subnetwork, accumulator, unsure in zip(
                subnetworks, accumulators, went_on, strict=True
            )
        ]
        made = [self._duo_entry(duo, weighted)] if duo is not None else []
        finite = [entry for entry in found if entry is not None]
        first = [entry for entry in finite if entry.kind not in ("cascade", STITCHED)]
        cascades = [entry for entry in finite if entry.kind == "cascade"]
        return [
            *first,
            *made,
            *sorted(cascades, key=lambda entry: entry.test["macs"]),
            *(entry for entry in finite if entry.kind == STITCHED),
        ]

    def evaluate_other(self, parent: Parent, name: str) -> Entry:
        """The entry of a network that has nothing to do with the study.

        Args:
            parent: The network.
            name: What to call it.

        Raises:
            DataError: If it tells other classes apart than the parents, or its answers are no
                finite numbers.
        """
        graph = parent.graph()
        if graph.classes != self._supernetwork.classes:
            raise DataError(
                f"{parent.name} tells {graph.classes} classes apart, the parents "
                f"{self._supernetwork.classes}; a baseline must be trained on the same classes."
            )
        alone = Supernetwork(parent, parent, {"a": graph, "b": graph}, ())
        entry = self.evaluate_elsewhere(alone, alone.subnetwork(Genotype("a")))
        entry.name, entry.kind, entry.subnetwork = name, "other", None
        return entry

    def evaluate_elsewhere(self, supernetwork: Supernetwork, subnetwork: Subnetwork) -> Entry:
        """The entry of a network of another supernetwork.

        Args:
            supernetwork: The other one.
            subnetwork: The network; a cascade with its exit.

        Raises:
            DataError: If its answers are no finite numbers.
        """
        measure_alike(supernetwork.supergraph, self._supernetwork.supergraph)
        evaluator = FrontEvaluator(
            supernetwork,
            self._split,
            [*self._learned, *self._costs],
            batch_size=self._batch_size,
            show_progress_bar=self._show_progress_bar,
        )
        evaluator._labels = self._labels  # references are those of the study's supernetwork
        found = evaluator.evaluate([subnetwork])
        if not found:
            raise DataError("A finished network's answers are no finite numbers.")
        return found[0]

    def _accumulator(self) -> Accumulator:
        return Accumulator(self._learned, self._supernetwork.classes, per_image=True)

    def _batches(
        self, subnetworks: Sequence[Subnetwork]
    ) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        """Labels by metric, and the subnetworks' answers."""
        self._labels.prepare()
        start = 0
        for targets, answers in track(
            self._evaluator.answers(subnetworks),
            f"Test {len(subnetworks)} networks",
            total=-(-len(self._split) // self._evaluator.batch_size),
            show_progress_bar=self._show_progress_bar,
        ):
            positions = range(start, start + len(targets))
            yield self._labels.batch(targets, positions), answers
            start += len(targets)

    def _subnetwork_entry(
        self, subnetwork: Subnetwork, accumulator: Accumulator, went_on: Sequence[Tensor]
    ) -> Entry | None:
        if subnetwork.on:
            name, kind = "", STITCHED
        elif subnetwork.threshold is not None:
            name, kind = f"cascade {percent_text(subnetwork.threshold, 0)}", "cascade"
            if len(self._supernetwork.sides) > 2:
                name += f" {'+'.join(subnetwork.sides)}"
            if subnetwork.genotype.first != cheapest(self._supernetwork, subnetwork.sides):
                name += f" from {subnetwork.genotype.first}"
        else:
            name = baseline_name(subnetwork.output)
            kind = "parent" if len(subnetwork.sides) == 1 else "ensemble"
        if not accumulator.finite:
            said = f"answers that are no finite numbers on the {self._split.name} split"
            if not subnetwork.on:
                raise DataError(f"{name.capitalize()} gives {said}.")
            macs = number_text(subnetwork.macs / 1e6, 3)
            console.print(f"A network of {macs} M MACs is left out: {said}.")
            return None
        entry = self._entry(name, kind, accumulator, subnetwork)
        if went_on:
            assert subnetwork.exit is not None
            entry.recipe = subnetwork.exit.recipe
            self._average(entry, self._costs_of(subnetwork.first), torch.cat(list(went_on)))
        return entry

    def _average(self, entry: Entry, first: Mapping[str, float], asked: Tensor) -> None:
        """Let costs that are paid per image be averages over the test images.

        Args:
            entry: With averages over the validation images.
            first: What an image costs that does not.
            asked: Which images go on, ``(N,)`` bool.
        """
        share = entry.share = float(asked.double().mean())
        bounds = wilson_interval(int(asked.sum()), len(asked))
        for name in _PER_IMAGE:
            if name in entry.worst:
                more = entry.worst[name] - first[name]
                entry.test[name] = first[name] + share * more
                low, high = (first[name] + bound * more for bound in bounds)
                entry.intervals[name] = (low, high)

    def _duo_entry(self, duo: Duo, accumulator: Accumulator) -> Entry:
        ensemble = self._supernetwork.subnetwork(Genotype(ENSEMBLE))
        entry = self._entry("duo", "duo", accumulator, ensemble)
        entry.subnetwork, entry.recipe = None, duo.recipe
        return entry

    def _entry(
        self, name: str, kind: str, accumulator: Accumulator, subnetwork: Subnetwork
    ) -> Entry:
        results = accumulator.results()
        quality = results[self.quality]
        assert isinstance(quality, Hits | Confusions)
        figures = {figure: result.figure for figure, result in results.items()}
        entry = Entry(
            name=name,
            kind=kind,
            test={**figures, **self._costs_of(subnetwork)},
            metric=self.quality,
            parameters=subnetwork.parameters,
            subnetwork=subnetwork,
            guesses=accumulator.guesses,
            result=quality,
            worst={name: worst(subnetwork) for name, worst in self._worst.items()},
        )
        for figure, result in results.items():
            interval = interval_of(result)
            if interval is not None:
                entry.intervals[figure] = interval
        return entry

    def _costs_of(self, subnetwork: Subnetwork) -> dict[str, float]:
        return {cost.name: float(cost.compute(subnetwork)) for cost in self._costs}


def compare_in_pairs(entries: Sequence[Entry], cost: str) -> None:
    """Compare every stitched network with every baseline, corrected for all comparisons.

    Of the cascades only one is compared with: the most expensive of those that cost no more, or
    else the cheapest. Finished networks are also compared with what was finished likewise, and
    with themselves as they were found.

    Args:
        entries: Stitched networks get their comparisons.
        cost: By which cascades are chosen.
    """
    rivals = [entry for entry in entries if entry.kind not in (STITCHED, "cascade", FINISHED)]
    likewise = [entry for entry in entries if entry.kind == FINISHED]
    cascades = sorted(
        (entry for entry in entries if entry.kind == "cascade"),
        key=lambda entry: entry.test[cost],
    )
    pairs: list[tuple[Entry, Entry]] = []
    for entry in entries:
        if entry.kind == STITCHED:
            near = [c for c in cascades if c.test[cost] <= entry.test[cost]]
            own = [*rivals, *(near[-1:] or cascades[:1])]
            if entry.finished:
                found = [e for e in entries if e.trial == entry.trial and not e.finished]
                own += [*likewise, *found]
            pairs += [(entry, rival) for rival in own]
    corrected = holm([_p_value(entry, rival) for entry, rival in pairs])
    for (entry, rival), p_value in zip(pairs, corrected, strict=True):
        entry.comparisons.append(
            PairedComparison(rival.name, entry.quality - rival.quality, p_value)
        )


def _add_finished(entries: list[Entry], entry: Entry, key: int | str) -> None:
    """Put a finished network behind what it is to be read with.

    Args:
        entries: Baselines, then stitched networks.
        entry: Its own, to be named.
        key: The number of its trial, or what a baseline is called.
    """
    first_stitched = sum(other.kind != STITCHED for other in entries)
    if isinstance(key, int) and entry.kind == STITCHED:
        entry.name, entry.trial = f"trial {key} finished", key
        places = [place for place, other in enumerate(entries) if other.trial == key]
        entries.insert(places[0] + 1 if places else len(entries), entry)
        return
    entry.trial = key if isinstance(key, int) else None
    entry.name = f"{entry.name if isinstance(key, int) else key} finished"
    assert entry.subnetwork is not None, entry
    assert entry.subnetwork.finished is not None, entry
    entry.kind, entry.recipe = FINISHED, entry.subnetwork.finished.text
    if not isinstance(key, int):
        entry.subnetwork = None
    entries.insert(first_stitched, entry)


def _p_value(entry: Entry, rival: Entry) -> float:
    assert entry.result is not None, entry
    assert rival.result is not None, rival
    return paired_p_value(entry.result, rival.result)


def mark_front(entries: Sequence[Entry], metrics: Sequence[StudyMetric]) -> None:
    """Mark the entries that no other dominates, on the test split, and those at fixed cost.

    Args:
        entries: At least one.
        metrics: The objectives.
    """
    for entry, on_front in zip(entries, _nondominated(entries, metrics), strict=True):
        entry.on_front = on_front
    # where nothing can be skipped, cascades are no alternative
    fixed = [entry for entry in entries if not entry.is_cascade]
    for entry, on_front in zip(fixed, _nondominated(fixed, metrics), strict=True):
        entry.on_fixed_front = on_front


def _nondominated(entries: Sequence[Entry], metrics: Sequence[StudyMetric]) -> list[bool]:
    found: list[bool] = moocore.is_nondominated(
        np.array([[entry.test[metric.name] for metric in metrics] for entry in entries]),
        maximise=[metric.direction == "maximize" for metric in metrics],
        keep_weakly=True,
    ).tolist()
    return found


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
    finished: Sequence[int] = (),
) -> dict[Subnetwork, FrozenTrial]:
    """The first trial of every network that is wanted, by rising cost."""
    if not complete:
        states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
        held = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "none at all"
        raise StudyError(
            f"The study {study.study_name!r} has no complete trial to report (it has {held}); run "
            "the search."
        )
    chosen: dict[Subnetwork, FrozenTrial] = {}
    if only is not None:
        numbered = {trial.number: trial for trial in complete}
        missing = [number for number in only if number not in numbered]
        if missing:
            raise StudyError(f"The study {study.study_name!r} has no complete trial {missing[0]}.")
        for number in only:
            trial = numbered[number]
            chosen[supernetwork.subnetwork(trial.params)] = trial
    else:
        best = {trial.number for trial in study.best_trials}
        best |= _best_static(study, complete)
        first: dict[Subnetwork, FrozenTrial] = {}
        for trial in complete:
            first.setdefault(supernetwork.subnetwork(trial.params), trial)
        chosen = {
            subnetwork: trial
            for subnetwork, trial in first.items()
            if trial.number in best
            or trial.number in finished
            or subnetwork.genotype in baselines(supernetwork.sides, two_jobs=supernetwork.two_jobs)
        }
    return dict(sorted(chosen.items(), key=lambda item: item[0].macs))


def _best_static(study: optuna.Study, complete: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the best trials among those whose networks cost the same for every image.

    In the study cascades of the same average cost may dominate them.
    """
    static = [
        trial
        for trial in complete
        if first_of(trial.params[OUTPUT]) is None and violation(trial) <= 0
    ]
    if not static:
        return set()
    maximise = [direction == StudyDirection.MAXIMIZE for direction in study.directions]
    values = np.array([trial.values for trial in static])
    best = moocore.is_nondominated(values, maximise=maximise, keep_weakly=True)
    return {trial.number for trial, kept in zip(static, best, strict=True) if kept}


def _check_labelled(split: Split, supernetwork: Supernetwork, side: Side = "a") -> None:
    """Raise where a split's labels say nothing."""
    supergraph = supernetwork.supergraph
    if supergraph.segments_of(side):
        return
    split.pick(range(1), supernetwork.views)  # decodes all, once; their labels come with that
    if not split.is_labelled(supergraph.classes_of(side)):
        raise DataError(
            f"The {split.name} split ({split.source}) has no labels: its {len(split)} images are "
            f"all or partly labelled {min(split.targets.tolist())}. Name images with a folder for "
            "each class, or a part of the data set whose labels are public."
        )


def _with_basics(metrics: Sequence[AnyMetric], supernetwork: Supernetwork) -> list[AnyMetric]:
    """The study's metrics, and quality and cost in any case."""
    known = {metric.name for metric in metrics}
    basics = (quality_metric(segments=supernetwork.segments).name, "macs")
    return [*metrics, *metrics_of_one_job([name for name in basics if name not in known])]
