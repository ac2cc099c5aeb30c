"""Write what a report found into its study, where optuna-dashboard shows it."""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from optuna_dashboard.artifact import get_artifact_path

from optuna_stitch.diagram.drawing import draw_subnetwork
from optuna_stitch.report.entries import STITCHED, Entry
from optuna_stitch.report.front import Front
from optuna_stitch.report.wording import answer_text, export_of
from optuna_stitch.search.study import name_metrics
from optuna_stitch.utils.errors import ArtifactError, first_line
from optuna_stitch.utils.files import content_key
from optuna_stitch.utils.text import (
    escape_markdown,
    markdown_table,
    p_value_text,
    percent_text,
    points_text,
)

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

# Stitches that a note names; the drawing has them all.
_STITCHES = 8

# Of costs, where some networks are cascades.
_TWO_FRONTS = (
    ", either at average cost, which counts that cascades cost less for some images, or, without "
    "cascades, at fixed cost"
)

# The smallest p-value that a note states as a number.
_LEAST = 1e-4

# The last line of a note of ours, which is not shown: a definition that nothing refers to.
_SIGNATURE = "\n\n[//]: # (by optuna-stitch, {}; a note that is edited stays as it is)\n"

# The study's attribute that tells the dashboard of a finished trial's file. Optuna's own
# `upload_artifact` writes to the trial, which takes nothing once it is finished; and there is no
# public function that removes a file's record.
_RECORD = "dashboard:artifacts:{trial_id}:{artifact_id}"

_RECORDS = re.compile(r"dashboard:artifacts:(?P<trial_id>\d+):(?P<artifact_id>.+)")

_TYPES = {"svg": "image/svg+xml", "csv": "text/csv"}

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
    store: ArtifactStore,
    *,
    figures: Mapping[str, go.Figure],
    summary: str,
    command: str,
) -> list[str]:
    """Write notes, plots and drawings into a study, in place of those written before.

    The study gets a note and plots; every stitched network on a front gets a note, its drawing
    and its figures as a table. Trials that were on a front before lose theirs. What people write
    stays: a note that is not ours, or that was edited since, is left as it is, and so are the
    files of its trial if that is on no front any more. A note that is emptied is ours again.

    Samplers that read a study's attributes at every trial read all of this too.

    Args:
        study: What was reported on.
        front: The report.
        store: Where files are put; `serve_dashboard` needs the same.
        figures: Plots by their id, of letters, digits, ``-``, ``_`` and ``.``, by which they are
            sorted. Their templates, sizes and digits beyond the fifth are left out.
        summary: What was found, in a sentence or two.
        command: The shell command that exports a trial, with ``{trial}`` for its number.

    Returns:
        Whose notes were left as people wrote them: ``study``, ``trial 12``.

    Raises:
        ArtifactError: If the store fails.
    """
    if study.metric_names != front.objectives:
        name_metrics(study, front.objectives)
    for name, figure in figures.items():
        save_plotly_graph_object(study, _slim(figure), graph_object_id=name)
    left = []
    if not _write_note(study, study_note(front, summary, _page_of(study))):
        left.append("study")
    files = TrialFiles(study, store)
    shown = set()
    for entry in front.stitched_fronts:
        if entry.trial is None or entry.subnetwork is None or entry.trial in shown:
            continue
        trial = FinishedTrial.numbered(study, entry.trial)
        title = f"{entry.name} of {study.study_name}"
        address = files.write(trial, "svg", str(draw_subnetwork(entry.subnetwork, title=title)))
        files.write(trial, "csv", _csv(entry))
        export = export_of(entry, command)
        note = trial_note(entry, front, drawing=address, command=export)
        if not _write_note(trial, note):
            left.append(entry.name)
        shown.add(entry.trial)
    for trial in files.trials():
        if trial.number not in shown:
            if _write_note(trial, ""):
                files.remove(trial)
            else:
                left.append(f"trial {trial.number}")
    return left


