"""A CNN × ViT pair with real images: the report from one command, and its numbers from scratch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import timm
import timm.data
import torch
from safetensors.torch import load_file
from torch import nn

from tests.benchmarks.pairs import DATA, MISSING
from tests.helpers.commands import call
from tests.report.recompute import largest_difference

STUDY = """\
parents:
  a:
    network: test_resnet
    checkpoint: {data}/test_resnet.safetensors
    model_args: {{num_classes: 10, output_stride: 8}}
    input_size: 32
    mean: [0.4914, 0.4822, 0.4465]
    std: [0.247, 0.2435, 0.2616]
    crop_pct: 1.0
  b:
    network: test_vit
    checkpoint: {data}/test_vit.safetensors
    model_args: {{num_classes: 10, img_size: 32, patch_size: 4}}
    input_size: 32
    mean: [0.4914, 0.4822, 0.4465]
    std: [0.247, 0.2435, 0.2616]
    crop_pct: 1.0
data:
  dataset: ""
  train: {{root: {data}/train.tar, images: 150}}
  val: {{root: {data}/val.tar, images: 100}}
  test: {{root: {data}/test.tar, images: 400}}
study: {{trials: 60, start: {{population: 12}}}}
"""
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
ARGUMENTS = {
    "test_resnet": {"num_classes": 10, "output_stride": 8},
    "test_vit": {"num_classes": 10, "img_size": 32, "patch_size": 4},
}


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar10").exists(), reason=MISSING)
def test_the_report_of_a_real_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pair.yaml").write_text(STUDY.format(data=DATA / "cifar10"))
    assert call("run", "pair.yaml") == 0
    run = Path("runs/pair")
    before = (run / "report.md").read_text()
    (run / "report.md").unlink()
    assert call("report", "runs/pair") == 0
    assert (run / "report.md").read_text() == before
    assert largest_difference(run) < 1e-12

    said = pd.read_csv(run / "predictions.csv", index_col="image")
    images = timm.data.create_dataset("", root=str(DATA / "cifar10" / "test.tar"))
    transform = timm.data.create_transform(
        (3, 32, 32), mean=MEAN, std=STD, interpolation="bicubic", crop_pct=1.0
    )
    read = [images[int(index)] for index in said.index]
    batch = torch.stack([transform(image.convert("RGB")) for image, _ in read])
    assert said["label"].tolist() == [label for _, label in read]
    networks = {"parent a": _parent("test_resnet"), "parent b": _parent("test_vit")}
    stitched = [name for name in said.columns if name.startswith("trial ")]
    assert stitched
    for name in stitched[:2]:
        number = name.removeprefix("trial ")
        assert call("export", "runs/pair", "--trial", number, "--to", number) == 0
        networks[name] = _exported(Path(number))
    answers = {name: _predict(network, batch) for name, network in networks.items()}
    for name, logits in answers.items():
        assert said[name].tolist() == logits.argmax(1).tolist(), name
    both = (answers["parent a"].softmax(1) + answers["parent b"].softmax(1)) / 2
    assert (said["ensemble"].to_numpy() == both.argmax(1).numpy()).mean() > 0.998  # ties


def _parent(name: str) -> nn.Module:
    network = timm.create_model(name, **ARGUMENTS[name]).eval()
    network.load_state_dict(load_file(DATA / "cifar10" / f"{name}.safetensors"))
    return network


def _exported(folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location(f"network_{folder}", folder / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.load_network()
    return network


@torch.no_grad()
def _predict(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([network(part) for part in images.split(50)])
