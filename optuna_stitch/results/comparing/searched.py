"""Runs to be compared: whether they can be, and what else differs than their searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from optuna_stitch.config import StudyFile
from optuna_stitch.errors import StudyError
from optuna_stitch.results.comparing.alike import refuse_others, uneven
from optuna_stitch.results.hypervolume import Outcomes, read_outcomes
from optuna_stitch.search.study import CONTENT

# Figures of the same network on the same images differ by no more than this share.
_ROUNDING = 1e-9
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
        refuse_others(runs[0].named, run.named, places=False)
        _refuse_other_directions(runs[0], run)
    _refuse_the_same(runs)
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


def _refuse_the_same(runs: Sequence[Searched]) -> None:
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


def _refuse_other_directions(first: Searched, second: Searched) -> None:
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
            differing = ~np.isclose(losses, other, rtol=_ROUNDING, atol=0)
            if differing.any():
                refuse_others(runs[0].named, run.named, places=True)
                place = int(differing.argmax())
                here, there = (outcomes.signs[place] * some[place] for some in (losses, other))
                moved.append(
                    f"The {run.study_file.study.objectives[place]} of {name} is {here:.6g} in "
                    f"{runs[0].name}, but {there:.6g} in {run.name}"
                )
                break
    return moved
