"""Which study files ask for the same search, and where others differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optuna_stitch.run.schema import StudyFile
from optuna_stitch.run.study_file import flatten
from optuna_stitch.utils.errors import StudyError
from optuna_stitch.utils.files import content_key

Named = tuple[str, StudyFile]

# Keys that change no trial's figures: where things are, how long a search goes on, and how fast.
# Whether files in other places are other files, the parents' own figures tell.
_PLACES = (
    "parents.a.checkpoint",
    "parents.b.checkpoint",
    "data.root",
    "data.class_map",
    "data.train.root",
    "data.train.class_map",
    "data.val.root",
    "data.val.class_map",
)

_NO_MATTER = (
    *_PLACES,
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
_SAME = ("study.objectives", "parents.", "data.dataset", "data.val.dataset", "data.val.split")

_SEED = ".seed"

_CONSTRAINTS = "study.constraints."

# A name of more parts than this is longer than it helps.
_LONGEST = 3

_ABSENT = object()


def check_comparable(first: Named, second: Named, *, places: bool) -> None:
    """Raise if two runs are about different things.

    Args:
        first: Name and study file of a run.
        second: The same of another.
        places: Whether files in different places are different files; they may be copies.

    Raises:
        StudyError: If objectives, parents or data differ.
    """
    flat = [flatten(study_file) for _, study_file in (first, second)]
    keys = _differing(
        flat, lambda key: places if key in _PLACES else key.startswith(_SAME), absent=None
    )
    if keys:
        here, there = (own.get(keys[0]) for own in flat)
        raise StudyError(
            f"{second[0]} and {first[0]} cannot be compared: {keys[0]} is {there!r} in the one "
            f"and {here!r} in the other. Compare runs of the same parents, data and objectives; "
            "leave one of them out."
        )


def seeds_of(study_file: StudyFile) -> tuple[tuple[str, Any], ...]:
    """All seeds of a study file, with their keys."""
    return tuple((key, value) for key, value in flatten(study_file).items() if _is_seed(key))


def group_names(runs: Sequence[Named]) -> list[str]:
    """A name for each run's group: equal for runs of the same study file but for seeds.

    Args:
        runs: Name and study file of each.

    Returns:
        The keys in which the groups differ, ``study.sampler.name=nsga2, population_size=50``;
        where that would be too long, ``like`` and the first run's name.
    """
    flat = [
        {key: value for key, value in flatten(study_file).items() if _matters(key)}
        for _, study_file in runs
    ]
    contents = [content_key(own) for own in flat]
    if len(set(contents)) == 1:
        return ["the same study file"] * len(runs)
    # a section that is null is a key that one with keys of its own does not have
    differing = _differing(flat, _matters, absent=_ABSENT)
    parts = [{key: own[key] for key in differing if key in own} for own in flat]
    if max(map(len, parts)) > _LONGEST:
        first = {content: runs[contents.index(content)][0] for content in contents}
        return [f"like {first[content]}" for content in contents]
    return [_said(own or dict.fromkeys(differing)) for own in parts]


def uneven(runs: Sequence[Named]) -> list[str]:
    """What gives some runs other networks to choose from than others, in sentences.

    Args:
        runs: Name and study file of each.
    """
    flat = [flatten(study_file) for _, study_file in runs]
    differing = _differing(flat, lambda key: key.startswith(_CONSTRAINTS), absent=None)
    if not differing:
        return []
    return [
        f"The runs have different bounds ({', '.join(differing)}): some may not use networks "
        "that others may, and are measured by those all the same."
    ]


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


def _is_seed(key: str) -> bool:
    return key.endswith(_SEED)


def _matters(key: str) -> bool:
    return not (key.startswith(_NO_MATTER) or _is_seed(key))


def _said(parts: dict[str, Any]) -> str:
    """Keys and values; of keys of the same section, the first alone says which."""
    said: list[str] = []
    section = ""
    for key, value in parts.items():
        short = key.removeprefix(section) if section else key
        said.append(f"no {short}" if value is None else f"{short}={value}")
        section = key[: key.rindex(".") + 1]
    return ", ".join(said)
