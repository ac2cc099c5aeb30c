"""How much a study has found: the hypervolume of its trials, after each of them.

All values are losses, ``(trials, objectives)``: less is better, and those of an objective that is
maximized have their sign turned. A trial that found nothing to use is a row of NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import moocore
import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.report.entries import baseline_name
from optuna_stitch.search.objective import violation
from optuna_stitch.search.space import study_outputs
from optuna_stitch.stitching.genotype import BOTH, OUTPUT, first_of
from optuna_stitch.utils.errors import StudyError

Losses = NDArray[np.float64]

# A reference point is worse than the front's worst by this share of the front's width, so that the
# ends of the front count as well.
_MARGIN = 0.1


@dataclass(frozen=True)
class Outcomes:
    """What the trials of a study found, in the order of their numbers.

    Trials are those that a search is asked for: the complete and the pruned ones. Failed ones,
    which a search replaces, are left out.

    Args:
        numbers: The trials' numbers in the study, ``(trials,)``.
        losses: ``(trials, objectives)``; NaN for trials that are pruned or break a constraint.
        signs: What values are multiplied with to be losses, ``(objectives,)``.
        baselines: Losses of both parents and their ensemble by name, each ``(objectives,)``, as
            far as the study has them; whether or not they break a constraint.
    """

    numbers: NDArray[np.int64]
    losses: Losses
    signs: NDArray[np.float64]
    baselines: Mapping[str, Losses]

    @cached_property
    def front(self) -> Losses:
        """The distinct losses that no other dominates, ``(networks, objectives)``."""
        return front_of(self.losses)


def read_outcomes(study: optuna.Study) -> Outcomes:
    """Read what the trials of a study found.

    Args:
        study: With any number of objectives.

    Raises:
        StudyError: If no trial is complete and within its constraints.
    """
    trials = study.get_trials(deepcopy=False)
    counted = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    signs = np.where([d == StudyDirection.MAXIMIZE for d in study.directions], -1.0, 1.0)
    losses = np.full((len(counted), len(signs)), np.nan)
    baselines: dict[str, Losses] = {}
    plain = [o for o in study_outputs(study) or () if first_of(o) is None and o != BOTH]
    for row, trial in zip(losses, counted, strict=True):
        if trial.state != TrialState.COMPLETE:
            continue
        values = signs * np.asarray(trial.values)
        if not np.isfinite(values).all():
            continue
        output = trial.params.get(OUTPUT)
        if output in plain and "on" not in trial.params.values():
            baselines.setdefault(baseline_name(output), values)
        if violation(trial) <= 0:
            row[:] = values
    if not np.isfinite(losses).any():
        raise StudyError(f"The study {study.study_name!r} has {_without_values(trials)}.")
    numbers = np.array([trial.number for trial in counted])
    return Outcomes(numbers, losses, signs, baselines)


def front_of(losses: Losses) -> Losses:
    """The distinct losses that no other dominates, in rising order.

    Args:
        losses: ``(trials, objectives)``; rows of NaN are left out.

    Returns:
        ``(networks, objectives)``.
    """
    some = losses[_usable(losses)]
    return np.unique(moocore.filter_dominated(some), axis=0) if len(some) else some


def reference_point(found: Sequence[Outcomes]) -> Losses:
    """A reference point for the hypervolumes of some studies, of the same parents.

    It is the worst of the front that all of them found together, by objective, and then worse by a
    tenth of that front's width: a point further off would count little but the corner that any
    search finds at once. Networks worse than both parents and their ensemble in some objective
    do not move it: whoever searches for networks to use has no use for those. With one objective
    there is no front, and it is the worst of parents and ensemble.

    Args:
        found: At least one.

    Returns:
        ``(objectives,)``, in losses.
    """
    union = front_of(np.concatenate([outcomes.front for outcomes in found]))
    known = [losses for outcomes in found for losses in outcomes.baselines.values()]
    # a study that was begun without them is measured by what it found
    everything = np.concatenate([outcomes.losses[_usable(outcomes.losses)] for outcomes in found])
    landmarks = np.array(known) if known else everything
    useful = union[(union <= landmarks.max(axis=0)).all(axis=1)]
    if not len(useful):  # constraints rule out all that is like the parents
        useful = union
    worst = useful.max(axis=0)
    if len(worst) == 1 and landmarks.max() > worst[0]:
        return np.array([landmarks.max()])
    width = np.ptp(useful, axis=0)
    width = np.where(width > 0, width, np.ptp([*landmarks, *useful], axis=0))
    # an objective in which all are equal: shares do not depend on what it adds
    width = np.where(width > 0, width, 1.0)
    reference: Losses = worst + _MARGIN * width
    return reference


def hypervolume_history(losses: Losses, reference: Losses) -> NDArray[np.float64]:
    """The hypervolume of all trials so far, after each of them.

    With one objective, by how much the best so far is better than the reference.

    Args:
        losses: ``(trials, objectives)``; rows of NaN add nothing.
        reference: ``(objectives,)``; what is worse than it in some objective adds nothing.

    Returns:
        ``(trials,)``, never falling.
    """
    front = np.empty((0, losses.shape[1]))
    volume = 0.0
    history = np.zeros(len(losses))
    for place in range(len(losses)):
        found = losses[place : place + 1]
        if _usable(found).all() and not (front <= found).all(axis=1).any():
            front = moocore.filter_dominated(np.concatenate([front, found]))
            # it is larger in exact numbers, but for what is beyond the reference
            volume = max(volume, moocore.hypervolume(front, reference))
        history[place] = volume
    return history


def hypervolume(losses: Losses, reference: Losses) -> float:
    """The hypervolume of all of some losses; see `hypervolume_history`.

    Args:
        losses: ``(trials, objectives)``; rows of NaN add nothing.
        reference: ``(objectives,)``.

    Example:
        >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([3.0, 3.0]))
        3.0
    """
    front = front_of(losses)
    return float(moocore.hypervolume(front, reference)) if len(front) else 0.0


def hypervolume_over_trials(study: optuna.Study) -> pd.DataFrame:
    """How soon a study found what it found, for a plot.

    Args:
        study: With any number of objectives.

    Returns:
        A row per complete or pruned trial: its number as ``trial``, and as ``share`` the
        hypervolume so far as a share of what it is in the end, from 0 to 1. The reference point
        is the study's own; with one objective it is the way from the worst of parents and
        ensemble to the best value.

    Raises:
        StudyError: If no trial is complete and within its constraints.
    """
    outcomes = read_outcomes(study)
    history = hypervolume_history(outcomes.losses, reference_point([outcomes]))
    return pd.DataFrame({"trial": outcomes.numbers, "share": history / history[-1]})


def _usable(losses: Losses) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(losses).all(axis=1))


def _without_values(trials: Sequence[FrozenTrial]) -> str:
    """What a study without values has instead."""
    complete = sum(trial.state == TrialState.COMPLETE for trial in trials)
    if complete:
        return f"{complete} complete trials, none of which is within its constraints"
    states = [trial.state.name.lower() for trial in trials]
    held = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"no complete trial ({held or 'none at all'})"
