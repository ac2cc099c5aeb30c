"""Write what people look at of a front into a run's folder: report, tables, pictures."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
import pandas as pd
import plotly.graph_objects as go
import timm
import torch

from optuna_stitch.data.load import Data
from optuna_stitch.data.pair import DataPair
from optuna_stitch.diagram.drawing import draw_subnetwork
from optuna_stitch.evaluation.deviation import Deviation
from optuna_stitch.evaluation.metrics import RETAINED, Cost, quality_metric, resolve_metrics
from optuna_stitch.report.document import Pictures, write_report
from optuna_stitch.report.entries import Entries, Entry
from optuna_stitch.report.front import Front
from optuna_stitch.report.hypervolume import hypervolume_over_trials
from optuna_stitch.report.interactive import draw_front, draw_history, draw_switches
from optuna_stitch.report.picking import Pick, pick
from optuna_stitch.report.plots import (
    gained_by,
    switch_shares,
    write_front,
    write_gained,
    write_history,
    write_switches,
)
from optuna_stitch.run.folder import RunFolder
from optuna_stitch.run.schema import TaskConfig
from optuna_stitch.search.objective import DEVIATION
from optuna_stitch.stitching.genotype import SIDES
from optuna_stitch.storage.open import hide_password
from optuna_stitch.utils.errors import RunError, StudyError, first_line
from optuna_stitch.utils.files import write_text

# Where a run keeps the drawings of the front's networks.
_NETWORKS = "networks"

# Where it keeps every figure of the front.
_TABLE = "front.csv"


def write_results(run: RunFolder, front: Front) -> dict[str, go.Figure]:
    """Write all that is to be seen of a front into a run's folder.

    Args:
        run: The run.
        front: What was found.

    Returns:
        The interactive figures, by name.
    """
    folder, supernetwork, data = run.folder, run.supernetwork, run.data
    title = f"{run.name}: {supernetwork.title}"
    write_text(folder / _TABLE, front.table().to_csv(index=False))
    _write_by_image(front, data, folder)
    history, shares = _history(run.study), switch_shares(front, supernetwork)
    figures = {"front": draw_front(front, title), "switches": draw_switches(shares)}
    if history is not None:
        figures["history"] = draw_history(history)
        write_history(history, folder / "history.png")
    page = "\n".join(
        figure.to_html(full_html=False, include_plotlyjs=place == 0)
        for place, figure in enumerate(figures.values())
    )
    write_text(folder / "front.html", _PAGE.format(title=title, page=page))
    for suffix in ("png", "svg"):
        write_front(front, title, folder / f"front.{suffix}")
    write_switches(shares, folder / "switches.png")
    stitched = front.stitched_fronts
    pictures = Pictures(
        front="front.png",
        history=None if history is None else "history.png",
        switches="switches.png" if stitched else None,
        gained=_write_gained(front, data, folder) if isinstance(data, Data) else None,
        networks=_draw_networks(stitched, folder),
    )
    quoted = shlex.quote(str(folder))
    text = write_report(
        front,
        pictures,
        title=title,
        facts=_facts(run),
        commands=[
            f"optuna-stitch dashboard {quoted}     # look at every trial",
            f"optuna-stitch search {quoted} --trials 500   # go on searching",
            f"optuna-stitch report {quoted}        # make this report again",
        ],
        export=export_command(folder),
    )
    write_text(folder / "report.md", text)
    return figures


def written(folder: Path) -> list[Path]:
    """Reports, tables and pictures that lie in a run's folder.

    Args:
        folder: The run's.
    """
    suffixes = (".md", ".html", ".csv", ".png", ".svg")
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes)


def pick_network(
    run: RunFolder, bounds: Mapping[str, float], *, knee: bool, fixed_cost: bool
) -> Pick:
    """Pick a network of a run's report; see `pick`.

    Args:
        run: The run.
        bounds: By name, as for `pick`.
        knee: Whether to pick the knee.
        fixed_cost: Whether cascades are left out.

    Raises:
        RunError: If there is no report yet, or its table is broken.
    """
    path = run.folder / _TABLE
    if not path.is_file():
        raise RunError(
            f"{run.folder} has no report to pick from yet. Make it by: "
            f"optuna-stitch report {shlex.quote(str(run.folder))}"
        )
    try:
        table = pd.read_csv(path)
        _ = table["on_front"]
    except (ValueError, KeyError) as error:
        raise RunError(
            f"{path} is no table of a report ({first_line(error)}). Make it again by: "
            f"optuna-stitch report {shlex.quote(str(run.folder))}"
        ) from error
    metrics = resolve_metrics(run.study_file.study.objectives)
    costs = [metric.name for metric in metrics if isinstance(metric, Cost)]
    quality = quality_metric(segments="test_mean_iou" in table)
    return pick(
        table,
        bounds,
        metric=(RETAINED if run.study_file.two_jobs else quality).name,
        cost=costs[0] if costs else "macs",
        knee=knee,
        fixed_cost=fixed_cost,
    )


def _write_by_image(front: Front, data: Data | DataPair, folder: Path) -> None:
    """Write how good networks are at each class, and their raw predictions; of each question."""
    tables: list[tuple[str, Entries, Data]] = []
    if isinstance(data, DataPair):
        tables = [(f"_{side}", front.sides[side], data.of(side)) for side in SIDES]
    else:
        tables = [("", front, data)]
    for suffix, entries, own in tables:
        classes = entries.by_class(own.class_names)
        write_text(folder / f"classes{suffix}.csv", classes.to_csv())
        predictions = entries.predictions()
        if predictions is not None:
            write_text(folder / f"predictions{suffix}.csv", predictions.to_csv())


def _images(data: Data | DataPair) -> str:
    if isinstance(data, DataPair):
        return "; ".join(f"{side}: {_images(data.of(side))}" for side in SIDES)
    return f"{len(data.train)} train, {len(data.val)} val, {len(data.test)} test"


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What the figures of a report come from, as (what, which)."""
    supernetwork, data, config = run.supernetwork, run.data, run.study_file
    study = run.study
    trials = study.get_trials(deepcopy=False)
    finished = sum(trial.state.is_finished() for trial in trials)
    return [
        *(
            (f"parent {side}", f"{parent.name}, input {parent.view.input_size}")
            for side, parent in supernetwork.parents.items()
        ),
        ("data", "; ".join(dict.fromkeys(map(_source, config.data.tasks.values())))),
        ("images", _images(data)),
        ("stitches", f"{len(supernetwork.switches)} at {len(supernetwork.matches)} matches"),
        *(
            []
            if supernetwork.two_jobs
            else [("ensemble", "mean of the parents' class probabilities")]
        ),
        ("supernetwork", supernetwork.content_hash()),
        ("study", f"{study.study_name} in {hide_password(run.storage_url)}"),
        ("trials", str(finished)),
        ("sampler", config.study.sampler.name),
        *_precision(study),
        ("versions", versions()),
    ]


