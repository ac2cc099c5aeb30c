"""Latencies of another device: write what times them there, and take in what it wrote."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from optuna_stitch.cli.options import (
    DeviceOption,
    FolderOption,
    StudyArgument,
    open_run,
    user_path,
)
from optuna_stitch.utils.progress import results

app = typer.Typer(no_args_is_help=True, help="Count with the latencies of another device.")


@app.command("export")
def export_pieces(
    study: StudyArgument,
    to: Annotated[
        Path, typer.Argument(help="Folder to write into.", metavar="FOLDER", parser=user_path)
    ],
    folder: FolderOption = None,
    device: DeviceOption = None,
) -> None:
    """Write the supernetwork in pieces, with a script that times them by onnxruntime."""
    script = open_run(study, folder, device=device).export_latency(to)
    results().print(
        f"Take {to} to the device, run there: python {script.name}\n"
        f"It needs onnxruntime and numpy, and writes latency.json; then: optuna-stitch latency "
        f"import {shlex.quote(str(study))} latency.json",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command("import")
def import_table(
    study: StudyArgument,
    table: Annotated[
        Path, typer.Argument(help="What the script wrote.", metavar="TABLE", parser=user_path)
    ],
    folder: FolderOption = None,
) -> None:
    """Take in the times that a device measured; the search counts with them."""
    latencies = open_run(study, folder).import_latency(table)
    results().print(
        f"latency_ms counts with {len(latencies.milliseconds)} operations, for "
        f"{latencies.batch_size} image{'s' if latencies.batch_size > 1 else ''} at once, of "
        f"{latencies.device}.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
