"""Commands that look at networks before there is a run: what there is, what fits, how to begin."""

from __future__ import annotations

import os
import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

from optuna_stitch.cli.options import DeviceOption, user_path
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.progress import console, results

# Commands import what they need themselves: torch and timm take seconds, which the help should
# not cost.


class PointsChoice(str, Enum):
    """Which points may be matched, as study files name them."""

    auto = "auto"
    all = "all"
    dominators = "dominators"
    blocks = "blocks"


ParentA = Annotated[
    str, typer.Argument(help="Name of parent a.", metavar="A", parser=os.path.expanduser)
]

ParentB = Annotated[
    str, typer.Argument(help="Name of parent b.", metavar="B", parser=os.path.expanduser)
]


def init(
    a: ParentA,
    b: ParentB,
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File to write; A--B.yaml, if absent.", metavar="PATH", parser=user_path
        ),
    ] = None,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder of your own images, with a folder for each class.",
            metavar="PATH",
            parser=user_path,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
) -> None:
    """Write a commented study file for two networks."""
    path = to or Path(_pair_name(a, b, ".yaml"))
    if path.exists() and not force:
        raise ConfigError(
            f"{path} is there already. Name another file with `--to`, or write over it with "
            "`--force`."
        )
    with console.status("Loading torch and timm"):
        from optuna_stitch.run.template import study_file_for

    path.write_text(study_file_for(a, b, data=data, folder=path.parent), encoding="utf-8")
    out = results()
    names, file = shlex.join([a, b]), shlex.quote(str(path))
    out.print(
        f"{path} is written: see that it names your weights and images. Then:\n"
        f"  optuna-stitch inspect {names}    # where they can be stitched\n"
        f"  optuna-stitch run {file} --smoke    # all of it once, on random images\n"
        f"  optuna-stitch run {file}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def zoo(
    pattern: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Names, with wildcards: '*vit_tiny*', 'torchvision/resnet*'."),
    ] = None,
    csv: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File to write the networks into, every figure in full.",
            metavar="PATH",
            parser=user_path,
        ),
    ] = None,
) -> None:
    """List networks and whether they can be stitched; without a pattern, their families."""
    if pattern is None and csv is not None:
        raise typer.BadParameter("--csv needs a pattern that says which networks, '*vit_tiny*'")
    with console.status("Loading torch and timm"):
        from optuna_stitch.models.zoo import list_families, list_networks
        from optuna_stitch.report.inspection import (
            families_table,
            survey,
            survey_tables,
            write_survey,
        )

    out = results()
    if pattern is None:
        families = list_families()
        out.print(families_table(families))
        out.print(
            f"{sum(map(len, families.values())):,} networks. Choose some by a part of their name "
            "to see their sizes and points: optuna-stitch zoo '*vit_tiny*'",
            highlight=False,
        )
        return
    found = survey(list_networks(pattern), show_progress_bar=True)
    for table in survey_tables(found):
        out.print(table)
    if csv is not None:
        write_survey(found, csv)


def inspect(
    a: ParentA,
    b: ParentB,
    points: Annotated[
        PointsChoice, typer.Option(help="Which points may be matched.")
    ] = PointsChoice.auto,
    resize: Annotated[
        bool, typer.Option(help="Whether grids of different size may be matched.")
    ] = True,
    excluded: Annotated[
        bool, typer.Option("--excluded", help="List every value that cannot be a point.")
    ] = False,
    svg: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File to draw the pair into; A--B.svg, if absent.",
            metavar="PATH",
            parser=user_path,
        ),
    ] = None,
) -> None:
    """Show where two networks can be stitched: their matches, in a table and in a picture."""
    with console.status("Loading torch and timm"):
        from optuna_stitch.diagram.drawing import draw_pair
        from optuna_stitch.models.parent import load_parent
        from optuna_stitch.report.inspection import describe, excluded_table, matches_table
        from optuna_stitch.stitching.matching import candidates_of, match

    with console.status("Capturing both networks"):
        graphs = {side: load_parent(name).graph() for side, name in (("a", a), ("b", b))}
    matches = match(graphs["a"], graphs["b"], points=points.value, resize=resize)
    kind = candidates_of(matches, points.value)
    picture = svg or Path(_pair_name(a, b, ".svg"))
    draw_pair(graphs["a"], graphs["b"], matches, points=kind).write(picture)
    out = results()
    out.print(matches_table(matches))
    if any(graph.excluded for graph in graphs.values()):
        out.print(excluded_table(graphs, every=excluded))
    for side, graph in graphs.items():
        out.print(f"{side}  {escape(describe(graph))}", highlight=False, soft_wrap=True)
    out.print(f"{len(matches)} matches; the picture is {escape(str(picture))}", soft_wrap=True)
    if graphs["a"].classes != graphs["b"].classes:
        out.print(
            "They tell different numbers of classes apart: stitched so, they have two jobs, and "
            "networks answer both (`data: {a: ..., b: ...}` in a study file). For one job both "
            "must tell the same classes apart: give them one `num_classes`, and weights for it."
        )


def advise(
    networks: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Networks: resnet50, 'resnet*', resnet50=weights.safetensors, or what the study "
            "file calls them; its parents, if none is named.",
            metavar="NETWORK",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="A study file, the folder of a run, a folder of images with one for each class, "
            "or the name of a data set.",
            metavar="STUDY",
        ),
    ] = "",
    images: Annotated[int, typer.Option(help="Validation images to ask about.", min=20)] = 400,
    fit_images: Annotated[
        int, typer.Option(help="Train images to fit stitches on.", min=10)
    ] = 200,
    depths: Annotated[
        int, typer.Option(help="At how many depths the best pairs are crossed.", min=1)
    ] = 4,
    crossed: Annotated[
        int, typer.Option(help="How many pairs are crossed, the most promising first.", min=0)
    ] = 3,
    csv: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File to write the pairs into, every figure in full.",
            metavar="PATH",
            parser=user_path,
        ),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Ask a few hundred images whether pairs of networks are worth a study.

    Says how far their errors overlap, what crossing costs at a few depths, and what cascades
    reach. Of more than two networks it ranks all pairs.
    """
    if not data:
        raise ConfigError("Say which images: `--data`, a study file or a folder of images.")
    with console.status("Loading torch and timm"):
        from optuna_stitch.report.advice import advice_tables
        from optuna_stitch.run.advise import advise_on

    found = advise_on(
        networks or [],
        data,
        images=images,
        fit_images=fit_images,
        depths=depths,
        crossed=crossed,
        device=device,
        show_progress_bar=True,
    )
    out = results()
    for table in advice_tables(found):
        out.print(table)
    out.print(found.sentence, highlight=False, markup=False)
    if csv is not None:
        found.table().to_csv(csv, index=False)


def _pair_name(a: str, b: str, suffix: str) -> str:
    """Name of a file about two networks, in the current folder."""
    return f"{a}--{b}{suffix}".replace("/", "-").lstrip("-")
