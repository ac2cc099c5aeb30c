"""Networks to export, and what others do with an exported one."""

from __future__ import annotations

import dataclasses
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.stitching.genotype import Genotype

Network = Callable[..., Tensor]

VIEW = st.View((3, 32, 32))

SCRIPT = Path(__file__).with_name("answers.py")


def some(supernetwork: st.Supernetwork, seed: int) -> st.Subnetwork:
    """A random subnetwork with a few switches that matter."""
    generator = np.random.default_rng(seed)
    count = len(supernetwork.switches)
    while True:
        on = frozenset(generator.choice(count, size=min(count, 3), replace=False).tolist())
        output = ("ensemble", "a", "b")[seed % 3]
        found = supernetwork.subnetwork(Genotype(output, on))
        if found.on:
            return found


def best_single_stitch(supernetwork: st.Supernetwork, output: Any, split: Split) -> st.Subnetwork:
    """The best network with one stitch, so that its answers are neither chance nor perfect."""
    switches = range(len(supernetwork.switches))
    singles = [supernetwork.subnetwork(Genotype(output, frozenset([s]))) for s in switches]
    stitched = [subnetwork for subnetwork in singles if subnetwork.on]
    evaluations = st.Evaluator(supernetwork, split, ["accuracy"]).evaluate(stitched)
    return max(zip(stitched, evaluations, strict=True), key=lambda one: one[1]["accuracy"])[0]


def cascade_of(
    supernetwork: st.Supernetwork, output: Any, split: Split, **changes: Any
) -> st.Subnetwork:
    """A cascade with a stitch, whose exit lets about 40% of a split's images go on."""
    switches = range(len(supernetwork.switches))
    cascades = (
        supernetwork.subnetwork(Genotype(output, frozenset([switch]), 0.4)) for switch in switches
    )
    cascade = next(cascade for cascade in cascades if cascade.on)
    (tuned,) = st.Evaluator(supernetwork, split, ["accuracy"]).tune_exits([cascade])
    return with_exit(tuned, **changes)


def with_exit(cascade: st.Subnetwork, **changes: Any) -> st.Subnetwork:
    """The same cascade with other numbers in its exit."""
    assert cascade.exit is not None
    return cascade.with_exit(dataclasses.replace(cascade.exit, **changes))


@torch.no_grad()
def by_sureness(cascade: st.Subnetwork, split: Split) -> list[Tensor]:
    """Some images of a split, by view, the least sure one first."""
    images = split.pick(range(60), cascade.supergraph.views).images
    module: Any = cascade.extract()
    order = module.exit.sure(module.first(*images)[0]).argsort()
    return [pixels[order] for pixels in images]


@torch.no_grad()
def assert_same_cascade(
    network: Network, cascade: st.Subnetwork, images: list[Tensor], tolerance: float = 0.0
) -> None:
    """The same answers where none, some and all images go on, several at once and one alone.

    Args:
        network: What answers.
        cascade: What it shall be.
        images: As `by_sureness` sorts them.
        tolerance: By how much logits may differ.
    """
    module: Any = cascade.extract()
    expected = {(0, 60): None, (0, 5): 5, (55, 60): 0, (0, 1): 1, (59, 60): 0}
    for (start, stop), went_on in expected.items():
        given = [pixels[start:stop] for pixels in images]
        answers = module(*given)
        assert module.went_on == went_on or (went_on is None and 0 < module.went_on < 60)
        assert (network(*given) - answers).abs().max() <= tolerance


def images_of(supernetwork: st.Supernetwork, count: int) -> list[Tensor]:
    """Random images, by view."""
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randn(count, *view.input_size, generator=generator) for view in supernetwork.views
    ]


@torch.no_grad()
def assert_same(network: Network, subnetwork: st.Subnetwork, images: list[Tensor]) -> None:
    """The very same answers, for all images and for one alone."""
    module = subnetwork.extract()
    for count in (1, len(images[0])):
        given = [pixels[:count] for pixels in images]
        assert torch.equal(network(*given), module(*given))


def load_code(folder: Path) -> Any:
    return runpy.run_path(str(folder / "network.py"))["load_network"]()


def load_program(folder: Path) -> Network:
    return torch.export.load(folder / "network.pt2").module()


def load_onnx(folder: Path, *, single: bool = False) -> Network:
    file, size = ("network.single.onnx", 1) if single else ("network.onnx", "batch")
    session = onnxruntime.InferenceSession(folder / file)
    names = [one.name for one in session.get_inputs()]
    assert all(one.shape[0] == size for one in session.get_inputs())

    def run(*images: Tensor) -> Tensor:
        given = {name: pixels.numpy() for name, pixels in zip(names, images, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def write_pictures(split: Split, folder: Path) -> list[int]:
    """Write a split's images as files, and return their labels."""
    folder.mkdir()
    labels = []
    for position in range(len(split)):
        image, label = split.read(position)
        image.save(folder / f"{position:05}.png")
        labels.append(int(label))  # type: ignore[arg-type]
    return labels


def answers(folder: Path, pictures: Path, python: str = sys.executable) -> dict[str, Any]:
    """What a process says that has nothing but the folder."""
    done = subprocess.run(
        [python, "-I", str(SCRIPT), str(folder), str(pictures)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Small(nn.Module):
    """A network that costs next to nothing to trace."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        return self.head(self.conv(x).relu().mean((2, 3)))


class Tied(nn.Module):
    """One weight in two layers, one layer called twice, a constant, and sizes by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("shift", torch.rand(8, 1, 1), persistent=False)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images))
        x = x + self.two(self.one(x).relu())
        x = self.norm(x * self.scale + self.shift)
        count, channels = x.shape[:2]
        x = x.reshape(count * channels, -1).mean(1).reshape(count, channels)
        place = torch.arange(count, device=images.device)[:, None]
        return self.head(x + torch.full((), 0.25) * (place >= 0))


@torch.library.custom_op("stitch_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


twice.register_fake(torch.empty_like)


class Foreign(Small):
    """A network with an operator that is not torch's own."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.ops.stitch_tests.twice(images))


def small_pair(
    a: Callable[[], nn.Module] = Small,
    b: Callable[[], nn.Module] = Small,
    view: st.View = VIEW,
) -> st.Supernetwork:
    """Two small networks with random weights and stitches; a sees images by the view."""
    torch.manual_seed(0)
    one, two = (
        st.load_parent(a(), view=view, name="one"),
        st.load_parent(b(), view=VIEW, name="two"),
    )
    supernetwork = st.stitch(one, two, points="all")
    for parameter in supernetwork.stitches.parameters():
        parameter.data.normal_(std=0.05)
    return supernetwork
