from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import optuna_stitch as st
from optuna_stitch.evaluation.settings import EvaluationSettings, LatencySettings
from optuna_stitch.evaluation.stitch_quality import best_stitches
from optuna_stitch.run.study_file import dump_study_file, flatten, load_study_file
from optuna_stitch.search.space import enqueue_starts
from optuna_stitch.stitching.settings import FitSettings
from optuna_stitch.utils.errors import ConfigError

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))

GOOD = """\
parents:
  a:
    network: test_resnet
    train: {epochs: 1}
  b:
    network: test_vit
    checkpoint: weights/b.safetensors
study:
  sampler:
    name: nsga2
    population_size: 30
  trials: 7
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_every_study_file_is_valid(path: Path) -> None:
    load_study_file(path)


def test_defaults_are_filled_in_and_paths_made_absolute(tmp_path: Path) -> None:
    study_file = load_study_file(_write(tmp_path, GOOD))
    assert study_file.study.sampler.arguments == {"population_size": 30}
    assert study_file.parents.b.checkpoint == tmp_path / "weights" / "b.safetensors"
    filled = yaml.safe_load(dump_study_file(study_file))
    assert filled["study"]["storage"] == "sqlite:///{run}/study.db"
    assert filled["parents"]["a"]["train"]["learning_rate"] == 2e-3
    again = load_study_file(_write(tmp_path / "..", dump_study_file(study_file)))
    assert again == study_file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "trials: 7",
            "trails: 7",
            r"study\.yaml:12: unknown key `study.trails`; allowed here: .*",
        ),
        ("trials: 7", "trails: 7", "Did you mean `trials`?"),
        ("trials: 7", "trials: many", r"study\.yaml:12: `study.trials`: .*integer.*'many'"),
        ("trials: 7", "trials: 0", r"study\.yaml:12: `study.trials`: .*greater than 0"),
        ("{epochs: 1}", "{epoch: 1}", r"study\.yaml:4: unknown key `parents.a.train.epoch`"),
        ("{epochs: 1}", "{}", r"study\.yaml:4: the key `parents.a.train.epochs` is missing"),
        ("network: test_vit", "pretrained: true", r"the key `parents.b.network` is missing"),
        ("    checkpoint:", "    pretrained: true\n    checkpoint:", "exactly one of"),
        ("study:", "fit: {kernel: 2}\nstudy:", r"study\.yaml:8: `fit.kernel`: .*1 or 3"),
        (
            "study:",
            "evaluation: {racing: {frist: 20}}\nstudy:",
            r"study\.yaml:8: unknown key `evaluation.racing.frist`; .*Did you mean `first`?",
        ),
        ("study:", "stdy:", r"study\.yaml:8: unknown key `stdy`; .*Did you mean `study`?"),
        ("parents:", "parents: [", "is no YAML"),
        (
            "study:",
            "report: {baselines: [{netwrk: x}]}\nstudy:",
            r"study\.yaml:8: unknown key `report.baselines.0.netwrk`; allowed here: network, .*",
        ),
        ("study:", "finish: {trials: all}\nstudy:", r"study\.yaml:8: `finish.trials`: .*'front'"),
        (
            "study:",
            "study:\n  storage: mysql://me:secret@host/db\n  outputs: [a, c]",
            r"^[^`]*study\.yaml:1: `study.outputs` of parents a, b are [^{]* none of these\.$",
        ),
    ],
)
def test_a_wrong_key_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        load_study_file(_write(tmp_path, GOOD.replace(old, new)))


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("trials", "trails").replace("epochs", "epoch")
    with pytest.raises(ConfigError) as caught:
        load_study_file(_write(tmp_path, text))
    assert "study.trails" in str(caught.value)
    assert "parents.a.train.epoch" in str(caught.value)


def test_settings_are_those_of_python(tmp_path: Path) -> None:
    study_file = load_study_file(_write(tmp_path, GOOD))
    assert study_file.fit == FitSettings()
    assert study_file.parents.a.train == st.Recipe(epochs=1)
    assert isinstance(study_file.evaluation, EvaluationSettings)
    assert study_file.evaluation.latency == LatencySettings()
    sections = "tune: {steps: 7}\nevaluation: {racing: {first: 20}}\n"
    study_file = load_study_file(_write(tmp_path, GOOD + sections))
    assert study_file.tune == st.Tuning(steps=7)
    assert study_file.evaluation.racing == st.Racing(first=20)


@pytest.mark.parametrize(
    ("section", "function", "names"),
    [
        ("data", st.load_data, ["dataset", "root", "class_map", "unreadable", "seed"]),
        ("stitching", st.stitch, ["points", "resize"]),
        ("keep", best_stitches, ["best", "min_r2", "max_accuracy_drop"]),
        ("study", st.Objective, ["space"]),
        ("study", st.optimize, ["batch", "grace"]),
        ("study", st.create_study, ["seed"]),
        ("study.start", st.create_study, ["population", "probability"]),
        ("study.start", enqueue_starts, ["population", "probability"]),
    ],
)
def test_defaults_are_those_of_python(
    tmp_path: Path, section: str, function: Callable[..., Any], names: list[str]
) -> None:
    filled = flatten(load_study_file(_write(tmp_path, GOOD)))
    parameters = inspect.signature(function).parameters
    for name in names:
        assert filled[f"{section}.{name}"] == parameters[name].default, name


def test_races_go_by_the_seed_of_the_study(tmp_path: Path) -> None:
    racing = "evaluation: {racing: {first: 20}}\n"
    text = GOOD.replace("trials: 7", "trials: 7\n  seed: 3") + racing
    study_file = load_study_file(_write(tmp_path, text))
    assert study_file.evaluation.racing == st.Racing(first=20, seed=3)
    # also in the copy that a run keeps, with every default
    again = load_study_file(_write(tmp_path, dump_study_file(study_file)))
    assert again.evaluation == study_file.evaluation
    own = text.replace("first: 20", "first: 20, seed: 5")
    racing_of_its_own = load_study_file(_write(tmp_path, own)).evaluation.racing
    assert racing_of_its_own == st.Racing(first=20, seed=5)


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    text = GOOD.replace("population_size: 30", "mutation_prob: 1e-2\n    crossover_prob: 5E1")
    text += "launch: {slurm: {time: 4:00:00, mem: 16G}}\n"
    study_file = load_study_file(_write(tmp_path, text))
    assert study_file.study.sampler.arguments == {"mutation_prob": 0.01, "crossover_prob": 50.0}
    assert study_file.launch.slurm == {"time": "4:00:00", "mem": "16G"}
    study_file.launch.slurm["partition"] = "1e3"  # what looks like a number stays a text
    again = load_study_file(_write(tmp_path, dump_study_file(study_file)))
    assert again.launch == study_file.launch
    assert again.study == study_file.study


def test_no_file_and_no_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no study file"):
        load_study_file(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="must hold keys"):
        load_study_file(_write(tmp_path, "just words"))
