"""What a model card says, and that its code runs as it stands."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm.data
import torch

import optuna_stitch as st
from optuna_stitch.data.view import View
from optuna_stitch.export.card import Origin, ParentOrigin, timm_config, write_card


@pytest.fixture
def subnetwork(exported: Any) -> st.Subnetwork:
    """A network that begins in a and ends in b."""
    return exported("supernetwork", "b")[0]


@pytest.fixture
def folder(exported: Any) -> Path:
    """The same, exported in every format."""
    return exported("supernetwork", "b")[1]


def test_the_card_says_what_why_and_whose(folder: Path, subnetwork: st.Subnetwork) -> None:
    (switch,) = subnetwork.on
    text = (folder / "README.md").read_text()
    macs: Counter[str] = Counter()
    for place, _ in subnetwork.resolved.steps:
        operation = subnetwork.supergraph.operations[place]
        macs[operation.owner] += operation.macs
    share = {owner: f"{100 * part / subnetwork.macs:.0f}%" for owner, part in macs.items()}
    assert (
        f"Trial 7 of the study scans: stitched from test_resnet (a, {share['a']} of the MACs) and "
        f"test_efficientnet (b, {share['b']} of the MACs) by one linear stitch "
        f"({share['stitch']}). It returns the output of b."
    ) in text
    assert "| parent a | 95.00% | 93.0–96.0% | 4.000 M | 1,234 | +1.00 | 0.004 |" in text
    assert "| ensemble | 98.00% | 96.0–99.0% | 9.000 M | 1,234 | -2.00 | 1 |" in text
    assert "| **trial 7** | 96.00% | 94.0–97.0% | 3.000 M | 1,234 |  |  |" in text
    assert "On 1297 test images" in text
    assert "McNemar's test on the same images, corrected by Holm" in text
    assert "| a | test_resnet | pretrained, from timm | apache-2.0 |" in text
    assert "| b | test_efficientnet | trained in this run, 6 epochs | not stated |" in text
    assert f"- {subnetwork.stitches[0]} (switch {switch})" in text
    assert "optuna-stitch export runs/scans --trial 7 --to trial-7" in text
    assert "| versions | torch 2 |" in text
    assert "(network.svg)" in text
    assert ET.parse(folder / "network.svg").getroot().tag.endswith("svg")


def test_the_hub_reads_the_header(folder: Path) -> None:
    data = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert data.license == "other"
    assert data.library_name == "pytorch"
    assert data.pipeline_tag == "image-classification"
    assert data.tags == [
        *("image-classification", "optuna-stitch", "model-stitching", "safetensors", "onnx")
    ]
    assert data.base_model == ["timm/r"]
    assert data.metrics == ["accuracy"]
    assert data.model_name == "Trial 7 of scans"
    (result,) = data.eval_results
    assert (result.task_type, result.metric_type) == ("image-classification", "accuracy")
    assert (result.dataset_name, result.dataset_split) == ("sklearn/digits", "test")
    assert result.metric_value == 0.96


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("mit", "mit"), ("mit", None)),
        (("mit", "apache-2.0"), ("other", None)),
        (("mit", None), ("other", None)),
        ((None, None), ("other", None)),
        (("seer-license", "seer-license"), ("other", "seer-license")),
    ],
)
def test_a_licence_is_stated_where_both_parents_agree(
    licences: tuple[str | None, str | None],
    expected: tuple[str, str | None],
    origin: Origin,
    subnetwork: st.Subnetwork,
) -> None:
    a, b = (ParentOrigin("n", "w", licence) for licence in licences)
    changed = dataclasses.replace(origin, parents={"a": a, "b": b})
    data = huggingface_hub.ModelCard(write(changed, subnetwork)).data
    assert (data.license, data.license_name) == expected


def write(origin: Origin, subnetwork: st.Subnetwork) -> str:
    return write_card(subnetwork, origin, {"images": subnetwork.supergraph.views[0]}, ["python"])


def test_networks_without_a_stitch(origin: Origin, supernetwork: st.Supernetwork) -> None:
    alone = write(origin, supernetwork.subnetwork({"output": "a"}))
    assert "test_resnet (parent a) alone, without a stitch. It returns the output of a." in alone
    assert huggingface_hub.ModelCard(alone).data.license == "apache-2.0"  # b has no part in it
    assert "None is on." in alone
    both = write(origin, supernetwork.subnetwork({"output": "ensemble"}))
    assert re.search(r"the ensemble of test_resnet \(a, \d+% of the MACs\) and test_eff", both)
    assert "the mean of the class probabilities of both, as logits" in both


def test_a_card_of_what_nothing_is_known_of(subnetwork: st.Subnetwork) -> None:
    origin = Origin({"a": ParentOrigin("one"), "b": ParentOrigin("two")})
    card = write(origin, subnetwork)
    assert "# one × two\n" in card
    assert "A subnetwork of one × two: stitched from one (a, " in card
    assert "| a | one | not stated | not stated |" in card
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        *("## Parents", "## Stitches", "## Use")
    ]
    data = huggingface_hub.ModelCard(card).data
    assert (data.license, data.eval_results, data.base_model) == ("other", None, None)


def test_a_card_of_networks_that_label_pixels(
    origin: Origin, supernetwork: st.Supernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    subnetwork = supernetwork.subnetwork({"output": "ensemble"})
    monkeypatch.setattr(type(subnetwork.supergraph), "segments", True)
    assert origin.results is not None
    others = {"pixel_accuracy": 0.75}
    network, *baselines = (
        dataclasses.replace(one, macs=1e6, others=others)
        for one in (origin.results.network, *origin.results.baselines)
    )
    results = dataclasses.replace(
        origin.results, network=network, baselines=baselines, metric="mean_iou"
    )
    card = write_card(
        subnetwork,
        dataclasses.replace(origin, results=results),
        {"images_0": View((1, 8, 8)), "images_1": View((3, 8, 8))},
        ["python", "onnx"],
    )
    data = huggingface_hub.ModelCard(card).data
    assert data.pipeline_tag == "image-segmentation"
    assert {one.metric_type: one.metric_value for one in data.eval_results} == {
        "mean_iou": 0.96,
        "pixel_accuracy": 0.75,
    }
    assert "| network | mean IoU | 95% interval | MACs | pixel_accuracy | parameters |" in card
    assert "| parent a | 95.00% | 93.0–96.0% | 1.000 M | 0.75 | 1,234 |" in card
    assert "the paired bootstrap on the same images" in card
    assert 'image.convert({1: "L", 4: "RGBA"}.get(cfg["input_size"][0], "RGB"))' in card
    assert 'for cfg in [one["pretrained_cfg"] for one in config["inputs"]]:' in card
    assert "class of every pixel" in card
    assert "network.pt2" not in card


@pytest.mark.slow
def test_the_code_of_the_card_runs(folder: Path, data: st.Data, tmp_path: Path) -> None:
    """Each format's lines, after those that prepare an image, say the class of an image."""
    text = (folder / "README.md").read_text()
    prepare, *loads = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(loads) == 3
    image, _ = data.test.read(3)
    image.save(tmp_path / "image.png")
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    expected = data.test.pick([3], [View((3, 32, 32))]).images[0].sum().item()
    said = "print(int(logits.argmax()), images[0].sum().item())\n"
    # one process, which imports torch once; what one runs knows nothing of the others
    codes = [f"{prepare}\n{load}\n{said}" for load in loads]
    script = f"import sys; sys.path.insert(0, '.')\nfor code in {codes!r}: exec(code, {{}})"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(loads)
    for name, numbers in zip(lines[::2], lines[1::2], strict=True):
        assert numbers == f"{name} {expected}"


@pytest.mark.parametrize(
    "view",
    [
        View((3, 32, 32)),
        View((3, 224, 160), (0.1, 0.2, 0.3), (0.3, 0.2, 0.1), "bilinear", 0.875),
        View((1, 28, 28), (0.1307,), (0.3081,), "bicubic", 0.95, "squash"),
        View((3, 96, 96), interpolation="nearest", crop_pct=0.9, crop_mode="border"),
    ],
)
def test_timms_transform_is_that_of_the_view(view: View, data: st.Data) -> None:
    text = timm_config("a × b", 10, {"images": view}, class_names=None, licence=None)
    config: dict[str, Any] = json.loads(text)
    assert config["architecture"] == "a_b"
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 10
    assert "license" not in config["pretrained_cfg"]
    fields = timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    transform = timm.data.create_transform(**fields)
    for position in range(5):
        image = data.test.read(position)[0].convert(view.mode).resize((57, 43))
        assert torch.equal(transform(image), view.transform()(image))
