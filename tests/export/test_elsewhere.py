"""Exported networks answer as they were evaluated, in a process that has none of us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.run.run import Run
from tests.helpers.commands import call
from tests.helpers.exports import answers, write_pictures

STUDY = Path(__file__).parents[2] / "studies" / "digits.yaml"


@pytest.fixture(scope="module")
def pictures(data: st.Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """The test images as files, and their labels."""
    folder = tmp_path_factory.mktemp("images") / "pictures"
    return folder, write_pictures(data.test, folder)


def expected_of(
    supernetwork: st.Supernetwork, subnetwork: st.Subnetwork, split: Split
) -> tuple[list[int], float]:
    """The classes that the evaluator says, and their accuracy."""
    evaluator = st.Evaluator(supernetwork, split, ["accuracy"], kernels="plain")
    (evaluation,) = evaluator.evaluate([subnetwork])
    guesses = [
        guess
        for _, (logits,) in evaluator.answers([subnetwork])
        for guess in logits.argmax(1).tolist()
    ]
    return guesses, evaluation["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "output"),
    [("supernetwork", "b"), pytest.param("cnn_vit", "ensemble", marks=pytest.mark.slow)],
)
def test_the_very_figures_are_reproduced_elsewhere(
    pair: str,
    output: str,
    exported: Any,
    request: pytest.FixtureRequest,
    data: st.Data,
    pictures: tuple[Path, list[int]],
) -> None:
    subnetwork, folder = exported(pair, output)
    expected, accuracy = expected_of(request.getfixturevalue(pair), subnetwork, data.test)
    images, labels = pictures
    found = answers(folder, images)
    assert "optuna_stitch" in found["modules"]  # where the script made them impossible to import
    assert not [name for name in found["modules"] if name.startswith("optuna_stitch.")]
    assert list(found["labels"]) == ["python", "program", "onnx"]
    for form, guesses in found["labels"].items():
        assert guesses == expected, form
        hits = sum(guess == label for guess, label in zip(guesses, labels, strict=True))
        assert hits / len(labels) == accuracy, form
    assert 0.12 < accuracy < 1  # neither chance nor a foregone conclusion


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the environment is large
def test_in_a_fresh_environment(
    fresh: str,
    exported: Any,
    cnn_vit: st.Supernetwork,
    data: st.Data,
    pictures: tuple[Path, list[int]],
) -> None:
    subnetwork, folder = exported("cnn_vit", "ensemble")
    expected, accuracy = expected_of(cnn_vit, subnetwork, data.test)
    images, labels = pictures
    found = answers(folder, images, fresh)["labels"]
    assert found == dict.fromkeys(("python", "program", "onnx"), expected)
    hits = sum(guess == label for guess, label in zip(expected, labels, strict=True))
    assert hits == round(accuracy * len(labels))


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_every_front_trial_of_digits(
    fresh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every network of the digits study's front, in every format, in a fresh environment."""
    monkeypatch.chdir(tmp_path)
    assert call("run", str(STUDY)) == 0
    run = Path("runs/digits")
    front = pd.read_csv(run / "front.csv").set_index("name")
    predictions = pd.read_csv(run / "predictions.csv")
    labels = write_pictures(Run.open(run).data.test, tmp_path / "pictures")
    stitched = front[front["kind"] == "stitched"]
    assert len(stitched) >= 3
    for name, row in stitched.iterrows():
        folder = tmp_path / str(row["trial"])
        number = str(int(row["trial"]))
        to = ("--to", str(folder), "--format", "all")
        assert call("export", str(run), "--trial", number, *to) == 0
        found = answers(folder, tmp_path / "pictures", fresh)["labels"]
        assert list(found) == ["python", "program", "onnx"]
        for form, guesses in found.items():
            assert guesses == predictions[name].tolist(), (name, form)
            right = sum(guess == label for guess, label in zip(guesses, labels, strict=True))
            assert right / len(labels) == pytest.approx(row["test_accuracy"], abs=1e-12)
