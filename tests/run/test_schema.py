from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optuna_stitch.run.study_file import dump_study_file, load_study_file
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
        ("study:", "stdy:", r"study\.yaml:8: unknown key `stdy`; .*Did you mean `study`?"),
        ("parents:", "parents: [", "is no YAML"),
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


def test_no_file_and_no_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no study file"):
        load_study_file(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="must hold keys"):
        load_study_file(_write(tmp_path, "just words"))
