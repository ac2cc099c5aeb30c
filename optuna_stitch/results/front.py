"""The front of a study, evaluated again on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.errors import StudyError
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import AnyMetric, resolve_metrics
from optuna_stitch.results.evidence import Evidence, gather_evidence
from optuna_stitch.results.statistics import holm
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.space import baselines
from optuna_stitch.splits import Split
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork


@dataclass(frozen=True)
class Claim:
    """A network and a baseline on the same test images.

    Args:
        baseline: Name of the baseline.
        difference: Quality of the network less that of the baseline.
        p_value: McNemar's for accuracy, the paired bootstrap's for mean IoU; corrected by Holm
            for all claims of the report.
    """

    baseline: str
    difference: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the two differ at the 5% level."""
        return self.p_value < 0.05


@dataclass
class Entry:
    """One network of the report.

    Args:
        name: ``parent a``, ``parent b``, ``ensemble`` or ``trial <number>``.
        kind: ``parent``, ``ensemble`` or ``stitched``.
        trial: Number of the study's trial.
        genotype: In canonical form.
        values: The objectives on the validation split, by name.
        test: The objectives on the test split, by name, and always the quality and ``macs``.
        quality: Test accuracy, or mean IoU for segmentation.
        interval: Its 95% interval: Wilson's for accuracy, the bootstrap's for mean IoU.
        parameters: Number of parameters.
        on_front: Whether no other entry is at least as good in every objective on the test split
            and better in one.
        claims: Against each baseline; empty for the baselines themselves.
    """

    name: str
    kind: str
    trial: int
    genotype: Genotype
    values: dict[str, float]
    test: dict[str, float]
    quality: float
    interval: tuple[float, float]
    parameters: int
    on_front: bool = False
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True)
class Front:
    """Baselines and the networks that a study found, with figures from the test split.

    Args:
        entries: The baselines, then stitched networks by rising cost.
        objectives: Names of the study's objectives.
        trials: Objectives on the validation split of every complete trial, for the background of
            a plot; one row per trial, a column per objective.
        images: Number of test images.
        metric: What `Entry.quality` is, ``accuracy`` or ``mean_iou``.
    """

    entries: list[Entry]
    objectives: list[str]
    trials: pd.DataFrame
    images: int
    metric: str = "accuracy"

    @property
    def baselines(self) -> list[Entry]:
        """Parent a, parent b, and their ensemble."""
        return [entry for entry in self.entries if entry.kind != "stitched"]

    @property
    def stitched(self) -> list[Entry]:
        """Networks with at least one stitch that matters."""
        return [entry for entry in self.entries if entry.kind == "stitched"]

    def table(self, switches: Sequence[str]) -> pd.DataFrame:
        """One row per entry, with every figure.

        Args:
            switches: Names of the supernetwork's switches.
        """
        rows = []
        for entry in self.entries:
            row: dict[str, object] = {
                "name": entry.name,
                "kind": entry.kind,
                "trial": entry.trial,
                "on_front": entry.on_front,
            }
            row |= {f"val_{name}": value for name, value in entry.values.items()}
            row |= {f"test_{name}": value for name, value in entry.test.items()}
            row |= {
                f"test_{self.metric}_low": entry.interval[0],
                f"test_{self.metric}_high": entry.interval[1],
                "parameters": entry.parameters,
                "output": entry.genotype.output,
                "stitches": "; ".join(switches[i] for i in sorted(entry.genotype.on)),
            }
            for claim in entry.claims:
                row[f"{self.metric}_minus_{claim.baseline.replace(' ', '_')}"] = claim.difference
                row[f"p_value_{claim.baseline.replace(' ', '_')}"] = claim.p_value
            rows.append(row)
        return pd.DataFrame(rows)


