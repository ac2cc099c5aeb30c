"""The command that takes a found network out of a run."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape

from optuna_stitch.cli_options import FolderOption, StudyArgument, open_run

# The command imports what it needs itself: torch and timm take seconds, which the help should
# not cost.


class FormatChoice(str, Enum):
    """What a network is exported as."""

    python = "python"
    program = "program"
    onnx = "onnx"
    all = "all"


def export(
    study: StudyArgument,
    trial: Annotated[int, typer.Option(help="Number of the trial.", min=0)],
    to: Annotated[Path, typer.Option(help="Folder to write into.")],
    formats: Annotated[
        Optional[list[FormatChoice]],  # noqa: UP045
        typer.Option(
            "--format",
            help="Code and weights (the default), a program for torch.export.load, or ONNX; may "
            "be repeated.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the files of an earlier export.")
    ] = False,
    push: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Repository on the Hugging Face Hub to upload to.", metavar="USER/NAME"),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public.")
    ] = False,
    folder: FolderOption = None,
) -> None:
    """Export one trial's network, to be loaded without this package, with its model card."""
    opened = open_run(study, folder)
    from optuna_stitch.exporting import export_trial

    written = export_trial(
        opened,
        trial,
        to,
        formats=[choice.value for choice in formats or [FormatChoice.python]],
        force=force,
        push=push,
        private=not public,
        command=shlex.join(["optuna-stitch", *sys.argv[1:]]),
        show_progress_bar=True,
    )
    out = Console()
    for path in sorted(written.iterdir()):
        out.print(f"{path}", highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"Trial {trial} is in {escape(str(written))}; README.md says how to load it.",
        highlight=False,
        soft_wrap=True,
    )
    if push is not None:
        out.print(f"It is on the hub as {push}.", highlight=False, markup=False, soft_wrap=True)