def study_note(front: Front, summary: str, link: Callable[[int], str]) -> str:
    """What was found, a table of the fronts and the baselines, and how to read it.

    Args:
        front: What was found.
        summary: In a sentence or two.
        link: The address of a trial's page, by its number.
    """
    figures = list(dict.fromkeys([front.metric, *front.objectives, front.cost]))
    rows = []
    for entry in front.entries:
        if entry.on_a_front or entry.kind != STITCHED:
            name = escape_markdown(entry.name)
            # an arrow beside the name: on dark pages the dashboard's links are hard to read
            arrow = f" [↗]({link(entry.trial)})" if entry.trial is not None else ""
            cells = [_with_interval(front, entry, figure) for figure in figures]
            cells += [entry.fronts, _worst(front, entry)] if front.has_cascades else []
            rows.append([(f"**{name}**" if entry.on_a_front else name) + arrow, *cells])
    head = [f"{front.images:,} test images", *(front.unit(figure).head for figure in figures)]
    parts = [
        # short, since the dashboard has a button beside the first line
        "**What was found**",
        escape_markdown(summary),
        markdown_table(
            [*head, "front at cost", "at worst"] if front.has_cascades else head,
            rows,
            align="lr",
            wide=True,
        ),
        "Bold: on the front, where no other network here is at least as good in every objective "
        f"and better in one{_TWO_FRONTS if front.has_cascades else ''}. In brackets: 95% "
        "intervals. The test images were seen neither by the "
        "fit of the stitches nor by the search; the values of trials, in the dashboard's own "
        "plots, are from the validation images.",
        "An arrow opens the trial. Stitched networks on a front have a note there: paired "
        "comparisons with the baselines, the command that exports the network, and a drawing.",
    ]
    return "\n\n".join(parts)


def trial_note(entry: Entry, front: Front, *, drawing: str, command: str) -> str:
    """What one network of the front is, and how good.

    Args:
        entry: The network.
        front: What it is on.
        drawing: The address of its drawing.
        command: Shell command that exports it.
    """
    named = [f"`{name}`" for name in entry.stitches[:_STITCHES]]
    if len(entry.stitches) > _STITCHES:
        named.append(f"and {len(entry.stitches) - _STITCHES} more, see below")
    answer = answer_text(entry.subnetwork) if entry.subnetwork else ""
    figures = []
    for name, value in {**entry.test, "parameters": float(entry.parameters)}.items():
        unit = front.unit(name)
        validation = unit.text(entry.values[name]) if name in entry.values else ""
        averaged = entry.is_cascade and name in entry.worst
        head = f"{unit.head}, on average" if averaged else unit.head
        figures.append([head, unit.text(value), _interval(front, entry, name), validation])
        if averaged:
            figures.append([f"{unit.head}, at worst", unit.text(entry.worst[name]), "", ""])
    comparisons = [
        [
            escape_markdown(comparison.baseline),
            points_text(comparison.difference),
            p_value_text(comparison.p_value, least=_LEAST)
            + (" ★" if comparison.significant else ""),
        ]
        for comparison in entry.comparisons
    ]
    heads = [f"{front.images:,} test images", "", "95% interval", "validation"]
    against = [f"{front.unit(front.metric).words} against", "points", "p"]
    parts = [
        f"**{_on_fronts(entry, front)}**",
        f"{answer[:1].upper()}{answer[1:]}{_goes_on(entry)}.",
        f"Stitches that are on: {', '.join(named)}.",
        markdown_table(heads, figures, align="lr", wide=True),
        "Paired comparisons on the same images, corrected for all of the report; ★ differences "
        "that are told from chance at the 5% level:",
        markdown_table(against, comparisons, align="lr", wide=True),
        f"```sh\n{command}\n```",
        f"![What {escape_markdown(entry.name)} computes of {front.every} parents]({drawing})",
    ]
    return "\n\n".join(parts)


def _on_fronts(entry: Entry, front: Front) -> str:
    if not front.has_cascades:
        return "On the front"
    named = {"both": "both fronts", "average": "the front at average cost"}
    return f"On {named.get(entry.fronts, 'the front at fixed cost')}"


def _goes_on(entry: Entry) -> str:
    """What share of images goes on, of a cascade."""
    if entry.share is None or entry.subnetwork is None:
        return ""
    return (
        f": {percent_text(entry.share)} of the test images (the threshold lets "
        f"{percent_text(entry.subnetwork.threshold or 0.0, 0)} of the validation images go on)"
    )


def _worst(front: Front, entry: Entry) -> str:
    """What an image costs that goes on; empty where all images cost the same."""
    worst = entry.worst.get(front.cost) if entry.is_cascade else None
    return "" if worst is None else front.unit(front.cost).text(worst)


