"""Which study files may go on with a run that another one began."""

from __future__ import annotations

from pathlib import Path

from optuna_stitch.config import StudyFile
from optuna_stitch.errors import RunError
from optuna_stitch.study_file import flatten

# What may change while a run goes on; anything else makes it another run.
_CHANGEABLE = {
    "study.trials",
    "study.batch",
    "study.grace",
    "evaluation.batch_size",
    "evaluation.memory",
    "evaluation.remember",
}
# Sections of it that may change.
_CHANGEABLE_SECTIONS = ("study.sampler", "study.steering", "report")


def refuse_another(new: StudyFile, old: StudyFile, path: Path, folder: Path) -> None:
    """Raise if a run's folder belongs to a study file that says something else."""
    before, after = flatten(old), flatten(new)
    differing = sorted(
        key
        for key in {*before, *after} - _CHANGEABLE
        if before.get(key) != after.get(key) and not key.startswith(_CHANGEABLE_SECTIONS)
    )
    if differing:
        shown = ", ".join(
            f"{key} ({before.get(key)!r} there, {after.get(key)!r} here)" for key in differing[:3]
        )
        raise RunError(
            f"The folder {folder} belongs to another study file than {path}: they differ in "
            f"{shown}{' and more' if len(differing) > 3 else ''}. Choose another folder with "
            "`--run`, or remove this one."
        )
