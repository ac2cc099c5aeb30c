from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.export.card import Origin, ParentOrigin
from optuna_stitch.export.formats import FORMATS
from optuna_stitch.stitching.genotype import SIDES, Genotype


@pytest.mark.parametrize(
    "name",
    ["python", *(pytest.param(name, marks=pytest.mark.slow) for name in ("program", "onnx"))],
)
def test_both_answers_leave_by_name(
    two_jobs: st.Supernetwork, pair: st.DataPair, tmp_path: Path, name: str
) -> None:
    subnetwork = two_jobs.subnetwork(Genotype("both", frozenset([2])))
    origin = Origin(
        {side: ParentOrigin(two_jobs.graphs[side].name) for side in SIDES},
        names_of={side: pair.of(side).class_names for side in SIDES},
    )
    folder = st.export_subnetwork(
        subnetwork, tmp_path / "network", split=pair.test, formats=[name], origin=origin
    )
    images = next(pair.val.a.batches(two_jobs.views, 7)).images
    with torch.no_grad():
        found, expected = FORMATS[name].load(folder)(*images), subnetwork.extract()(*images)
    assert isinstance(found, dict)
    assert list(found) == ["a", "b"]
    for side in SIDES:
        difference = (found[side] - expected[side]).abs().max()
        assert difference <= FORMATS[name].tolerance
    config = json.loads((folder / "config.json").read_text())
    assert config["outputs"]["b"] == {"num_classes": 2, "label_names": ["no loop", "loop"]}
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    card = (folder / "README.md").read_text()
    assert "answers two questions" in card
    assert "answers.items()" in card
    assert "outputs of a and of b" in (folder / "network.svg").read_text()
