"""What several commands take: a study file or a run, and how it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from optuna_stitch.run.study_file import load_study_file
from optuna_stitch.utils.progress import console

if TYPE_CHECKING:
    from optuna_stitch.run.run import Run

StudyArgument = Annotated[
    Path, typer.Argument(help="A study file, or the folder of a run.", metavar="STUDY")
]

FolderOption = Annotated[
    # typer evaluates this at run time, on Python 3.10 too
    Optional[Path],  # noqa: UP045
    typer.Option("--run", help="Folder of the run; runs/<name of the study file>, if absent."),
]


def open_run(study: Path, folder: Path | None, smoke: bool = False) -> Run:
    """Open a run's folder, or begin or go on with the run of a study file.

    Args:
        study: Either of them.
        folder: Where the run is kept, if not in its usual place.
        smoke: Whether to try the study file out; see `config.smoke`.
    """
    if not study.is_dir():
        load_study_file(study)  # its errors should not wait for the imports below
    with console.status("Loading torch and timm"):
        import optuna

        from optuna_stitch.run.run import Run

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Run.open(study) if study.is_dir() else Run.start(study, folder, tiny=smoke)
