"""What several studies found, side by side: which search gets how far, and after how many trials.

All figures are those on validation images that the searches themselves went by, and are read from
the studies alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

from optuna_stitch.report.hypervolume import (
    Losses,
    Outcomes,
    front_of,
    hypervolume,
    hypervolume_history,
    read_outcomes,
    reference_point,
)
from optuna_stitch.report.significance import holm
from optuna_stitch.run.compare import check_comparable, group_names, seeds_of, uneven
from optuna_stitch.run.schema import StudyFile
from optuna_stitch.search.study import CONTENT
from optuna_stitch.utils.errors import StudyError

# Figures of the same network on the same images differ by no more than this share.
_SAME_FIGURES = 1e-9

_NOT_ALONE = "What differs here is not the search alone."


@dataclass(frozen=True)
class Searched:
    """A run whose study is compared.

    Args:
        name: What it is called in tables.
        study_file: What was asked for.
        study: What came of it.
    """

    name: str
    study_file: StudyFile
    study: optuna.Study

    @property
    def named(self) -> tuple[str, StudyFile]:
        """Its name and what was asked for."""
        return self.name, self.study_file


def read_together(runs: Sequence[Searched]) -> tuple[list[Outcomes], list[str]]:
    """Read what runs found, if they can be compared.

    Args:
        runs: At least one.

    Returns:
        What each of them found; and what else differs than the searches, in sentences.

    Raises:
        StudyError: If a run has no trial that is complete and within its constraints, is there
            twice, or has other objectives, parents or data than the first.
    """
    for run in runs[1:]:
        check_comparable(runs[0].named, run.named, places=False)
        _check_directions(runs[0], run)
    _check_distinct(runs)
    found = [_read(run) for run in runs]
    notes = _other_supernetworks(runs)
    moved = _moved_baselines(runs, found)
    if moved:
        notes.append(f"{moved[0]}: other images, weights, kernels or timings. {_NOT_ALONE}")
    return found, [*notes, *uneven([run.named for run in runs])]


def _read(run: Searched) -> Outcomes:
    try:
        return read_outcomes(run.study)
    except StudyError as error:
        raise StudyError(
            f"{run.name} cannot be compared. {error} Search on (`optuna-stitch search "
            f"{run.name}`), or leave it out."
        ) from error


def _check_distinct(runs: Sequence[Searched]) -> None:
    """Raise if a study is there twice: as a copy, or through two workers' folders."""
    known: dict[tuple[object, ...], str] = {}
    for run in runs:
        # when its trials were finished is a study's own
        times = tuple(t.datetime_complete for t in run.study.get_trials(deepcopy=False))
        if times and times in known:
            raise StudyError(
                f"{run.name} and {known[times]} have the same study, which would count twice. "
                "Leave one of them out."
            )
        known[times] = run.name


def _check_directions(first: Searched, second: Searched) -> None:
    shown = [", ".join(d.name.lower() for d in run.study.directions) for run in (first, second)]
    if shown[0] != shown[1]:
        raise StudyError(
            f"{second.name} and {first.name} cannot be compared: the directions of their "
            f"objectives are {shown[1]}, and {shown[0]}. Leave one of them out."
        )


def _other_supernetworks(runs: Sequence[Searched]) -> list[str]:
    by_content: dict[str, list[str]] = {}
    for run in runs:
        content = run.study.user_attrs.get(CONTENT, "one that is not named")
        by_content.setdefault(content, []).append(run.name)
    if len(by_content) == 1:
        return []
    shown = "; ".join(f"{content}: {', '.join(some)}" for content, some in by_content.items())
    return [
        f"The runs search {len(by_content)} different supernetworks ({shown}), so that not all of "
        f"them can reach the same front. {_NOT_ALONE}"
    ]


def _moved_baselines(runs: Sequence[Searched], found: Sequence[Outcomes]) -> list[str]:
    """Where parents and ensemble have other figures than in the first run, one for each run.

    Raises:
        StudyError: If the study files name other places for data or weights besides.
    """
    moved: list[str] = []
    for run, outcomes in zip(runs[1:], found[1:], strict=True):
        for name, losses in found[0].baselines.items():
            other = outcomes.baselines.get(name, losses)
            differing = ~np.isclose(losses, other, rtol=_SAME_FIGURES, atol=0)
            if differing.any():
                check_comparable(runs[0].named, run.named, places=True)
                place = int(differing.argmax())
                here, there = (outcomes.signs[place] * some[place] for some in (losses, other))
                moved.append(
                    f"The {run.study_file.study.objectives[place]} of {name} is {here:.6g} in "
                    f"{runs[0].name}, but {there:.6g} in {run.name}"
                )
                break
    return moved


# Shares of the hypervolume that is known of, for which the trials are counted.
GOALS = (0.95, 0.99)

# A group of fewer runs is not tested against another.
FEWEST = 3

# Tests are exact as long as there are no more ways than this to deal the runs out to two groups.
_WAYS = 20_000

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Result:
    """What one run found.

    Args:
        run: The run.
        outcomes: Its trials.
        shares: Its hypervolume after each of its trials, as a share of that of the front that all
            runs found together, ``(trials,)``; see `Comparison`.
    """

    run: Searched
    outcomes: Outcomes
    shares: NDArray[np.float64]

    @property
    def trials(self) -> int:
        """How many trials it has that are complete or pruned."""
        return len(self.shares)

    @property
    def progress(self) -> NDArray[np.float64]:
        """What was found after each trial: `shares`, or the best value of a single objective.

        NaN where there is no value yet.
        """
        losses, signs = self.outcomes.losses, self.outcomes.signs
        if len(signs) > 1:
            return self.shares
        return np.asarray(signs[0] * np.fmin.accumulate(losses[:, 0]))

    def needed(self, goal: float) -> float:
        """With how many trials it reached a share; infinite, if it did not."""
        reached = self.shares >= goal - _ROUNDING
        return float(reached.argmax() + 1) if reached.any() else math.inf


