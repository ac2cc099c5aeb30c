from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import get_note, save_note

from optuna_stitch.report.dashboard import FinishedTrial, study_note, trial_note
from optuna_stitch.report.entries import Entry
from optuna_stitch.report.front import Front
from optuna_stitch.storage.artifacts import download_files, upload_files
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.utils.errors import ArtifactError
from tests.helpers.published import SUMMARY, Published, told

KINDS = ("sqlite", "journal", "memory")


@pytest.fixture
def published(searched: tuple[optuna.Study, Front], tmp_path: Path) -> Published:
    return Published(*searched, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dashboard_has_all_of_it(published: Published, kind: str) -> None:
    figures = {name: go.Figure(go.Bar(x=[1], y=[2])) for name in ("switches", "front", "history")}
    assert published.into(kind).publish(figures=figures) == []
    shown = published.shown()
    assert shown["objective_names"] == ["accuracy", "macs"]
    assert [figure["id"] for figure in shown["plotly_graph_objects"]] == sorted(figures)
    note = shown["note"]["body"]
    assert SUMMARY.replace("_", "\\_") in note
    trials = {trial["number"]: trial for trial in shown["trials"]}
    for entry in published.front.entries:
        if entry.kind != "stitched":
            assert f"{entry.name}" in note
        if entry not in published.on_front and entry.trial is not None:
            assert trials[entry.trial]["note"]["body"] == ""
            assert trials[entry.trial]["artifacts"] == []
    for entry in published.on_front:
        assert entry.trial is not None
        trial = trials[entry.trial]
        text = trial["note"]["body"]
        assert len(text) < 2000
        assert f"trials?numbers={entry.trial})" in note
        assert f"optuna-stitch export runs/digits --trial {entry.trial}\n" in text
        low, high = entry.interval
        assert f"{100 * entry.quality:.2f}" in text
        assert f"{100 * low:.2f}–{100 * high:.2f}" in text
        for comparison in entry.comparisons:
            difference = f"{100 * comparison.difference:+.2f}"
            assert f"{comparison.baseline} | \u2003{difference}" in text
        for name in entry.stitches[:8]:
            assert f"`{name}`" in text
        addresses = {
            artifact["filename"]: f"/artifacts/{trial['study_id']}/{trial['trial_id']}/"
            f"{artifact['artifact_id']}"
            for artifact in trial["artifacts"]
        }
        assert set(addresses) == {f"trial-{entry.trial}.svg", f"trial-{entry.trial}.csv"}
        drawing = addresses[f"trial-{entry.trial}.svg"]
        assert f"]({drawing})" in text
        mimetype, body = published.get(drawing)
        assert mimetype == "image/svg+xml"
        assert body.rstrip().endswith(b"</svg>")
        mimetype, body = published.get(addresses[f"trial-{entry.trial}.csv"])
        assert mimetype == "text/csv"
        rows = {row["figure"]: row for row in csv.DictReader(io.StringIO(body.decode()))}
        assert float(rows["test_accuracy"]["value"]) == entry.quality
        assert float(rows["test_accuracy"]["high"]) == entry.interval[1]
        assert float(rows["val_macs"]["value"]) == entry.values["macs"]
        assert rows["parameters"]["low"] == ""


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_again_changes_nothing(published: Published, kind: str) -> None:
    figure = go.Figure(go.Bar(x=[1], y=[2]))
    published.into(kind).publish(figures={"bars": figure})
    before, files = published.shown(), published.files()
    published.publish(figures={"bars": figure})
    assert published.shown() == before
    assert published.files() == files


@pytest.mark.parametrize("kind", KINDS)
def test_what_left_the_front_loses_note_and_files(published: Published, kind: str) -> None:
    published.into(kind)
    for name in ("supernetwork.safetensors", "trial-0.svg"):
        (published.folder / name).write_text(name)
    paths = [published.folder / name for name in ("supernetwork.safetensors", "trial-0.svg")]
    upload_files(published.study, published.store, paths)
    published.publish()
    stays, leaves = published.on_front
    published.publish(_with(published.front, leaves, on_front=False, on_fixed_front=False))
    trials = {trial["number"]: trial for trial in published.shown()["trials"]}
    assert trials[leaves.trial]["note"]["body"] == ""
    assert trials[leaves.trial]["artifacts"] == []
    assert trials[stays.trial]["note"]["body"]
    kept = {artifact["artifact_id"] for artifact in trials[stays.trial]["artifacts"]}
    shared = {artifact["artifact_id"] for artifact in published.shown()["artifacts"]}
    assert len(shared) == 2
    assert set(published.files()) == kept | shared
    download_files(published.study, published.store, published.folder / "elsewhere")
    # and back
    published.publish()
    trials = {trial["number"]: trial for trial in published.shown()["trials"]}
    assert trials[leaves.trial]["note"]["body"]
    assert len(trials[leaves.trial]["artifacts"]) == 2


def test_what_people_wrote_stays(published: Published) -> None:
    published.into("sqlite")
    first, second = (published.trial(entry) for entry in published.on_front)
    other = FinishedTrial.numbered(published.study, 0)
    save_note(other, "a baseline")
    save_note(second, "mine from the start")
    assert published.publish() == [published.on_front[1].name]
    save_note(first, get_note(first) + "\nand a thought")
    save_note(published.study, "my own words")
    assert set(published.publish()) == {"study", *(e.name for e in published.on_front)}
    assert get_note(first).endswith("and a thought")
    assert get_note(second) == "mine from the start"
    assert get_note(published.study) == "my own words"
    assert get_note(other) == "a baseline"
    # a note that was edited shows the drawing still when its trial is off the front
    files = published.files()
    without = _with(published.front, published.on_front[0], on_front=False, on_fixed_front=False)
    assert published.on_front[0].name in published.publish(without)
    assert published.files() == files
    for place in (first, second, published.study):
        save_note(place, "")
    assert published.publish() == []
    assert SUMMARY.replace("_", "\\_") in get_note(published.study)
    assert "export" in get_note(second)


def test_figures_are_small_and_suit_dark_pages(published: Published) -> None:
    x = np.linspace(0, 1e6, 500)
    figure = go.Figure(
        go.Scatter(x=x, y=[[1, 2], [3, 4]], customdata=np.arange(6).reshape(3, 2)),
        {"template": "plotly_white", "title": {"text": "T"}, "width": 3000},
    )
    published.into("memory").publish(figures={"wide": figure})
    (shown,) = published.shown()["plotly_graph_objects"]
    assert len(shown["graph_object"]) < 12 * len(x)
    assert len(figure.to_json()) > 7000
    spec = json.loads(shown["graph_object"])
    assert spec["data"][0]["x"] == pytest.approx(x.tolist(), rel=1e-4)
    assert spec["data"][0]["customdata"] == [[0, 1], [2, 3], [4, 5]]
    assert spec["layout"]["title"]["text"] == "T"
    assert "width" not in spec["layout"]
    assert spec["layout"]["template"]["layout"]["paper_bgcolor"].endswith(", 0)")


def test_a_store_that_fails_is_told(published: Published) -> None:
    published.into("sqlite")
    published.store = FileSystemArtifactStore(published.folder / "absent")
    with pytest.raises(ArtifactError, match=r"drawings .* cannot be written .*No such file"):
        published.publish()


def test_a_note_of_a_cascade_says_who_answers_and_both_costs(marked: Front) -> None:
    front = marked
    entry = next(entry for entry in front.stitched if entry.on_front and entry.is_cascade)
    note = trial_note(entry, front, drawing="/drawing", command="export")
    subnetwork = entry.subnetwork
    assert subnetwork is not None
    assert subnetwork.exit is not None
    assert entry.share is not None
    assert note.startswith("**On the front at average cost**")
    assert "The head of b answers, and the mean of both heads where its confidence (" in note
    assert f"is below {subnetwork.exit.threshold:.3g}: {100 * entry.share:.2f}%" in note
    assert "lets 25% of the validation images go on" in note
    assert f"M MACs, on average | \u2003{entry.test['macs'] / 1e6:.4g} |" in note
    assert f"M MACs, at worst | \u2003{subnetwork.worst_macs / 1e6:.4g} |" in note
    assert len(note) < 2000


def test_the_note_of_the_study_tells_both_fronts(front: Front) -> None:
    note = study_note(front, "Summary.", lambda number: f"/{number}")
    rows = {line.split(" | ")[0]: line for line in note.splitlines() if line.startswith("| ")}
    for entry in front.entries:
        if entry.kind == "stitched" and not entry.on_a_front:
            assert not any(entry.name in name for name in rows)
            continue
        (row,) = (line for name, line in rows.items() if entry.name in name)
        assert row.split(" | ")[3].strip() == entry.fronts
        worst = f"{entry.worst['macs'] / 1e6:.4g}" if entry.is_cascade else ""
        assert row.split(" | ")[4].strip(" |\u2003") == worst
        assert ("**" in row) == entry.on_a_front
    assert "fixed cost" in note


def _with(front: Front, changed: Entry, **values: Any) -> Front:
    """A front one of whose entries is another."""
    entries = [replace(e, **values) if e is changed else e for e in front.entries]
    return replace(front, entries=entries)


def _constrained(limit: float, directions: list[str]) -> Callable[[optuna.Trial], Any]:
    def objective(trial: optuna.Trial) -> Any:
        x = trial.suggest_float("x", 0, 1)
        over = x - limit
        trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [over])
        if hasattr(trial, "set_constraint"):
            trial.set_constraint("max_x", over)
        return (x, x * x)[: len(directions)]

    return objective


@pytest.mark.parametrize("directions", [["maximize", "minimize"], ["maximize"]])
@pytest.mark.parametrize("limit", [0.5, -1.0, 2.0])
def test_what_breaks_a_constraint_is_not_best(limit: float, directions: list[str]) -> None:
    storage = BufferedStorage(optuna.storages.InMemoryStorage())
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=storage, directions=directions, sampler=sampler)
    study.optimize(_constrained(limit, directions), n_trials=20)
    best = told(study)["best_trials"]
    assert [trial["number"] for trial in best] == [trial.number for trial in study.best_trials]
    assert all(max(trial["constraints"]) <= 0 for trial in best)
    assert bool(best) == (limit > 0)
