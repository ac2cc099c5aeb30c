"""The command that compares runs: which search gets how far, and how soon."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from optuna_stitch.errors import RunError
from optuna_stitch.progress import console

if TYPE_CHECKING:
    from optuna_stitch.results.comparing.searched import Searched


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN")],
    to: Annotated[Path, typer.Option(help="Folder to write page, plot and table into.")] = Path(
        "comparison"
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that are no earlier comparison.")
    ] = False,
) -> None:
    """Compare searches: fronts, hypervolumes, and their spread over seeds.

    Runs whose study files say the same but for seeds are a group. All figures are on validation
    images, for tuning a search; claims about networks are the report's.
    """
    folders = _distinct(runs)
    with console.status("Loading torch and timm"):
        import optuna

        from optuna_stitch.results.comparing import comparison as comparing
        from optuna_stitch.results.comparing.report import (
            FILES,
            rich_table,
            sentences,
            write_comparison,
        )

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with console.status("Reading studies"):
        compared = comparing.compare([_open(folder) for folder in folders])
    with console.status("Drawing"):
        write_comparison(compared, to, force=force)
    out = Console()
    out.print(rich_table(compared))
    for said in sentences(compared):
        out.print(said, highlight=False, markup=False)
    out.print(f"\nThe page is {to / FILES[0]}", soft_wrap=True, markup=False)


def _distinct(folders: list[Path]) -> list[Path]:
    """The folders; one that is there twice would count twice."""
    real = [os.path.realpath(folder) for folder in folders]
    for place, folder in enumerate(folders):
        if real[place] in real[:place]:
            raise RunError(f"The run {folder} is there twice. Name each run once.")
    return folders


def _open(folder: Path) -> Searched:
    import optuna

    from optuna_stitch.results.comparing.searched import Searched
    from optuna_stitch.run import Run

    run = Run.open(folder)
    try:
        study = optuna.load_study(study_name=run.name, storage=run.storage)
    except KeyError as error:
        raise RunError(
            f"{folder} has no study yet; run `optuna-stitch search {folder}` first, or leave it "
            "out."
        ) from error
    return Searched(folder.as_posix(), run.study_file, study)