def _precision(study: optuna.Study) -> list[tuple[str, str]]:
    """How exact the search's figures are, where they were computed in 16 bits."""
    known = study.user_attrs.get(DEVIATION)
    if known is None:
        return []
    return [("precision", f"searched with {Deviation(**known).text}; this report: float32")]


def _source(config: TaskConfig) -> str:
    """What the data of a question are called."""
    name = config.dataset or str(config.labels or config.root or "folders of images")
    return f"{name}, {config.column}" if config.column else name


def export_command(folder: Path) -> str:
    """The command that exports a trial of a run, with ``{trial}`` for its number.

    Args:
        folder: The run's.
    """
    return (
        f"optuna-stitch export {shlex.quote(str(folder))} --trial {{trial}} --to trial-{{trial}}"
    )


def versions() -> str:
    """The versions of all that figures depend on."""
    from optuna_stitch import __version__

    return (
        f"optuna_stitch {__version__}, optuna {optuna.__version__}, torch {torch.__version__}, "
        f"timm {timm.__version__}, Python {platform.python_version()}"
    )


def _history(study: optuna.Study) -> pd.DataFrame | None:
    """The hypervolume over the trials; None where none of them is within the constraints."""
    try:
        return hypervolume_over_trials(study)
    except StudyError:
        return None


def _draw_networks(entries: Sequence[Entry], folder: Path) -> dict[int, str]:
    """Draw every network, and remove drawings of an earlier report."""
    (folder / _NETWORKS).mkdir(exist_ok=True)
    drawn: dict[int, str] = {}
    for entry in entries:
        assert entry.trial is not None
        assert entry.subnetwork is not None
        drawn[entry.trial] = f"{_NETWORKS}/trial-{entry.trial}.svg"
        drawing = draw_subnetwork(entry.subnetwork, title=entry.name)
        drawing.write(folder / drawn[entry.trial])
    for path in (folder / _NETWORKS).glob("trial-*.svg"):
        if f"{_NETWORKS}/{path.name}" not in drawn.values():
            path.unlink()
    return drawn


def _write_gained(front: Front, data: Data, folder: Path) -> str | None:
    """Write a picture of the images that the headline's network gains, where it gains some."""
    path = folder / "gained.png"
    entry = front.finding.entry
    said = gained_by(front, entry) if entry is not None else None
    if entry is None or said is None or not said.gained:
        path.unlink(missing_ok=True)
        return None
    write_gained(front, entry, said.gained, data.test, path, class_names=data.class_names)
    return path.name


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
{page}
</body>
</html>
"""
