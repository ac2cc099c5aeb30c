from __future__ import annotations

import json
import runpy
from pathlib import Path

import onnxruntime
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState

import optuna_stitch as st
from optuna_stitch.run.study_file import dump_study_file, flatten, load_study_file
from optuna_stitch.stitching.genotype import outputs_of
from tests.helpers.commands import call
from tests.helpers.runs import write_study

OWN = "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation: bilinear, input_size: 32"
TINY = f"""\
parents:
  a: {{network: test_resnet, input_size: 32, train: {{epochs: 1}}}}
  b: {{network: test_efficientnet, {OWN}, train: {{epochs: 1}}}}
  c: {{network: test_convnext, {OWN}, train: {{epochs: 1}}}}
data: {{train: {{images: 100}}, val: {{images: 50}}, test: {{images: 120}}}}
stitching: {{points: blocks}}
study:
  trials: 40
  batch: 20
"""


def test_three_parents_have_outputs_of_their_own(tmp_path: Path) -> None:
    study_file = load_study_file(write_study(tmp_path, TINY))
    assert tuple(study_file.study.outputs) == outputs_of("abc")
    assert list(study_file.parents.by_side) == ["a", "b", "c"]
    # the copy in the run's folder, with every default, says the same
    (tmp_path / "copy.yaml").write_text(dump_study_file(study_file))
    assert flatten(load_study_file(tmp_path / "copy.yaml")) == flatten(study_file)
    # a study file of two says nothing of others
    study_file.parents.c = None
    assert not [key for key in flatten(study_file) if key.startswith("parents.c.")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"a": {}, "b": {}}}, "two jobs are for two parents, and there are 3"),
        ({"study": {"outputs": ["both"]}}, "two jobs are for two parents, and there are 3"),
        ({"study": {"outputs": ["a then both"]}}, "'a then both' is none of these"),
        ({"parents": {"c": None, "d": {"network": "x", "pretrained": True}}}, "no c; leave none"),
    ],
)
def test_wrong_study_files_are_refused(
    tmp_path: Path,
    changes: dict[str, object],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", str(write_study(tmp_path, TINY, **changes))) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def _bytes(*modules: torch.nn.Module) -> int:
    """Of all weights and buffers, shared memory counted once."""
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for module in modules
        for value in (*module.parameters(), *module.buffers())
    }
    return sum(held.values())


@pytest.mark.slow
def test_a_study_of_three_runs_from_its_file_to_its_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, TINY)
    assert call("run", "tiny.yaml") == 0
    folder = Path("runs/tiny")
    run = st.Run.open(folder)
    supernetwork = run.supernetwork
    parents = [graph.module for graph in supernetwork.graphs.values()]
    assert _bytes(*parents) == sum(_bytes(module) for module in parents)
    assert _bytes(*parents, supernetwork.stitches) <= 1.1 * _bytes(*parents)
    quality = pd.read_csv(folder / "fit.csv")
    assert quality["kept"].sum() == len(supernetwork.switches) < len(quality)

    names = {switch.name[0] + switch.into for switch in supernetwork.switches}
    assert names == {"ab", "ac", "ba", "bc", "ca", "cb"}
    assert {trial.params["output"] for trial in run.study.trials} >= set(outputs_of("abc")[:7])

    front = pd.read_csv(folder / "front.csv").set_index("name")
    combined = ["ensemble a+b", "ensemble a+c", "ensemble b+c", "ensemble", "duo"]
    assert list(front.index)[:8] == ["parent a", "parent b", "parent c", *combined]
    macs = {side: graph.macs for side, graph in supernetwork.graphs.items()}
    assert front.loc["ensemble a+c", "test_macs"] == macs["a"] + macs["c"]
    assert front.loc["ensemble", "test_macs"] == sum(macs.values())
    assert any(name.startswith("cascade ") for name in front.index)
    report = (folder / "report.md").read_text()
    assert "test_resnet × test_efficientnet × test_convnext" in report
    assert "| parent c | test_convnext" in report

    found: dict[str, int] = {}
    for trial in run.study.get_trials(states=(TrialState.COMPLETE,)):
        network = supernetwork.subnetwork(trial.params)
        # the first trials have the mean and the cascade of two for every stitch
        if network.stitches or network.output == "ensemble":
            found.setdefault(network.output, trial.number)
    images = torch.rand(4, 3, 32, 32)
    for output in ("ensemble", "c then b+c"):
        number, to = found[output], Path(f"network-{found[output]}")
        formats = ["--format", "python", "--format", "onnx"]
        if output != "ensemble":
            formats += ["--format", "program"]
        assert call("export", str(folder), "--trial", str(number), "--to", str(to), *formats) == 0
        exported = runpy.run_path(str(to / "network.py"))["load_network"]()
        with torch.no_grad():
            answered = exported(images)
        assert answered.shape == (4, 10)
        session = onnxruntime.InferenceSession(str(to / "network.onnx"))
        given = {session.get_inputs()[0].name: images.numpy()}
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, given)[0]), answered, atol=1e-4, rtol=1e-4
        )
        card = (to / "README.md").read_text()
        assert "![All parents from input to output" in card
        assert "| c | test_convnext |" in card
        config = json.loads((to / "config.json").read_text())
        assert ("cascade" in config) == (output == "c then b+c")
    assert config["cascade"]["first"] == "c"
    assert call("pick", str(folder), "--knee") == 0

    number = str(found["b+c"])
    finish = ("finish", str(folder), "--trial", number, "--epochs", "1", "--no-controls")
    assert call(*finish) == 0
    assert (folder / "finished" / f"trial-{number}.safetensors").is_file()
