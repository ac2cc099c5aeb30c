"""Commands that go on from a report: pick a network, export it, compare searches."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

from optuna_stitch.cli.options import (
    DeviceOption,
    FolderOption,
    StudyArgument,
    open_run,
    user_path,
)
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.progress import console, results

# Commands import what they need themselves: torch and timm take seconds, which the help should
# not cost.


class FormatChoice(str, Enum):
    """What a network is exported as."""

    python = "python"
    program = "program"
    onnx = "onnx"
    onnx_float16 = "onnx-float16"
    onnx_int8 = "onnx-int8"
    openvino = "openvino"
    tensorrt = "tensorrt"
    coreml = "coreml"
    all = "all"


def export(
    study: StudyArgument,
    trial: Annotated[int, typer.Option(help="Number of the trial.", min=0)],
    to: Annotated[
        Path, typer.Option(help="Folder to write into.", metavar="PATH", parser=user_path)
    ],
    formats: Annotated[
        Optional[list[FormatChoice]],  # noqa: UP045
        typer.Option(
            "--format",
            help="Code and weights (the default), a program for torch.export.load, ONNX, all of "
            "these, or a format for a certain target; may be repeated.",
        ),
    ] = None,
    max_drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Refuse files that lose more points of accuracy, or mean IoU, on the validation "
            "images.",
            metavar="POINTS",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the files of an earlier export.")
    ] = False,
    finished: Annotated[
        bool, typer.Option("--finished", help="The network as `finish` trained it.")
    ] = False,
    push: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Repository on the Hugging Face Hub to upload to.", metavar="USER/NAME"),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public.")
    ] = False,
    folder: FolderOption = None,
    device: DeviceOption = None,
) -> None:
    """Export one trial's network, to be loaded without this package, with its model card."""
    written = open_run(study, folder, device=device).export(
        trial,
        to,
        formats=[choice.value for choice in formats or [FormatChoice.python]],
        force=force,
        push=push,
        private=not public,
        max_drop=max_drop,
        command=shlex.join(["optuna-stitch", *sys.argv[1:]]),
        finished=finished,
        show_progress_bar=True,
    )
    from optuna_stitch.export.proof import proof_cells, proof_note, read_proofs, unproven_note
    from optuna_stitch.report.tables import figures_table

    out = results()
    proofs = read_proofs(written)
    if proofs:
        head, rows = proof_cells(proofs)
        table = figures_table(*head, words=2)
        for row in rows:
            table.add_row(*row)
        out.print(table)
        out.print(proof_note(proofs).replace("*", ""), highlight=False, markup=False)
    left = unproven_note([choice.value for choice in formats or () if choice.value != "all"])
    if left:
        out.print(left, highlight=False, markup=False)
    for path in sorted(written.iterdir()):
        out.print(f"{path}", highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"Trial {trial} is in {escape(str(written))}; README.md says how to load it.",
        highlight=False,
        soft_wrap=True,
    )
    if push is not None:
        out.print(f"It is on the hub as {push}.", highlight=False, markup=False, soft_wrap=True)


def pick(
    context: typer.Context,
    study: StudyArgument,
    knee: Annotated[
        bool, typer.Option("--knee", help="The network from which on more cost pays less.")
    ] = False,
    fixed_cost: Annotated[bool, typer.Option("--fixed-cost", help="Leave cascades out.")] = False,
    folder: FolderOption = None,
) -> None:
    """Pick a network of the report: --max-macs 5e7 --min-accuracy 0.93.

    Bounds are --max- or --min- and a figure of the report: accuracy, macs, worst-macs, parameters,
    and the study's other objectives. Picked is the best network within them; the cheapest, where
    all of them say how good it must be.
    """
    bounds = _bounds(context.args)
    opened = open_run(study, folder)
    from optuna_stitch.run.report import export_command

    picked = opened.pick(knee=knee, fixed_cost=fixed_cost, **bounds)
    out = results()
    out.print(str(picked), highlight=False, markup=False, soft_wrap=True)
    said = "It is a baseline; `export` writes the study's trials only."
    if picked.trial is not None:
        command = export_command(opened.folder).format(trial=picked.trial)
        said = f"Export it: {command}{' --finished' if picked.row.get('finished') else ''}"
    out.print(said, highlight=False, markup=False, soft_wrap=True)


def _bounds(given: list[str]) -> dict[str, float]:
    """Bounds from what is left of a command line: ``--max-macs 5e7``, ``--max-macs=5e7``."""
    words = [part for word in given for part in word.split("=", maxsplit=1)]
    bounds: dict[str, float] = {}
    for name, value in zip_longest(words[::2], words[1::2]):
        if not name.startswith(("--max-", "--min-")):
            raise ConfigError(f"There is no option {name}. Bounds are --max-FIGURE, --min-FIGURE.")
        try:
            bounds[name.removeprefix("--").replace("-", "_")] = float(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"The option {name} needs a number, not {value or 'nothing'}."
            ) from None
    return bounds


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs.", metavar="RUN", parser=user_path)
    ],
    to: Annotated[
        Path,
        typer.Option(
            help="Folder to write page, plot and table into.", metavar="PATH", parser=user_path
        ),
    ] = Path("comparison"),
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that are no earlier comparison.")
    ] = False,
) -> None:
    """Compare searches: fronts, hypervolumes, and their spread over seeds.

    Runs whose study files say the same but for seeds are a group. All figures are on validation
    images, for tuning a search; claims about networks are the report's.
    """
    with console.status("Loading torch and timm"):
        import optuna

        from optuna_stitch.report.comparison_page import (
            FILES,
            rich_table,
            sentences,
            write_comparison,
        )
        from optuna_stitch.run.compare import compare_runs, open_searched

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with console.status("Reading studies"):
        compared = compare_runs(open_searched(runs))
    with console.status("Drawing"):
        write_comparison(compared, to, force=force)
    out = results()
    out.print(rich_table(compared))
    for said in sentences(compared):
        out.print(said, highlight=False, markup=False)
    out.print(f"\nThe page is {to / FILES[0]}", soft_wrap=True, markup=False)
