"""Real pairs of trained networks, with real images, for benchmarks and tests.

They are read from a folder beside the repository, or from ``$OPTUNA_STITCH_DATA``; its README says
what is in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset

import optuna_stitch as st
from optuna_stitch.data.splits import Split

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPTUNA_STITCH_DATA", ROOT.parent / "shared" / "data"))
MISSING = (
    f"needs trained networks and images in {DATA}; put them there, or name another folder in "
    "$OPTUNA_STITCH_DATA"
)


@dataclass
class Pair:
    a: st.Parent
    b: st.Parent
    data: st.Data


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.padding = (outputs - inputs) // 2
        self.reduces = stride != 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        if self.reduces:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return self.relu2(y + x)


class CifarResNet(nn.Module):
    """He et al. (2015), section 4.2: 6 n + 2 layers for images of 32 × 32."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            first = _Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = [_Block(widths[stage], widths[stage], 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _cifar_resnet(name: str, blocks: int) -> st.Parent:
    module = CifarResNet(blocks)
    weights = load_file(DATA / "cifar10" / f"{name}.safetensors")
    module.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}, strict=False
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return st.load_parent(
        module.eval(), name=name, input_size=32, mean=mean, std=std, crop_pct=1.0
    )


def _splits(folder: Path, seed: int, train: str = "train", **shared: object) -> st.Data:
    parts = {part: {"root": folder / f"{part}.tar"} for part in ("val", "test")}
    parts["train"] = {"root": folder / f"{train}.tar"}
    return st.load_data("", seed=seed, **parts, **shared)  # type: ignore[arg-type]


def _with_more(data: st.Data, more: Split) -> st.Data:
    """The same with further images to fit on."""
    own = data.train
    count = len(own.dataset)
    both: ConcatDataset[Any] = ConcatDataset([own.dataset, more.dataset])  # type: ignore[list-item]
    indices = [*own.indices, *(count + index for index in more.indices)]
    return replace(data, train=Split(own.name, both, indices, f"{own.source} + {more.source}"))


def _digits(seed: int) -> Pair:
    """The pair of `studies/digits.yaml`."""
    data = st.load_data("sklearn/digits", train={"images": 500}, val={"images": 500}, seed=seed)
    view = st.View((3, 32, 32))
    parents = []
    for network, epochs in (("test_resnet", 6), ("test_efficientnet", 12)):
        parent = st.load_parent(network, num_classes=10, view=view)
        st.train_parent(parent, data.train, st.Recipe(epochs=epochs, learning_rate=4e-3, seed=1))
        parents.append(parent)
    return Pair(*parents, data)


def load_pair(name: str, seed: int = 0) -> Pair:
    """One of ``digits``, ``cifar``, ``cnn_vit`` and ``imagenet``; the seed orders the images."""
    if name == "digits":
        return _digits(seed)
    if name == "cifar":
        a, b = _cifar_resnet("resnet20", 3), _cifar_resnet("resnet56", 9)
        return Pair(a, b, _splits(DATA / "cifar10", seed))
    if name == "cnn_vit":
        view = st.View((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
        arguments = {
            "test_resnet": {"num_classes": 10, "output_stride": 8},
            "test_vit": {"num_classes": 10, "img_size": 32, "patch_size": 4},
        }
        a, b = (
            st.load_parent(
                network,
                checkpoint=DATA / "cifar10" / f"{network}.safetensors",
                model_args=model_args,
                view=view,
            )
            for network, model_args in arguments.items()
        )
        return Pair(a, b, _splits(DATA / "cifar10", seed))
    folder = DATA / "imagenet"
    view = st.View((3, 224, 224), (0.502,) * 3, (0.502,) * 3, "bilinear")
    a, b = (
        st.load_parent(
            network,
            checkpoint=folder / f"{network}.safetensors",
            model_args={"pad_type": "same"},
            view=view,
        )
        for network in ("mobilenetv1_100", "mobilenetv2_100")
    )
    data, more = (
        _splits(folder, seed, train, class_map=folder / "class_map.txt")
        for train in ("train", "extra")
    )
    return Pair(a, b, _with_more(data, more.train))


def arguments_of(description: str, pairs: Sequence[str]) -> argparse.Namespace:
    """What a benchmark of pairs is called with: ``pairs``, ``seeds`` (one with ``quick``).

    It ends where there are no networks and images.

    Args:
        description: The script's own.
        pairs: Those that it measures by default.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("pairs", nargs="*", default=list(pairs), metavar="PAIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    if arguments.quick:
        del arguments.seeds[1:]
    return arguments


def state() -> str:
    """What the figures depend on beside the code."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def spread(values: Sequence[float]) -> str:
    """A median with the smallest and the largest value."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def say(text: str) -> None:
    """Say how far a benchmark is."""
    print(text, file=sys.stderr, flush=True)
