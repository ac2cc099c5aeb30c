"""From a run's folder and a trial to a finished network, in the report and exported."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import optuna_stitch as st
from optuna_stitch.utils.errors import ArtifactError, ConfigError, ExportError, StudyError
from tests.helpers.commands import call
from tests.helpers.runs import complete


@pytest.mark.slow
def test_a_finished_network_is_reported_and_exported(finished_once: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(finished_once, folder)
    run = st.Run.open(folder)
    trial = next(t.number for t in complete(run.study) if run.supernetwork.subnetwork(t.params).on)
    with pytest.raises(ConfigError, match="No trial is named"):
        run.finish()
    with pytest.raises(StudyError, match="has no complete trial 99"):
        run.finish(99)
    with pytest.raises(ExportError, match=f"Trial {trial} is not finished"):
        run.export(trial, tmp_path / "early", finished=True)
    command = ("finish", str(folder), "--trial", str(trial), "--epochs", "2")
    assert call(*command, "--student", "test_vit") == 0
    kept = {path: path.stat().st_mtime_ns for path in (folder / "finished").iterdir()}
    assert any(path.name.startswith("parent-") for path in kept)
    run = st.Run.open(folder)
    run.finish(trial, epochs=2)  # is there already
    assert kept == {path: path.stat().st_mtime_ns for path in (folder / "finished").iterdir()}
    front = run.report()
    found, finished = front.entry(trial), front.entry(trial, finished=True)
    assert finished.name == f"{found.name} finished"
    assert finished.test["macs"] == found.test["macs"]
    rivals = {one.baseline for one in finished.comparisons}
    assert {found.name, "test_vit finished", "parent a", "parent b"} <= rivals
    assert any(name.startswith("parent") and name.endswith("finished") for name in rivals)
    assert not any(one.baseline.endswith("finished") for one in found.comparisons)
    table = pd.read_csv(folder / "front.csv")
    assert table[table["finished"]]["name"].tolist() == [finished.name]
    assert finished.name in (folder / "front.html").read_text()
    to = run.export(trial, tmp_path / "network", finished=True)
    network = runpy.run_path(str(to / "network.py"))["load_network"]()
    batch = run.data.test.pick(range(50), run.supernetwork.views)  # type: ignore[union-attr]
    with torch.no_grad():
        guesses = network(*batch.images).argmax(1)
    assert finished.guesses is not None
    if not finished.is_cascade:
        assert guesses.tolist() == finished.guesses[:50].tolist()
    assert "## Finished" in (to / "README.md").read_text()
    other = st.Run.open(folder)
    description = json.loads((folder / "supernetwork.json").read_text())
    assert description["content"] == other.supernetwork.content_hash()
    with torch.no_grad():  # as if it had been built anew
        next(iter(other.supernetwork.stitches)).bias.add_(1)
    with pytest.raises(ArtifactError, match="of another supernetwork"):
        other.evaluate_front()


@pytest.mark.slow
def test_a_network_may_be_polished_only(
    finished_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(finished_once, folder)
    run = st.Run.open(folder)
    trial = next(t.number for t in complete(run.study) if run.supernetwork.subnetwork(t.params).on)
    command = ("finish", str(folder), "--trial", str(trial), "--epochs", "0")
    assert call(*command, "--student", "test_vit") == 2
    assert "Students are trained" in capsys.readouterr().err
    assert call(*command) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "refitted in closed form" in said
    assert "trained for" not in said
    # what has no stitches would stay as it is
    assert [path.name for path in (folder / "finished").iterdir()] == [
        f"trial-{trial}.safetensors"
    ]
    finished = st.Run.open(folder).report().entry(trial, finished=True)
    assert finished.subnetwork is not None
    assert finished.subnetwork.finished is not None
    assert finished.subnetwork.finished.refitted > 0