def _interval(front: Front, entry: Entry, name: str) -> str:
    return "–".join(front.unit(name).text(bound) for bound in entry.intervals.get(name, ()))


def _with_interval(front: Front, entry: Entry, name: str) -> str:
    interval = _interval(front, entry, name)
    return front.unit(name).text(entry.test[name]) + (f" ({interval})" if interval else "")


@dataclass(frozen=True)
class FinishedTrial:
    """A finished trial, as optuna-dashboard's functions take one.

    `optuna.Trial` would ask the sampler.

    Args:
        study: Which it is of.
        _trial_id: Its id in the storage.
    """

    study: optuna.Study
    _trial_id: int

    @staticmethod
    def numbered(study: optuna.Study, number: int) -> FinishedTrial:
        """The trial of a number.

        Args:
            study: Which it is of.
            number: Its number in the study.
        """
        find = study._storage.get_trial_id_from_study_id_trial_number
        return FinishedTrial(study, find(study._study_id, number))

    @property
    def storage(self) -> BaseStorage:
        """Where it is kept."""
        return self.study._storage

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self.storage.get_trial_number_from_id(self._trial_id)


class TrialFiles:
    """Files of finished trials in an artifact store, which the dashboard shows with their trials.

    Files are named ``trial-<number>`` with an ending. One that is written again keeps its id.

    Args:
        study: Whose trials these are.
        store: Where the files are.
    """

    def __init__(self, study: optuna.Study, store: ArtifactStore) -> None:
        self.study = study
        self.store = store
        self._ids: dict[FinishedTrial, dict[str, str]] = {}
        for key, value in study._storage.get_study_system_attrs(study._study_id).items():
            found = _RECORDS.fullmatch(key)
            record = json.loads(value) if found else None  # null, where it was removed
            if not found or not record:
                continue
            trial = FinishedTrial(study, int(found["trial_id"]))
            for ending in _TYPES:
                if record["filename"] == _filename(trial, ending):
                    self._ids.setdefault(trial, {})[ending] = found["artifact_id"]

    def trials(self) -> list[FinishedTrial]:
        """The trials that have files."""
        return list(self._ids)

    def write(self, trial: FinishedTrial, ending: str, text: str) -> str:
        """Write a file of a trial.

        Args:
            trial: The trial.
            ending: Of the file's name, ``svg`` or ``csv``.
            text: What is in it.

        Returns:
            The address at which the dashboard has it.

        Raises:
            ArtifactError: If the store fails.
        """
        ids = self._ids.setdefault(trial, {})
        if ending not in ids:
            ids[ending] = str(uuid.uuid4())
            meta = {"filename": _filename(trial, ending), "mimetype": _TYPES[ending]}
            # the record first: what has none would never be removed
            self._record(
                trial, ids[ending], {"artifact_id": ids[ending], **meta, "encoding": None}
            )
        with _reached("written to"):
            self.store.write(ids[ending], io.BytesIO(text.encode()))
        path: str = get_artifact_path(trial, ids[ending])
        return path

    def remove(self, trial: FinishedTrial) -> None:
        """Remove the files of a trial.

        Args:
            trial: One that has files.

        Raises:
            ArtifactError: If the store fails.
        """
        for artifact_id in self._ids.pop(trial).values():
            with _reached("removed from"), suppress(ArtifactNotFound):
                self.store.remove(artifact_id)
            self._record(trial, artifact_id, None)

    def _record(self, trial: FinishedTrial, artifact_id: str, meta: dict[str, Any] | None) -> None:
        key = _RECORD.format(trial_id=trial._trial_id, artifact_id=artifact_id)
        trial.storage.set_study_system_attr(self.study._study_id, key, json.dumps(meta))


def _filename(trial: FinishedTrial, ending: str) -> str:
    return f"trial-{trial.number}.{ending}"


@contextmanager
def _reached(what: str) -> Iterator[None]:
    """Turn what an artifact store raises into an error of ours."""
    try:
        yield
    except Exception as error:  # every store has exceptions of its own
        raise ArtifactError(
            f"The drawings of the front cannot be {what} the artifact store: "
            f"{first_line(error)}. Check that it can be reached and has room."
        ) from error


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
    if entry.share is not None:
        rows += [(f"worst_{name}", value, "", "") for name, value in entry.worst.items()]
        rows.append(("share", entry.share, "", ""))
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
