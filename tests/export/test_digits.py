"""Every network of the digits study's front, in every format, in a fresh environment."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from optuna_stitch.run.run import Run
from tests.export.test_elsewhere import answers, write_pictures
from tests.helpers.commands import call

STUDY = Path(__file__).parents[2] / "studies" / "digits.yaml"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_front_trial_of_digits(
    fresh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
