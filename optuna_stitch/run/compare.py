"""Compare the searches of several runs: open them, group them, refuse what differs too much."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from optuna_stitch.report.comparison import ComparedStudy, Comparison, compare
from optuna_stitch.run.run import Run
from optuna_stitch.run.schema import StudyFile
from optuna_stitch.run.study_file import flatten
from optuna_stitch.search.study import CONTENT
from optuna_stitch.stitching.genotype import LETTERS
from optuna_stitch.utils.errors import RunError, StudyError
from optuna_stitch.utils.files import content_key

# Keys that change no trial's figures: where things are, how long a search goes on, and how fast.
# Whether files in other places are other files, the parents' own figures tell.
_PLACES = (
    *(f"parents.{side}.checkpoint" for side in LETTERS),
    "data.root",
    "data.class_map",
    "data.train.root",
    "data.train.class_map",
    "data.val.root",
    "data.val.class_map",
)

# Sections and keys of what comes beside the search, or after it.
_BESIDE = ("device", "parents.check", "data.workers", "launch", "trackers", "report", "finish")

_NO_MATTER = (
    *_PLACES,
    *_BESIDE,
    "study.name",
    "study.storage",
    "study.artifacts",
    "study.trials",
    "study.grace",
    "evaluation.batch_size",
    "evaluation.memory",
    "evaluation.remember",
    "data.test.",
)

# Keys without which figures are not about the same thing.
_SAME = (
    *("study.objectives", "parents.", "data.dataset", "data.val.dataset", "data.val.split"),
    *("data.column", "data.a.dataset", "data.a.column", "data.b.dataset", "data.b.column"),
)

_SEED = ".seed"

_CONSTRAINTS = "study.constraints."

# A name of more parts than this is longer than it helps.
_LONGEST = 3

_ABSENT = object()

# Figures of the same network on the same images differ by no more than this share.
_SAME_FIGURES = 1e-9

_NOT_ALONE = "What differs here is not the search alone."


@dataclass(frozen=True)
class SearchedRun:
    """A run whose study is compared.

    Args:
        name: What it is called in tables.
        study_file: What was asked for.
        study: What came of it.
    """

    name: str
    study_file: StudyFile
    study: optuna.Study


def open_searched(folders: Sequence[Path]) -> list[SearchedRun]:
    """Open runs and load their studies; nothing is written.

    Args:
        folders: Folders of runs, each once.

    Raises:
        RunError: If a folder is no run, has no study yet, or is there twice.
        StudyError: If a storage fails.
    """
    # one that is there twice would count twice
    real = [os.path.realpath(os.path.expanduser(folder)) for folder in folders]
    for place, folder in enumerate(folders):
        if real[place] in real[:place]:
            raise RunError(f"The run {folder} is there twice. Name each run once.")
    return [_open(folder) for folder in folders]


def _open(folder: Path) -> SearchedRun:
    run = Run.open(folder)
    try:
        study = run.study
    except RunError as error:
        raise RunError(f"{str(error).removesuffix('.')}, or leave it out.") from error
    return SearchedRun(run.folder.as_posix(), run.study_file, study)


def compare_runs(runs: Sequence[SearchedRun]) -> Comparison:
    """Compare what the searches of some runs found.

    Runs whose study files say the same but for seeds are a group.

    Args:
        runs: At least one, of the same objectives, parents and data.

    Raises:
        StudyError: If a run has no trial that is complete and within its constraints, is there
            twice, or has other objectives, parents or data than another.
    """
    for run in runs[1:]:
        _check_same(runs[0], run, places=False)
        _check_directions(runs[0], run)
    _check_distinct(runs)
    studies = [
        ComparedStudy(
            run.name, group, _seeds_of(run.study_file), run.study_file.study.objectives, run.study
        )
        for run, group in zip(runs, _group_names(runs), strict=True)
    ]
    for study in studies:
        _check_outcomes(study)
    notes = [
        *_other_supernetworks(runs),
        *_moved_baselines(runs, studies),
        *_other_constraints(runs),
    ]
    return compare(studies, notes=notes)


def _check_same(first: SearchedRun, second: SearchedRun, *, places: bool) -> None:
    """Raise if two runs are about different things.

    Args:
        first: A run.
        second: Another.
        places: Whether files in different places are different files; they may be copies.

    Raises:
        StudyError: If objectives, parents or data differ.
    """
    flat = [flatten(run.study_file) for run in (first, second)]
    keys = _differing(
        flat,
        lambda key: places if key in _PLACES else key.startswith(_SAME) and key not in _BESIDE,
        absent=None,
    )
    if keys:
        here, there = (own.get(keys[0]) for own in flat)
        raise StudyError(
            f"{second.name} and {first.name} cannot be compared: {keys[0]} is {there!r} in the "
            f"one and {here!r} in the other. Compare runs of the same parents, data and "
            "objectives; leave one of them out."
        )


def _check_directions(first: SearchedRun, second: SearchedRun) -> None:
    shown = [", ".join(d.name.lower() for d in run.study.directions) for run in (first, second)]
    if shown[0] != shown[1]:
        raise StudyError(
            f"{second.name} and {first.name} cannot be compared: the directions of their "
            f"objectives are {shown[1]}, and {shown[0]}. Leave one of them out."
        )


def _check_distinct(runs: Sequence[SearchedRun]) -> None:
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


def _check_outcomes(study: ComparedStudy) -> None:
    try:
        _ = study.outcomes
    except StudyError as error:
        raise StudyError(
            f"{study.name} cannot be compared. {error} Search on (`optuna-stitch search "
            f"{shlex.quote(study.name)}`), or leave it out."
        ) from error


def _other_supernetworks(runs: Sequence[SearchedRun]) -> list[str]:
    """That the runs search different supernetworks, as a sentence, if they do."""
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


def _moved_baselines(runs: Sequence[SearchedRun], studies: Sequence[ComparedStudy]) -> list[str]:
    """That parents and ensemble have other figures than in the first run, as a sentence.

    Raises:
        StudyError: If the study files name other places for data or weights besides.
    """
    first = studies[0].outcomes
    moved: list[str] = []
    for run, study in zip(runs[1:], studies[1:], strict=True):
        for name, losses in first.baselines.items():
            other = study.outcomes.baselines.get(name, losses)
            differing = ~np.isclose(losses, other, rtol=_SAME_FIGURES, atol=0)
            if differing.any():
                _check_same(runs[0], run, places=True)
                place = int(differing.argmax())
                here, there = (first.signs[place] * some[place] for some in (losses, other))
                moved.append(
                    f"The {study.objectives[place]} of {name} is {here:.6g} in {runs[0].name}, "
                    f"but {there:.6g} in {run.name}"
                )
                break
    # one tells it; the others would only repeat it
    return [
        f"{said}: other images, weights, kernels or timings. {_NOT_ALONE}" for said in moved[:1]
    ]


def _other_constraints(runs: Sequence[SearchedRun]) -> list[str]:
    """That some runs may choose from other networks than others, as a sentence, if they may."""
    flat = [flatten(run.study_file) for run in runs]
    differing = _differing(flat, lambda key: key.startswith(_CONSTRAINTS), absent=None)
    if not differing:
        return []
    return [
        f"The runs have different bounds ({', '.join(differing)}): some may not use networks "
        "that others may, and are measured by those all the same."
    ]


def _seeds_of(study_file: StudyFile) -> dict[str, Any]:
    """All seeds of a study file, by their sections."""
    return {
        key.removesuffix(_SEED): value
        for key, value in flatten(study_file).items()
        if key.endswith(_SEED)
    }


def _group_names(runs: Sequence[SearchedRun]) -> list[str]:
    """A name for each run's group: equal for runs of the same study file but for seeds.

    Returns:
        The keys in which the groups differ, ``study.sampler.name=nsga2, population_size=50``;
        where that would be too long, ``like`` and the first run's name.
    """
    flat = [
        {key: value for key, value in flatten(run.study_file).items() if _matters(key)}
        for run in runs
    ]
    contents = [content_key(own) for own in flat]
    if len(set(contents)) == 1:
        return ["the same study file"] * len(runs)
    # a section that is null is a key that one with keys of its own does not have
    differing = _differing(flat, _matters, absent=_ABSENT)
    parts = [{key: own[key] for key in differing if key in own} for own in flat]
    if max(map(len, parts)) > _LONGEST:
        first = {content: runs[contents.index(content)].name for content in contents}
        return [f"like {first[content]}" for content in contents]
    return [_said(own or dict.fromkeys(differing)) for own in parts]


def _differing(
    flat: Sequence[dict[str, Any]], wanted: Callable[[str], bool], *, absent: Any
) -> list[str]:
    """Keys that are wanted and not of the same value everywhere, in the order of a study file.

    Args:
        flat: Keys and values of study files.
        wanted: Says of a key whether it matters.
        absent: The value of a key that a study file does not have.
    """
    keys = dict.fromkeys(key for own in flat for key in own if wanted(key))
    return [
        key
        for key in keys
        if any(own.get(key, absent) != flat[0].get(key, absent) for own in flat)
    ]


def _matters(key: str) -> bool:
    return not (key.startswith(_NO_MATTER) or key.endswith(_SEED))


def _said(parts: dict[str, Any]) -> str:
    """Keys and values; of keys of the same section, the first alone says which."""
    said: list[str] = []
    section = ""
    for key, value in parts.items():
        short = key.removeprefix(section) if section else key
        said.append(f"no {short}" if value is None else f"{short}={value}")
        section = key[: key.rindex(".") + 1]
    return ", ".join(said)
