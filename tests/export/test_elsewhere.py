"""Exported networks answer as they were judged, in a process that has none of us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.export.card import Origin
from optuna_stitch.export.export import export_network

SCRIPT = Path(__file__).with_name("answers.py")


def write_pictures(split: st.Split, folder: Path) -> list[int]:
    """The split's images as files, and their labels."""
    folder.mkdir()
    labels = []
    for position in range(len(split)):
        image, label = split.read(position)
        image.save(folder / f"{position:05}.png")
        labels.append(int(label))  # type: ignore[arg-type]
    return labels


def answers(folder: Path, pictures: Path, python: str = sys.executable) -> dict[str, Any]:
    """What a process says that has nothing but the folder, in an empty one of its own."""
    done = subprocess.run(
        [python, "-I", str(SCRIPT), str(folder), str(pictures)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def crossing(supernetwork: st.Supernetwork, output: Any, split: st.Split) -> st.Genotype:
    """The best network with one stitch."""
    switches = range(len(supernetwork.switches))
    singles = [supernetwork.canonical(st.Genotype(output, frozenset([s]))) for s in switches]
    crossed = [genotype for genotype in singles if genotype.on]
    judged = Evaluator(supernetwork, split, ["accuracy"]).evaluate(crossed)
    qualities = [evaluation.figures["accuracy"] for evaluation in judged]
    return crossed[qualities.index(max(qualities))]


@pytest.mark.parametrize(("pair", "output"), [("supernetwork", "b"), ("cnn_vit", "ensemble")])
def test_the_very_figures_are_reproduced_elsewhere(
    pair: str,
    output: Any,
    request: pytest.FixtureRequest,
    data: st.Data,
    origin: Origin,
    tmp_path: Path,
) -> None:
    supernetwork = request.getfixturevalue(pair)
    genotype = crossing(supernetwork, output, data.val)
    folder = tmp_path / "to"
    export_network(supernetwork, genotype, folder, split=data.test, origin=origin, formats=["all"])
    labels = write_pictures(data.test, tmp_path / "pictures")
    evaluator = Evaluator(supernetwork, data.test, ["accuracy"], kernels="plain")
    (judged,) = evaluator.evaluate([genotype])
    expected = evaluator.logits([genotype])[0].argmax(1).tolist()

    found = answers(folder, tmp_path / "pictures")
    assert "optuna_stitch" in found["modules"]  # where the script made them impossible to import
    assert not [name for name in found["modules"] if name.startswith("optuna_stitch.")]
    assert list(found["labels"]) == ["python", "program", "onnx"]
    for form, guesses in found["labels"].items():
        assert guesses == expected, form
        hits = sum(guess == label for guess, label in zip(guesses, labels, strict=True))
        assert hits / len(labels) == judged.figures["accuracy"], form
    assert 0.12 < judged.figures["accuracy"] < 1  # neither chance nor a foregone conclusion


def test_in_a_fresh_environment(
    fresh: str, supernetwork: st.Supernetwork, data: st.Data, origin: Origin, tmp_path: Path
) -> None:
    genotype = crossing(supernetwork, "ensemble", data.val)
    folder = tmp_path / "to"
    export_network(supernetwork, genotype, folder, split=data.test, origin=origin, formats=["all"])
    labels = write_pictures(data.test, tmp_path / "pictures")
    evaluator = Evaluator(supernetwork, data.test, ["accuracy"], kernels="plain")
    expected = evaluator.logits([genotype])[0].argmax(1)
    found = answers(folder, tmp_path / "pictures", fresh)["labels"]
    assert found == dict.fromkeys(("python", "program", "onnx"), expected.tolist())
    hits = int((torch.tensor(labels) == expected).sum())
    assert hits == round(evaluator.evaluate([genotype])[0].figures["accuracy"] * len(labels))
