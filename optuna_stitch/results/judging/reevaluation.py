"""Evaluate a study's best trials and the baselines again, on the test split."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.errors import DataError, StudyError
from optuna_stitch.evaluation.metrics import AnyMetric, Cost, resolve_metrics
from optuna_stitch.networks.zoo import Parent
from optuna_stitch.results.judging.baselines import tune_combinations
from optuna_stitch.results.judging.front import STITCHED, Claim, Entry, Front
from optuna_stitch.results.judging.jury import Jury
from optuna_stitch.results.judging.statistics import holm
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.space import baselines
from optuna_stitch.splits import Split
from optuna_stitch.stitching.genotype import Genotype, Side
from optuna_stitch.stitching.supergraph import SIDES
from optuna_stitch.stitching.supernetwork import Supernetwork

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
    _refuse_unlabelled(split, supernetwork)
    metric = "mean_iou" if supernetwork.segments else "accuracy"
    metrics = _with_basics(objective.metrics, metric)
    jury = Jury(
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
    entries = jury.judge(genotypes, combinations)
    for entry in entries:
        trial = chosen.get(entry.genotype) if entry.genotype else None
        if trial is not None:
            entry.trial = trial.number
            entry.values = dict(zip(objective.metric_names, trial.values, strict=True))
            if entry.kind == STITCHED:
                entry.name = f"trial {trial.number}"
    first_stitched = sum(entry.kind != STITCHED for entry in entries)
    entries[first_stitched:first_stitched] = [
        jury.other(parent, name) for parent, name in zip(others, _distinct(others), strict=True)
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
        entry.claims.append(Claim(rival.name, entry.quality - rival.quality, p_value))


def _p_value(entry: Entry, rival: Entry) -> float:
    assert entry.evidence is not None, entry
    assert rival.evidence is not None, rival
    return entry.evidence.p_value(rival.evidence)


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


def _refuse_unlabelled(split: Split, supernetwork: Supernetwork) -> None:
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
