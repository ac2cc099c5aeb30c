"""Put what a report found into its study, where optuna-dashboard shows it."""

from __future__ import annotations

import csv
import io
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna_dashboard import get_note, save_note, save_plotly_graph_object

from optuna_stitch.cache import content_key
from optuna_stitch.results.dashboard.notes import study_note, trial_note
from optuna_stitch.results.dashboard.shelf import FinishedTrial, Shelf
from optuna_stitch.results.judging.front import STITCHED, Entry, Front
from optuna_stitch.results.pictures.subnetwork_drawing import draw_subnetwork
from optuna_stitch.search.study import name_metrics
from optuna_stitch.stitching.supernetwork import Supernetwork

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

# The last line of a note of ours, which is not shown: a definition that nothing refers to.
_SIGNATURE = "\n\n[//]: # (by optuna-stitch, {}; a note that is edited stays as it is)\n"
# Suits light and dark pages alike, and cards that are narrow; the dashboard has no template.
_GREY = {"gridcolor": "rgba(128, 128, 128, 0.25)", "zerolinecolor": "rgba(128, 128, 128, 0.5)"}
_LOOK = {
    "paper_bgcolor": "rgba(0, 0, 0, 0)",
    "plot_bgcolor": "rgba(0, 0, 0, 0)",
    "font": {"color": "#808a94"},
    "margin": {"l": 60, "r": 20, "t": 50, "b": 40},
    "xaxis": {**_GREY, "automargin": True},
    "yaxis": {**_GREY, "automargin": True},
}
_LEGEND = {"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0}


def publish(
    study: optuna.Study,
    front: Front,
    supernetwork: Supernetwork,
    store: ArtifactStore,
    *,
    figures: Mapping[str, go.Figure],
    summary: str,
    command: str,
) -> list[str]:
    """Write notes, figures and drawings into a study, in place of those written before.

    The study gets a note and figures; every stitched network on the front a note, its drawing and
    its figures as a table. Trials that were on the front before lose theirs. What people write
    stays: a note that is not ours, or that was edited since, is left as it is, and so are the
    files of its trial if that is no longer on the front. A note that is emptied is ours again.

    Samplers that read a study's attributes at every trial read all of this too.

    Args:
        study: What was reported on.
        front: The report.
        supernetwork: What the study searched.
        store: Where files are put; `serve_dashboard` needs the same.
        figures: By their id, of letters, digits, ``-``, ``_`` and ``.``, by which they are sorted.
            Their templates, sizes and digits beyond the fifth are left out.
        summary: What was found, in one sentence.
        command: The shell command that exports a trial, with ``{trial}`` for its number.

    Returns:
        Whose notes were left as people wrote them: ``study``, ``trial 12``.

    Raises:
        ArtifactError: If the store fails.
        StudyError: If a genotype is not one of this supernetwork.
    """
    if study.metric_names != front.objectives:
        name_metrics(study, front.objectives)
    for name, figure in figures.items():
        save_plotly_graph_object(study, _slim(figure), graph_object_id=name)
    left = []
    if not _write_note(study, study_note(front, summary, _page_of(study))):
        left.append("study")
    shelf = Shelf(study, store)
    shown = set()
    for entry in front.front:
        if entry.kind != STITCHED or entry.trial is None or entry.genotype is None:
            continue
        trial = FinishedTrial.numbered(study, entry.trial)
        title = f"{entry.name} of {study.study_name}"
        drawing = draw_subnetwork(supernetwork, entry.genotype, title=title)
        address = shelf.put(trial, "svg", str(drawing))
        shelf.put(trial, "csv", _csv(entry))
        export = command.replace("{trial}", str(entry.trial))
        note = trial_note(entry, front, drawing=address, command=export)
        if not _write_note(trial, note):
            left.append(entry.name)
        shown.add(entry.trial)
    for trial in shelf.trials():
        if trial.number not in shown:
            if _write_note(trial, ""):
                shelf.clear(trial)
            else:
                left.append(f"trial {trial.number}")
    return left


def _write_note(place: optuna.Study | FinishedTrial, text: str) -> bool:
    """Write a note, or clear it, unless a person wrote what is there; whether it is ours."""
    old = get_note(place)
    if old and old != _signed(old.rpartition(_SIGNATURE.partition("{")[0])[0]):
        return False
    new = _signed(text) if text else ""
    if new != old:
        save_note(place, new)
    return True


def _signed(text: str) -> str:
    return text + _SIGNATURE.format(content_key(text))


def _page_of(study: optuna.Study) -> Callable[[int], str]:
    return lambda number: f"/dashboard/studies/{study._study_id}/trials?numbers={number}"


def _csv(entry: Entry) -> str:
    """Every figure of a network with its interval, named as in the table of the report."""
    rows: list[tuple[str, float, Any, Any]] = []
    for name, value in entry.test.items():
        rows.append((f"test_{name}", value, *entry.intervals.get(name, ("", ""))))
    rows += [(f"val_{name}", value, "", "") for name, value in entry.values.items()]
    if "parameters" not in entry.test:
        rows.append(("parameters", entry.parameters, "", ""))
    text = io.StringIO()
    csv.writer(text).writerows([("figure", "value", "low", "high"), *rows])
    return text.getvalue()


def _slim(figure: go.Figure) -> go.Figure:
    """A figure without what makes it large, as it suits the dashboard's pages."""
    spec = _rounded(figure.to_plotly_json())
    kept = {k: v for k, v in spec["layout"].items() if k not in ("template", "width", "height")}
    layout = {**kept, "template": {"layout": _LOOK}, "legend": _LEGEND}
    return go.Figure(spec["data"], layout)


def _rounded(value: Any) -> Any:
    """The same with five digits, and arrays as lists, which any version of plotly.js reads."""
    if isinstance(value, dict) and "bdata" in value:  # how plotly 6 spells an array
        array = np.frombuffer(b64decode(value["bdata"]), value["dtype"])
        shape = [int(length) for length in str(value.get("shape", len(array))).split(",")]
        return _rounded(array.reshape(shape))
    if isinstance(value, dict):
        return {key: _rounded(held) for key, held in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_rounded(held) for held in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}")
    return value.item() if isinstance(value, np.generic) else value
