from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import yaml

import optuna_stitch as st
from optuna_stitch.run.study_file import dump_study_file, flatten, load_study_file
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call
from tests.helpers.runs import write_study

TINY = """\
parents:
  a: {network: test_resnet, input_size: 32, train: {epochs: 1}}
  b: {network: test_efficientnet, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
      interpolation: bilinear, input_size: 32, train: {epochs: 1}}
data:
  dataset: sklearn/digits
  train: {images: 60}
  val: {images: 40}
  a: {column: digit}
  b: {column: loop, test: {images: 80}}
stitching: {points: blocks}
study: {trials: 14, batch: 7, start: {population: 3}}
"""


def test_what_stands_beside_the_questions_holds_for_both(tmp_path: Path) -> None:
    study_file = load_study_file(write_study(tmp_path, TINY))
    a, b = study_file.data.tasks.values()
    assert (a.column, b.column) == ("digit", "loop")
    assert a.train.images == b.train.images == 60
    assert (a.test.images, b.test.images) == (None, 80)
    assert study_file.study.outputs == ["both"]
    assert study_file.study.objectives == ["retained", "macs"]
    # the copy in the run's folder, with every default, says the same
    (tmp_path / "copy.yaml").write_text(dump_study_file(study_file))
    assert flatten(load_study_file(tmp_path / "copy.yaml")) == flatten(study_file)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"b": None}}, "give the data of both jobs"),
        ({"study": {"outputs": ["a", "both"]}}, "the only one of `study.outputs` is `both`"),
        ({"study": {"objectives": ["accuracy", "macs"]}}, "needs a side: accuracy_a or"),
        ({"study": {"constraints": {"min_accuracy": 0.5}}}, "needs a side: accuracy_a or"),
        ({"evaluation": {"racing": {}}}, "`evaluation.racing` is not there for two jobs"),
    ],
)
def test_wrong_study_files_are_refused_before_anything_is_built(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        st.Run.start(write_study(tmp_path, TINY, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_figures_of_two_jobs_are_refused_for_one(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    content = {**yaml.safe_load(TINY), "data": {}}
    content["study"] = {"objectives": ["accuracy_a", "macs"]}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="is for parents with two jobs"):
        st.Run.start(file, tmp_path / "run")


@pytest.mark.slow
def test_a_study_of_two_jobs_runs_from_its_file_to_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, TINY)
    assert call("run", "tiny.yaml") == 0
    folder = Path("runs/tiny")
    report = (folder / "report.md").read_text()
    assert "Parents a and b answer different questions" in report
    names = {path.name for path in folder.iterdir()}
    assert {"classes_a.csv", "classes_b.csv", "predictions_a.csv", "predictions_b.csv"} <= names
    run = st.Run.open(folder)
    assert run.supernetwork.two_jobs
    assert len(run.study.trials) == 14
    assert run.study.trials[0].values[0] == 1
    assert call("search", "runs/tiny", "--trials", "4") == 0  # go on where it was
    assert len(st.Run.open(folder).study.trials) == 18
    for trial in (0, 1):
        to = f"network-{trial}"
        assert call("export", "runs/tiny", "--trial", str(trial), "--to", to) == 0
        network = runpy.run_path(f"{to}/network.py")["load_network"]()
        answers = network(torch.zeros(2, 3, 32, 32))
        assert {side: logits.shape[1] for side, logits in answers.items()} == {"a": 10, "b": 2}
        assert "answers two questions" in (Path(to) / "README.md").read_text()
