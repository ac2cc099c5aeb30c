"""What several studies found, side by side: which search gets how far, and after how many trials.

All figures are those on validation images that the searches themselves went by, and are read from
the studies alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

from optuna_stitch.evaluation.metrics import Unit, unit_of
from optuna_stitch.evaluation.significance import holm
from optuna_stitch.report.hypervolume import (
    Losses,
    Outcomes,
    front_of,
    hypervolume,
    hypervolume_history,
    read_outcomes,
    reference_point,
)

# Shares of the hypervolume that is known of, for which the trials are counted.
GOALS = (0.95, 0.99)

# A group of fewer studies is not tested against another.
FEWEST = 3

# Tests are exact where there are no more ways than this to deal studies out to two groups.
_WAYS = 20_000

_ROUNDING = 1e-9


@dataclass(frozen=True)
class ComparedStudy:
    """A study, and what it is compared as.

    Args:
        name: Name of its run, which tables show.
        group: Name of its group: that of the studies which differ from it by their seeds only.
        seeds: Every seed of its run, by what is drawn with it; that of the search as ``study``.
        objectives: Names of its objectives.
        study: The study.
    """

    name: str
    group: str
    seeds: Mapping[str, int]
    objectives: Sequence[str]
    study: optuna.Study

    @cached_property
    def outcomes(self) -> Outcomes:
        """What its trials found.

        Raises:
            StudyError: If no trial is complete and within its constraints.
        """
        return read_outcomes(self.study)


@dataclass(frozen=True)
class Result:
    """What one study found.

    Args:
        study: The study.
        shares: Its hypervolume after each of its trials, as a share of that of the front that all
            studies found together, ``(trials,)``; see `Comparison`.
    """

    study: ComparedStudy
    shares: NDArray[np.float64]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.study.name

    @property
    def outcomes(self) -> Outcomes:
        """What its trials found."""
        return self.study.outcomes

    @property
    def trials(self) -> int:
        """How many trials it has that are complete or pruned."""
        return len(self.shares)

    @property
    def progress(self) -> NDArray[np.float64]:
        """What was found after each trial: `shares`, or the best value of a single objective.

        ``(trials,)``, NaN where there is no value yet.
        """
        losses, signs = self.outcomes.losses, self.outcomes.signs
        if len(signs) > 1:
            return self.shares
        return np.asarray(signs[0] * np.fmin.accumulate(losses[:, 0]))

    def needed(self, goal: float) -> float:
        """The number of trials with which the study reached a share.

        Args:
            goal: The share, of 1.

        Returns:
            The number; infinite, if it did not.
        """
        reached = self.shares >= goal - _ROUNDING
        return float(reached.argmax() + 1) if reached.any() else math.inf


@dataclass(frozen=True)
class Group:
    """Studies that differ by their seeds only.

    Args:
        name: What the group is called.
        results: At least one.
    """

    name: str
    results: list[Result]

    @property
    def label(self) -> str:
        """Its name, and how many studies it has if these are several."""
        count = len(self.results)
        return f"{self.name} ({count} runs)" if count > 1 else self.name

    @property
    def repeats(self) -> bool:
        """Whether some of the studies have all their seeds in common."""
        seeds = [result.study.seeds for result in self.results]
        return any(first == second for first, second in itertools.combinations(seeds, 2))

    @property
    def curve(self) -> Curve:
        """Its progress, as far as the shortest of its studies."""
        length = min(result.trials for result in self.results)
        progress = np.stack([result.progress[:length] for result in self.results])
        found = np.isfinite(progress).all(axis=0)
        progress = progress[:, found]
        return Curve(
            np.arange(1, length + 1)[found],
            progress.min(0),
            np.median(progress, axis=0),
            progress.max(0),
        )

    def shares(self, trials: int) -> list[float]:
        """Every study's share after the same number of trials.

        Args:
            trials: That number, which all of them have.
        """
        return [float(result.shares[trials - 1]) for result in self.results]

    def needed(self, goal: float, trials: int) -> list[float]:
        """The number of trials with which every study reached a share.

        Args:
            goal: The share, of 1.
            trials: Numbers larger than this are infinite.
        """
        counts = (result.needed(goal) for result in self.results)
        return [count if count <= trials else math.inf for count in counts]


@dataclass(frozen=True)
class Curve:
    """The progress of a group's studies: their median and their range, each ``(trials,)``.

    Args:
        trials: After how many trials, from where all of the studies have found something.
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
        least: The smallest p-value that so many studies could have had.
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
        groups: What was found, by group.
        reference: The reference point of all hypervolumes, in values, ``(objectives,)``.
        front: The front that all studies found together, in losses, ``(networks, objectives)``.
        trials: How many trials the shortest study has; all are compared after so many.
        differences: Between all pairs of groups that have enough studies.
        notes: What makes the studies less comparable than they look, in sentences.
    """

    objectives: Sequence[str]
    groups: list[Group]
    reference: Losses
    front: Losses
    trials: int
    differences: list[Difference]
    notes: Sequence[str]

    @property
    def results(self) -> list[Result]:
        """What every study found, by group."""
        return [result for group in self.groups for result in group.results]

    @property
    def signs(self) -> NDArray[np.float64]:
        """What losses are multiplied with to be values, ``(objectives,)``."""
        return self.results[0].outcomes.signs

    @property
    def unit(self) -> Unit:
        """What people read `Result.progress` in."""
        if len(self.objectives) > 1:
            return Unit("hypervolume", "%", 0.01, "hypervolume (% of all runs' together)")
        unit = unit_of(self.objectives[0])
        return replace(unit, words=f"best {unit.words}", axis=f"best {unit.title}")


def compare(studies: Sequence[ComparedStudy], *, notes: Sequence[str] = ()) -> Comparison:
    """Compare what studies found, after as many trials as the shortest of them has.

    Args:
        studies: At least one; all with the same objectives, directions, parents and images.
        notes: What makes them less comparable than they look, in sentences.

    Raises:
        StudyError: If a study has no trial that is complete and within its constraints.

    Example:
        >>> objectives = ["accuracy", "macs"]
        >>> studies = [
        ...     ComparedStudy(f"digits{seed}", "linkage", {"study": seed}, objectives, study)
        ...     for seed in (0, 1)
        ... ]
        >>> compare(studies).groups[0].label
        'linkage (2 runs)'
    """
    found = [study.outcomes for study in studies]
    reference = reference_point(found)
    front = front_of(np.concatenate([outcomes.front for outcomes in found]))
    whole = hypervolume(front, reference)
    by_name: dict[str, list[Result]] = {}
    for study in studies:
        shares = hypervolume_history(study.outcomes.losses, reference) / whole
        by_name.setdefault(study.group, []).append(Result(study, np.minimum(shares, 1.0)))
    groups = [Group(name, results) for name, results in by_name.items()]
    trials = min(len(outcomes.losses) for outcomes in found)
    return Comparison(
        studies[0].objectives,
        groups,
        reference * found[0].signs,
        front,
        trials,
        _differences(groups, trials),
        notes,
    )


def _differences(groups: Sequence[Group], trials: int) -> list[Difference]:
    """Test every pair of groups that have enough studies, each with seeds of its own."""
    enough = [g for g in groups if len(g.results) >= FEWEST and not g.repeats]
    pairs = list(itertools.combinations(enough, 2))
    corrected = holm([_p_value(a.shares(trials), b.shares(trials)) for a, b in pairs])
    least = [2 / math.comb(len(a.results) + len(b.results), len(a.results)) for a, b in pairs]
    return [
        Difference(first, second, p_value, min(1.0, len(pairs) * smallest))
        for (first, second), p_value, smallest in zip(pairs, corrected, least, strict=True)
    ]


def _p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Mann-Whitney's U test by permutation: the normal law fits neither few studies nor ties."""
    # to the ranks, studies that found the same front in another order are equal
    ranks = rankdata(np.round([*first, *second], 9))
    tested = permutation_test(
        (ranks[: len(first)], ranks[len(first) :]),
        lambda own, other, axis: own.sum(axis=axis),
        vectorized=True,
        n_resamples=_WAYS,
        random_state=0,
    )
    return float(tested.pvalue)
