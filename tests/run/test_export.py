"""From a run's folder and the number of a trial to an exported network."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import typer
from optuna.trial import TrialState
from typer.testing import CliRunner

import optuna_stitch as st
from optuna_stitch.cli.results import export
from optuna_stitch.run import export as exporting
from optuna_stitch.run.export import export_trial, parent_origin
from optuna_stitch.run.run import Run
from optuna_stitch.run.schema import ParentConfig
from optuna_stitch.utils.errors import ExportError, RunError
from tests.helpers.runs import TINY, complete, study_of


@pytest.fixture(scope="module")
def run(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with 12 complete trials, and at least one each that is pruned, failed and running."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(finished_once, folder)
    study = study_of(folder)
    params, distributions = study.trials[0].params, study.trials[0].distributions
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(
            optuna.create_trial(state=state, params=params, distributions=distributions)
        )
    study.ask()
    return Run.open(folder)


def stitched(run: Run) -> int:
    """Number of a trial with a stitch that matters."""
    return next(
        trial.number
        for trial in complete(run.study)
        if run.supernetwork.subnetwork(trial.params).on
    )


@pytest.mark.slow
def test_a_trial_leaves_the_run_with_its_figures(run: Run, tmp_path: Path) -> None:
    number = stitched(run)
    before = {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    command = f"optuna-stitch export runs/tiny --trial {number} --to to"
    assert export_trial(run, number, tmp_path / "to", command=command) == tmp_path / "to"
    network = runpy.run_path(str(tmp_path / "to" / "network.py"))["load_network"]()
    hits = 0
    with torch.no_grad():
        for batch in run.data.test.batches(run.supernetwork.views, 50):
            hits += int((network(*batch.images).argmax(1) == batch.targets).sum())
    entry = run.evaluate_front(only=[number]).entry(number)
    assert hits / len(run.data.test) == entry.test["accuracy"]

    card = (tmp_path / "to" / "README.md").read_text()
    assert f"# Trial {number} of tiny\n" in card
    assert f"| **trial {number}** | {100 * entry.quality:.2f}% |" in card
    for comparison in entry.comparisons:
        assert f"| {comparison.baseline} |" in card
        assert f"| {100 * comparison.difference:+.2f} | {comparison.p_value:.2g} |" in card
    assert "| a | test_resnet | trained in this run, 1 epoch on its train split |" in card
    assert "| train | 100 images that the stitches were fitted on: sklearn/digits |" in card
    assert f"| test | {len(run.data.test):,} images" in card
    assert "| classes | 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |" in card
    assert command in card
    assert f"torch {torch.__version__}" in card
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == list("0123456789")
    assert {path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before


@pytest.mark.slow
def test_a_cascade_leaves_with_its_exit(finished_once: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_once, tmp_path / "tiny")
    run = Run.open(tmp_path / "tiny")
    study = run.study
    trial = next(trial for trial in complete(study) if trial.number == stitched(run))
    params = {**trial.params, "output": "a then both", "threshold": 0.3}
    threshold = {"threshold": optuna.distributions.FloatDistribution(0, 1)}
    study.add_trial(
        optuna.create_trial(
            params=params,
            distributions={**trial.distributions, **threshold},
            values=trial.values,
        )
    )
    number = study.trials[-1].number
    export_trial(run, number, tmp_path / "to")
    network = runpy.run_path(str(tmp_path / "to" / "network.py"))["load_network"]()
    hits = went_on = 0
    with torch.no_grad():
        for batch in run.data.test.batches(run.supernetwork.views, 50):
            hits += int((network(*batch.images).argmax(1) == batch.targets).sum())
            went_on += network.went_on
    entry = run.evaluate_front(only=[number]).entry(number)
    assert hits / len(run.data.test) == entry.test["accuracy"]
    assert went_on / len(run.data.test) == entry.share
    card = (tmp_path / "to" / "README.md").read_text()
    assert f"{100 * went_on / len(run.data.test):.1f}% of the test images |" in card
    average, worst = (value / 1e6 for value in (entry.test["macs"], entry.worst["macs"]))
    assert f"| {average:.3f} M, at most {worst:.3f} M |" in card
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    assert config["cascade"]["first"] == "a"
    assert config["cascade"]["share"] == 0.3


@pytest.mark.slow
def test_a_parent_can_be_a_trial(run: Run, tmp_path: Path) -> None:
    export_trial(run, 0, tmp_path / "to")
    card = (tmp_path / "to" / "README.md").read_text()
    assert "Trial 0 of the study tiny: test_resnet (parent a) alone" in card
    assert "| **parent a** |" in card


def best_of(run: Run) -> str:
    return ", ".join(str(trial.number) for trial in run.study.best_trials)


def test_trials_without_a_network(run: Run, tmp_path: Path) -> None:
    trials = run.study.trials
    known = f"the study 'tiny' has {len(trials)}, 0 to {len(trials) - 1}."
    expected = {number: f"There is no trial {number}: {known}" for number in (999, -1)}
    numbers = {trial.state.name: trial.number for trial in trials}
    assert {"PRUNED", "FAIL", "RUNNING"} <= set(numbers)
    for state, number in numbers.items():
        if state != "COMPLETE":
            said = f"is not complete: its state is {state}."
            expected[number] = f"Trial {number} of the study 'tiny' {said}"
    for number, words in expected.items():
        with pytest.raises(ExportError) as raised:
            export_trial(run, number, tmp_path / "to")
        assert str(raised.value) == f"{words} On the front are {best_of(run)}."
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_study(tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(TINY)
    new = Run.start(tmp_path / "new.yaml", tmp_path / "new")
    with pytest.raises(RunError, match="has no study yet; run `optuna-stitch search"):
        export_trial(new, 0, tmp_path / "to")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["study.yaml"]


def test_what_can_be_refused_costs_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_front(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be computed")

    monkeypatch.setattr(Run, "evaluate_front", evaluate_front)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"files in it: mine\.txt"):
        export_trial(run, 0, tmp_path)
    with pytest.raises(ExportError, match="no format 'tflite'"):
        export_trial(run, 0, tmp_path / "to", formats=["tflite"])
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ExportError, match="HF_TOKEN"):
        export_trial(run, 0, tmp_path / "to", push="me/net")
    with pytest.raises(ExportError, match="There is no trial 99"):
        export_trial(run, 99, tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_folder_is_pushed_when_it_is_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[Any, ...]] = []

    def push_folder(folder: Path, files: tuple[str, ...], repo: str, *, private: bool) -> str:
        assert {path.name for path in folder.iterdir()} <= set(files)
        pushed.append((folder, repo, private))
        return repo

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    monkeypatch.setattr(exporting, "push_folder", push_folder)
    export_trial(run, 1, tmp_path / "to", push="me/net")
    export_trial(run, 1, tmp_path / "to", force=True)
    export_trial(run, 1, tmp_path / "to", push="me/net", force=True, private=False)
    assert pushed == [(tmp_path / "to", "me/net", True), (tmp_path / "to", "me/net", False)]


@pytest.mark.parametrize(
    ("config", "weights", "licence"),
    [
        ({"pretrained": True}, "[timm/test_resnet.r160_in1k]", "apache-2.0"),
        ({"checkpoint": "/home/me/best.safetensors"}, "own checkpoint, best.safetensors", None),
        ({"train": st.Recipe(epochs=3)}, "trained in this run, 3 epochs", None),
        ({"random_weights": True}, "random", None),
    ],
)
def test_whose_weights_a_parent_has(
    config: dict[str, Any], weights: str, licence: str | None, a: st.Parent
) -> None:
    given = ParentConfig(network="test_resnet", **config)
    origin = parent_origin(a, given, None)
    assert weights in origin.weights
    assert "/home" not in origin.weights
    assert origin.licence == licence
    assert origin.repo == ("timm/test_resnet.r160_in1k" if licence else None)
    assert "tuned further" not in parent_origin(a, given, st.Tuning()).weights
    assert "tuned further" in parent_origin(a, given, st.Tuning(thaw=True)).weights


def test_other_zoos_state_no_licence(b: st.Parent) -> None:
    name = "torchvision/mobilenet_v3_small"
    other = st.Parent(name, b.module, b.view, source="torchvision")
    origin = parent_origin(other, ParentConfig(network=name, pretrained=True), None)
    assert (origin.weights, origin.licence) == ("pretrained, from torchvision", None)
    name = "/home/me/mine.pt2"
    mine = st.Parent(name, b.module, b.view, source="program")
    origin = parent_origin(mine, ParentConfig(network=name), None)
    assert (origin.name, origin.licence) == ("mine.pt2", None)
    assert origin.weights == "the user's own, in an exported program"


@pytest.mark.slow
def test_from_the_command_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(export)
    number, to = stitched(run), tmp_path / "to"
    arguments = [str(run.folder), "--trial", str(number), "--to", str(to), "--format", "program"]
    monkeypatch.setattr(sys, "argv", ["optuna-stitch", "export", *arguments])
    done = CliRunner().invoke(app, [*arguments, "--format", "python"])
    assert done.exit_code == 0, done.output
    written = ["README.md", "config.json", "network.pt2", "network.py", "network.safetensors"]
    assert [str(to / name) in done.output.splitlines() for name in written] == [True] * 5
    assert f"Trial {number} is in {to}; README.md says how to load it." in done.output
    assert f"optuna-stitch export {run.folder} --trial {number}" in (to / "README.md").read_text()

    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ExportError)
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--format", "tflite"]).exit_code == 2
    assert "tflite" in CliRunner().invoke(app, [*arguments, "--format", "tflite"]).output