@dataclass(frozen=True)
class Group:
    """Runs of the same study file, but for seeds.

    Args:
        name: How their study file differs from those of the other groups.
        results: At least one.
    """

    name: str
    results: list[Result]

    @property
    def repeats(self) -> bool:
        """Whether some of the runs have all their seeds in common."""
        seeds = [seeds_of(result.run.study_file) for result in self.results]
        return any(first == second for first, second in itertools.combinations(seeds, 2))

    @property
    def curve(self) -> Curve:
        """Its progress, as far as the shortest of its runs."""
        length = min(result.trials for result in self.results)
        runs = np.stack([result.progress[:length] for result in self.results])
        found = np.isfinite(runs).all(axis=0)
        runs = runs[:, found]
        return Curve(
            np.arange(1, length + 1)[found], runs.min(0), np.median(runs, axis=0), runs.max(0)
        )

    def shares(self, trials: int) -> list[float]:
        """Every run's share after so many trials, which all of them have."""
        return [float(result.shares[trials - 1]) for result in self.results]

    def needed(self, goal: float, trials: int) -> list[float]:
        """The trials that every run needed; infinite where it needed more than so many."""
        counts = (result.needed(goal) for result in self.results)
        return [count if count <= trials else math.inf for count in counts]


@dataclass(frozen=True)
class Curve:
    """The progress of a group's runs: their median and their range, each ``(trials,)``.

    Args:
        trials: After how many trials, from where all of the runs have found something.
        low: The smallest.
        median: The median.
        high: The largest.
    """

    trials: NDArray[np.int64]
    low: NDArray[np.float64]
    median: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Two groups after the same number of trials.

    Args:
        first: One group.
        second: The other.
        p_value: Two-sided, of the Mann-Whitney U test; corrected by Holm for all pairs of groups
            that are tested.
        least: The smallest p-value that so many runs could have had.
    """

    first: Group
    second: Group
    p_value: float
    least: float


@dataclass(frozen=True)
class Comparison:
    """Studies of the same objectives and parents, measured alike.

    Args:
        objectives: Their names.
        groups: The runs, by study file.
        reference: The reference point of all hypervolumes, in values, ``(objectives,)``.
        front: The front that all runs found together, in losses, ``(networks, objectives)``.
        trials: How many trials the shortest run has; all are compared after so many.
        differences: Between all pairs of groups that have enough runs.
        notes: What makes the runs less comparable than they look, in sentences.
    """

    objectives: list[str]
    groups: list[Group]
    reference: Losses
    front: Losses
    trials: int
    differences: list[Difference]
    notes: list[str]

    @property
    def results(self) -> list[Result]:
        """All runs, by group."""
        return [result for group in self.groups for result in group.results]

    @property
    def signs(self) -> NDArray[np.float64]:
        """What losses are multiplied with to be values, ``(objectives,)``."""
        return self.results[0].outcomes.signs


def compare(runs: Sequence[Searched]) -> Comparison:
    """Compare what runs found, after as many trials as the shortest of them has.

    Args:
        runs: At least one, on the same objectives, parents and data.

    Raises:
        StudyError: If a run has no trial that is complete and within its constraints, is there
            twice, or has other objectives, parents or data than another.
    """
    found, notes = read_together(runs)
    reference = reference_point(found)
    front = front_of(np.concatenate([outcomes.front for outcomes in found]))
    whole = hypervolume(front, reference)
    by_name: dict[str, list[Result]] = {}
    names = group_names([run.named for run in runs])
    for run, name, outcomes in zip(runs, names, found, strict=True):
        shares = hypervolume_history(outcomes.losses, reference) / whole
        by_name.setdefault(name, []).append(Result(run, outcomes, np.minimum(shares, 1.0)))
    groups = [Group(name, some) for name, some in by_name.items()]
    trials = min(len(outcomes.losses) for outcomes in found)
    return Comparison(
        runs[0].study_file.study.objectives,
        groups,
        reference * found[0].signs,
        front,
        trials,
        _differences(groups, trials),
        notes,
    )


def _differences(groups: Sequence[Group], trials: int) -> list[Difference]:
    """Test every pair of groups that have enough runs, each with seeds of its own."""
    enough = [g for g in groups if len(g.results) >= FEWEST and not g.repeats]
    pairs = list(itertools.combinations(enough, 2))
    corrected = holm([_p_value(a.shares(trials), b.shares(trials)) for a, b in pairs])
    least = [2 / math.comb(len(a.results) + len(b.results), len(a.results)) for a, b in pairs]
    return [
        Difference(first, second, p_value, min(1.0, len(pairs) * smallest))
        for (first, second), p_value, smallest in zip(pairs, corrected, least, strict=True)
    ]


def _p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Mann-Whitney's U test by permutation: the normal law fits neither few runs nor ties."""
    # to the ranks, runs that found the same front in another order are equal
    ranks = rankdata(np.round([*first, *second], 9))
    tested = permutation_test(
        (ranks[: len(first)], ranks[len(first) :]),
        lambda own, other, axis: own.sum(axis=axis),
        vectorized=True,
        n_resamples=_WAYS,
        random_state=0,
    )
    return float(tested.pvalue)