def evaluate_front(
    study: optuna.Study, objective: Objective, split: Split, *, batch_size: int | None = None
) -> Front:
    """Evaluate the best trials of a study, the parents and their ensemble on the test split.

    Args:
        study: Over the switches of the objective's supernetwork.
        objective: What the study optimized.
        split: The test split, seen neither by the fit nor by the search.
        batch_size: Images per batch; if None, as the supernetwork says.

    Raises:
        StudyError: If no trial is complete.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        raise StudyError(
            f"The study {study.study_name!r} has no complete trial to report; run the search."
        )
    supernetwork, metrics = objective.supernetwork, objective.evaluator.metrics
    by_genotype = _distinct(supernetwork, complete)
    best = {trial.number for trial in study.best_trials}
    chosen = {
        genotype: trial
        for genotype, trial in by_genotype.items()
        if not genotype.on or trial.number in best
    }
    base = [genotype for genotype in baselines() if genotype in chosen]
    stitched = sorted((g for g in chosen if g.on), key=supernetwork.macs)
    genotypes = [*base, *stitched]

    metric = "mean_iou" if supernetwork.segments else "accuracy"
    figures_wanted = _with_basics(metrics, metric)
    # as the exported module computes, so that it has the very figures that are reported
    evaluator = Evaluator(
        supernetwork, split, figures_wanted, batch_size=batch_size, kernels="plain"
    )
    evidence = gather_evidence(evaluator, genotypes)
    evaluations = evaluator.evaluate(genotypes)
    names = {"a": "parent a", "b": "parent b", "ensemble": "ensemble"}
    kinds = {"a": "parent", "b": "parent", "ensemble": "ensemble"}
    entries = [
        Entry(
            name=f"trial {chosen[g].number}" if g.on else names[g.output],
            kind="stitched" if g.on else kinds[g.output],
            trial=chosen[g].number,
            genotype=g,
            values=dict(zip(objective.metric_names, chosen[g].values, strict=True)),
            test=judged.figures,
            quality=found.figure,
            interval=found.interval(),
            parameters=supernetwork.parameters(g),
        )
        for g, found, judged in zip(genotypes, evidence, evaluations, strict=True)
    ]
    _claim(entries, evidence)
    _mark_front(entries, metrics)
    trials = pd.DataFrame([trial.values for trial in complete], columns=objective.metric_names)
    return Front(entries, objective.metric_names, trials, len(split), metric)


def _with_basics(metrics: Sequence[AnyMetric], quality: str) -> list[AnyMetric]:
    """The study's metrics, and quality and cost in any case."""
    known = {metric.name for metric in metrics}
    return [*metrics, *resolve_metrics([m for m in (quality, "macs") if m not in known])]


def _distinct(
    supernetwork: Supernetwork, trials: Sequence[FrozenTrial]
) -> dict[Genotype, FrozenTrial]:
    """The first trial of every distinct subnetwork."""
    found: dict[Genotype, FrozenTrial] = {}
    for trial in trials:
        genotype = supernetwork.canonical(supernetwork.genotype(trial.params))
        found.setdefault(genotype, trial)
    return found


def _claim(entries: Sequence[Entry], evidence: Sequence[Evidence]) -> None:
    """Compare every stitched network with every baseline, corrected for all comparisons."""
    pairs = [
        (i, j)
        for i, entry in enumerate(entries)
        if entry.kind == "stitched"
        for j, other in enumerate(entries)
        if other.kind != "stitched"
    ]
    corrected = holm([evidence[i].p_value(evidence[j]) for i, j in pairs])
    for (i, j), p_value in zip(pairs, corrected, strict=True):
        difference = evidence[i].figure - evidence[j].figure
        entries[i].claims.append(Claim(entries[j].name, difference, p_value))


def _mark_front(entries: Sequence[Entry], metrics: Sequence[AnyMetric]) -> None:
    signs = {metric.name: -1 if metric.direction == "maximize" else 1 for metric in metrics}
    points = [[sign * entry.test[name] for name, sign in signs.items()] for entry in entries]
    for entry, point in zip(entries, points, strict=True):
        entry.on_front = not any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True))
            for other in points
        )
