"""What a model card says, and that its code runs as it stands."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm.data
import torch

import optuna_stitch as st
from optuna_stitch.data.view import View
from optuna_stitch.diagram.segments import dissect
from optuna_stitch.export.card import Ancestor, Origin, timm_config, write_card
from optuna_stitch.export.export import export_network


def crossing(supernetwork: st.Supernetwork) -> tuple[int, st.Genotype]:
    """A stitch from a to b, and the network that begins in a and ends in b by it."""
    count = len(supernetwork.switches)
    into_b = [i for i, s in enumerate(supernetwork.switches) if s.into == "b" and i > count / 4]
    return into_b[0], st.Genotype("b", frozenset([into_b[0]]))


@pytest.fixture(scope="module")
def folder(
    supernetwork: st.Supernetwork,
    data: st.Data,
    origin: Origin,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    _, genotype = crossing(supernetwork)
    to = tmp_path_factory.mktemp("export") / "to"
    return export_network(
        supernetwork, genotype, to, split=data.test, origin=origin, formats=["all"]
    )


def test_the_card_says_what_why_and_whose(folder: Path, supernetwork: st.Supernetwork) -> None:
    switch, genotype = crossing(supernetwork)
    text = (folder / "README.md").read_text()
    macs = dissect(supernetwork, genotype).macs
    share = {owner: f"{100 * part / sum(macs.values()):.0f}%" for owner, part in macs.items()}
    assert (
        f"Trial 7 of the study scans: stitched from test_resnet (a, {share['a']} of the MACs) and "
        f"test_efficientnet (b, {share['b']} of the MACs) by one linear stitch "
        f"({share['stitch']}). It returns the output of b."
    ) in text
    assert "| parent a | 95.00% | 93.0–96.0% | 4.000 M | 1,234 | +1.00 | 0.004 |" in text
    assert "| ensemble | 98.00% | 96.0–99.0% | 9.000 M | 1,234 | -2.00 | 1 |" in text
    assert "| **trial 7** | 96.00% | 94.0–97.0% | 3.000 M | 1,234 |  |  |" in text
    assert "On 1297 test images" in text
    assert "| a | test_resnet | pretrained, from timm | apache-2.0 |" in text
    assert "| b | test_efficientnet | trained in this run, 6 epochs | not stated |" in text
    assert f"- {supernetwork.switches[switch].name} (switch {switch})" in text
    assert "optuna-stitch export runs/scans --trial 7 --to trial-7" in text
    assert "| versions | torch 2 |" in text
    assert "(network.svg)" in text
    assert ET.parse(folder / "network.svg").getroot().tag.endswith("svg")


def test_the_hub_reads_the_header(folder: Path) -> None:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "other"
    assert card.data.library_name == "pytorch"
    assert card.data.pipeline_tag == "image-classification"
    assert {"optuna-stitch", "safetensors", "onnx"} <= set(card.data.tags)


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (("mit", "mit"), "mit"),
        (("mit", "apache-2.0"), "other"),
        (("mit", None), "other"),
        ((None, None), "other"),
        (("seer-license", "seer-license"), "other\nlicense_name: seer-license"),
    ],
)
def test_a_licence_is_stated_where_both_parents_agree(
    licences: tuple[str | None, ...],
    expected: str,
    origin: Origin,
    supernetwork: st.Supernetwork,
) -> None:
    a, b = (Ancestor("n", "w", licence) for licence in licences)
    changed = dataclasses.replace(origin, ancestors={"a": a, "b": b})
    card = write(changed, supernetwork, crossing(supernetwork)[1])
    assert f"\nlicense: {expected}\nlibrary_name" in card


def write(origin: Origin, supernetwork: st.Supernetwork, genotype: st.Genotype) -> str:
    parts = dissect(supernetwork, genotype)
    views = {"images": supernetwork.views[0]}
    return write_card(origin, parts, views, ["python"], segments=False)


def test_networks_without_a_stitch(origin: Origin, supernetwork: st.Supernetwork) -> None:
    alone = write(origin, supernetwork, st.Genotype("a"))
    assert "test_resnet (parent a) alone, without a stitch. It returns the output of a." in alone
    assert "license: apache-2.0" in alone  # b has no part in it
    assert "None is on." in alone
    both = write(origin, supernetwork, st.Genotype("ensemble"))
    assert re.search(r"the ensemble of test_resnet \(a, \d+% of the MACs\) and test_eff", both)
    assert "the mean of the class probabilities of both, as logits" in both


def test_a_card_of_networks_that_label_pixels(
    origin: Origin, supernetwork: st.Supernetwork
) -> None:
    entries = [
        dataclasses.replace(
            entry,
            metric="mean_iou",
            test={"mean_iou": entry.quality, "macs": 1e6, "pixel_accuracy": 0.75},
            intervals={"mean_iou": entry.interval},
        )
        for entry in origin.front.entries
    ]
    front = dataclasses.replace(origin.front, entries=entries, metric="mean_iou")
    genotype = st.Genotype("ensemble")
    card = write_card(
        dataclasses.replace(origin, front=front),
        dissect(supernetwork, genotype),
        {"images_0": View((1, 8, 8)), "images_1": View((3, 8, 8))},
        ["python", "onnx"],
        segments=True,
    )
    assert "pipeline_tag: image-segmentation" in card
    assert "| network | mean IoU | 95% interval | MACs | pixel_accuracy | parameters |" in card
    assert "| parent a | 95.00% | 93.0–96.0% | 1.000 M | 0.75 | 1,234 |" in card
    assert "the paired bootstrap on the same images" in card
    assert 'image.convert("L" if cfg["input_size"][0] == 1 else "RGB")' in card
    assert 'for cfg in [one["pretrained_cfg"] for one in config["inputs"]]:' in card
    assert "class of every pixel" in card
    assert "network.pt2" not in card


def test_the_code_of_the_card_runs(folder: Path, data: st.Data) -> None:
    """Each format's lines, after those that prepare an image, say the class of an image."""
    text = (folder / "README.md").read_text()
    prepare, *loads = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(loads) == 3
    image, _ = data.test.read(3)
    image.save(folder / "image.png")
    expected = data.test.pick([3], [View((3, 32, 32))]).images[0]
    for load in loads:
        script = (
            "import sys; sys.path.insert(0, '.')\n"
            + prepare
            + load
            + ("print(int(logits.argmax()), images[0].sum().item())\n")
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        name, said = done.stdout.splitlines()
        assert said == f"{name} {expected.sum().item()}"


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
