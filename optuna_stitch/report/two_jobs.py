"""Evaluate networks that answer two questions on the test split, beside what one has otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from optuna.trial import FrozenTrial
from torch import Tensor

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Accumulator, Confusions, Hits, Labels
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.latency import measure_alike
from optuna_stitch.evaluation.metrics import (
    METRICS,
    RETAINED,
    Cost,
    LearnedMetric,
    SideMetric,
    StudyMetric,
    quality_metric,
)
from optuna_stitch.evaluation.probe import fit_probes
from optuna_stitch.evaluation.significance import (
    holm,
    interval_of,
    paired_p_value,
    retained_interval,
)
from optuna_stitch.report.entries import STITCHED, Entries, Entry, PairedComparison
from optuna_stitch.report.front import Front
from optuna_stitch.search.objective import Objective
from optuna_stitch.stitching.genotype import BOTH, SIDES, Genotype, Side
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import DataError
from optuna_stitch.utils.progress import console, progress_bar

# Both parents side by side: what all others are held to.
WHOLE = "both parents"

# Networks that run as one plan.
_TOGETHER = 16


@dataclass(frozen=True)
class _Network:
    """A network that answers both questions.

    Args:
        entry: What is known of it; its figures are still to be measured.
        supernetwork: Whose subnetworks its parts are.
        whole: What it costs.
        parts: What answers each question.
    """

    entry: Entry
    supernetwork: Supernetwork
    whole: Subnetwork
    parts: Mapping[Side, Subnetwork]


def evaluate_two_jobs(
    objective: Objective,
    chosen: Mapping[Subnetwork, FrozenTrial],
    complete: Sequence[FrozenTrial],
    split: SplitPair,
    train: SplitPair,
    *,
    finished: Mapping[int | str, Subnetwork] | None = None,
    batch_size: int | None = None,
    show_progress_bar: bool = False,
) -> Front:
    """Evaluate networks of a study of two jobs, and the baselines; see `evaluate_front`.

    Args:
        objective: What the study optimized.
        chosen: Networks, with their trials.
        complete: All complete trials of the study.
        split: The test split.
        train: The train split, on whose images linear probes are fitted.
        finished: What `finish` returned, by the number of the trial.
        batch_size: Images per batch; if None, as the supernetwork says.
        show_progress_bar: Whether to show a progress bar.

    Raises:
        DataError: If a parent's answers are no finite numbers.
    """
    supernetwork = objective.supernetwork
    supergraph = supernetwork.supergraph
    split.check_views(supergraph.view_of)
    quality = {side: quality_metric(segments=supergraph.segments_of(side)) for side in SIDES}
    learned = {side: _learned(objective.metrics, quality[side], side) for side in SIDES}
    costs = [metric for metric in objective.metrics if isinstance(metric, Cost)]
    if all(cost.name != "macs" for cost in costs):
        macs = METRICS["macs"]
        assert isinstance(macs, Cost)
        costs.append(macs)
    networks = _baselines(supernetwork, train)
    networks += _trials(chosen, objective, networks[0], finished or {})
    measured: dict[Side, list[Accumulator]] = {
        side: _measure(
            networks, split.of(side), side, learned[side], batch_size, show_progress_bar
        )
        for side in SIDES
    }
    sides: dict[Side, list[Entry]] = {side: [] for side in SIDES}
    entries: list[Entry] = []
    for place, network in enumerate(networks):
        entry = network.entry
        said = {side: measured[side][place] for side in SIDES}
        if not all(accumulator.finite for accumulator in said.values()):
            text = f"answers that are no finite numbers on the {split.name} split"
            if entry.kind != STITCHED:
                raise DataError(f"{entry.name.capitalize()}: {text}.")
            console.print(f"{entry.name} is left out: {text}.")
            continue
        entry.test = {cost.name: float(cost.compute(network.whole)) for cost in costs}
        entry.parameters = network.whole.parameters
        for side in SIDES:
            own = _side_entry(entry, quality[side].name, said[side])
            sides[side].append(own)
            entry.test |= {f"{name}_{side}": value for name, value in own.test.items()}
            entry.intervals |= {f"{name}_{side}": some for name, some in own.intervals.items()}
        entries.append(entry)
        _retain(entry, {side: (sides[side][0], sides[side][-1]) for side in SIDES})
    _compare(entries, sides)
    units = {metric.name: metric.unit for metric in objective.metrics if metric.unit is not None}
    background = pd.DataFrame([t.values for t in complete], columns=objective.metric_names)
    cost_name = costs[0].name
    return Front(
        entries,
        objective.metric_names,
        background,
        max(len(split.a), len(split.b)),
        RETAINED.name,
        cost_name,
        units=units,
        sides={
            side: Entries(
                sides[side],
                [],
                pd.DataFrame(),
                len(split.of(side)),
                quality[side].name,
                targets=None if supergraph.segments_of(side) else split.of(side).targets,
                indices=split.of(side).indices,
            )
            for side in SIDES
        },
    )


def _learned(
    metrics: Sequence[StudyMetric], quality: LearnedMetric, side: Side
) -> list[LearnedMetric]:
    """What is measured of the answers of one side, its quality first."""
    found = {quality.name: quality}
    for metric in metrics:
        if isinstance(metric, SideMetric) and metric.side == side:
            found[metric.metric.name] = metric.judged
    return list(found.values())


def _baselines(supernetwork: Supernetwork, train: SplitPair) -> list[_Network]:
    """Both parents side by side, linear probes, and one parent for both where it can be."""
    found = [_network(WHOLE, "parent", supernetwork, supernetwork.subnetwork({"output": BOTH}))]
    for probe in fit_probes(supernetwork, train):
        measure_alike(probe.supernetwork.supergraph, supernetwork.supergraph)
        network = _network(probe.name, "probe", probe.supernetwork, probe.subnetwork)
        network.entry.recipe, network.entry.subnetwork = probe.recipe, None
        found.append(network)
    supergraph = supernetwork.supergraph
    names = supernetwork.a.class_names, supernetwork.b.class_names
    same = None in names or names[0] == names[1]
    if supergraph.shape_of("a") == supergraph.shape_of("b") and same:
        cheaper = min(SIDES, key=lambda side: supernetwork.graphs[side].macs)
        alone = supernetwork.subnetwork(Genotype(cheaper))
        entry = Entry(f"{cheaper} for both", "other", {}, RETAINED.name)
        entry.recipe = f"{cheaper} alone, whose classes are those of the other"
        found.append(_Network(entry, supernetwork, alone, dict.fromkeys(SIDES, alone)))
    return found


def _trials(
    chosen: Mapping[Subnetwork, FrozenTrial],
    objective: Objective,
    whole: _Network,
    finished: Mapping[int | str, Subnetwork],
) -> Iterator[_Network]:
    """Networks of trials, but for both parents side by side, which are there already."""
    for subnetwork, trial in chosen.items():
        network = whole
        if subnetwork.on:
            name = f"trial {trial.number}"
            network = _network(name, STITCHED, objective.supernetwork, subnetwork)
            yield network
        network.entry.trial = trial.number
        network.entry.values = dict(zip(objective.metric_names, trial.values, strict=True))
        if trial.number in finished:
            own, of = finished[trial.number], objective.supernetwork
            around = Supernetwork.around(own, *of.parents.values())
            measure_alike(around.supergraph, of.supergraph)
            network = _network(f"trial {trial.number} finished", STITCHED, around, own)
            network.entry.trial = trial.number
            yield network


def _network(name: str, kind: str, supernetwork: Supernetwork, subnetwork: Subnetwork) -> _Network:
    entry = Entry(name, kind, {}, RETAINED.name, subnetwork=subnetwork)
    parts = {side: subnetwork.part(side) for side in SIDES}
    return _Network(entry, supernetwork, subnetwork, parts)


def _measure(
    networks: Sequence[_Network],
    split: Split,
    side: Side,
    metrics: Sequence[LearnedMetric],
    batch_size: int | None,
    show_progress_bar: bool,
) -> list[Accumulator]:
    """What test images say of the answers of one side, by network.

    Figures are computed as the exported module computes; what several networks answer alike is
    computed once.
    """
    own = networks[0].supernetwork
    first = Evaluator(own, split, (), batch_size=batch_size, kernels="plain", side=side)
    labels = Labels(metrics, own.supergraph, first.answers)
    classes = own.supergraph.classes_of(side)
    parts = {id(n.supernetwork): dict[Subnetwork, None]() for n in networks}
    for network in networks:
        parts[id(network.supernetwork)][network.parts[side]] = None
    found: dict[tuple[int, Subnetwork], Accumulator] = {}
    with progress_bar(show_progress_bar=show_progress_bar) as progress:
        answers_in_all = len(split) * sum(map(len, parts.values()))
        task = progress.add_task(f"Test answers of {side}", total=answers_in_all, note="")
        for supernetwork in {id(n.supernetwork): n.supernetwork for n in networks}.values():
            evaluator = Evaluator(
                supernetwork, split, (), batch_size=batch_size, kernels="plain", side=side
            )
            mine = list(parts[id(supernetwork)])
            for start in range(0, len(mine), _TOGETHER):
                some = mine[start : start + _TOGETHER]
                accumulators = [Accumulator(metrics, classes, per_image=True) for _ in some]
                seen = 0
                for targets, answers in evaluator.answers(some):
                    known = labels.batch(targets, range(seen, seen + len(targets)))
                    seen += len(targets)
                    for accumulator, logits in zip(accumulators, answers, strict=True):
                        accumulator.update(logits, known)
                    progress.advance(task, len(targets) * len(some))
                found |= {
                    (id(supernetwork), part): accumulator
                    for part, accumulator in zip(some, accumulators, strict=True)
                }
    return [found[id(n.supernetwork), n.parts[side]] for n in networks]


def _side_entry(entry: Entry, quality: str, accumulator: Accumulator) -> Entry:
    """What is known of the answers of one side."""
    results = accumulator.results()
    said = results[quality]
    assert isinstance(said, Hits | Confusions)
    figures = {name: result.figure for name, result in results.items()}
    guesses: Tensor | None = accumulator.guesses
    own = Entry(entry.name, entry.kind, figures, quality, result=said, guesses=guesses)
    own.intervals = {
        name: interval
        for name, result in results.items()
        if (interval := interval_of(result)) is not None
    }
    return own


def _retain(entry: Entry, pairs: Mapping[Side, tuple[Entry, Entry]]) -> None:
    """Say what share of what the parents reach alone is left.

    Args:
        entry: The network.
        pairs: What is known of the parent's answers, and of its own, by side.
    """
    entry.test = {
        RETAINED.name: min(
            RETAINED.share(own.quality, alone.quality) for alone, own in pairs.values()
        ),
        **entry.test,
    }
    results = [(own.result, alone.result) for alone, own in pairs.values()]
    known = [(own, alone) for own, alone in results if own is not None and alone is not None]
    entry.intervals[RETAINED.name] = retained_interval(known)


def _compare(entries: Sequence[Entry], sides: Mapping[Side, Sequence[Entry]]) -> None:
    """Compare every network but the parents with each parent, corrected for all comparisons."""
    pairs = [
        (entry, side, sides[side][place], sides[side][0])
        for place, entry in enumerate(entries)
        if place
        for side in SIDES
    ]
    p_values = []
    for _, _, own, alone in pairs:
        assert own.result is not None
        assert alone.result is not None
        p_values.append(paired_p_value(own.result, alone.result))
    for (entry, side, own, alone), p_value in zip(pairs, holm(p_values), strict=True):
        difference = own.quality - alone.quality
        entry.comparisons.append(PairedComparison(f"parent {side}", difference, p_value))
