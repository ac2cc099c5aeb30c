"""Everything on an accelerator: one that is not there, and with ``-m gpu`` a real one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from tests.helpers.networks import networks
from tests.helpers.pretend import DEVICE, accelerator

PLAIN = [
    Genotype("a"),
    Genotype("ensemble"),
    Genotype("ensemble", frozenset([0])),
    Genotype("b", frozenset([2])),
]
CASCADES = [Genotype("a then both", frozenset([0]), 0.4), Genotype("b then both", threshold=0.2)]


class Small(nn.Module):
    """Labels every pixel, or the image."""

    def __init__(self, width: int, segments: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 5 if segments else 10, 1)
        self.segments = segments

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.conv(self.norm(self.stem(images)).relu()).relu())
        return x if self.segments else x.mean((2, 3))


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with accelerator() as device:
        yield device


def _pair(kind: str, a: st.Parent, b: st.Parent, vit: st.Parent) -> st.Supernetwork:
    if kind in ("labels", "segments"):
        torch.manual_seed(0)
        view = st.View((3, 16, 16))
        return st.stitch(
            *(
                st.load_parent(Small(width, kind == "segments"), view=view, name=f"{width}")
                for width in (4, 6)
            ),
            points="all",
        )
    one, other = (copy.deepcopy(p) for p in (a, vit if kind == "vit" else b))
    return st.stitch(one, other, points="blocks")


def _judged(supernetwork: st.Supernetwork, split: st.data.splits.Split) -> list[list[float]]:
    quality = "mean_iou" if supernetwork.segments else "accuracy"
    names = [quality] if supernetwork.segments else [quality, "calibration_error", "agreement"]
    subnetworks = networks(supernetwork, PLAIN if supernetwork.segments else [*PLAIN, *CASCADES])
    return [
        list(evaluation.figures.values())
        for kernels in ("plain", "fast")
        for evaluation in st.Evaluator(
            supernetwork, split, [*names, "macs"], kernels=kernels
        ).evaluate(subnetworks)
    ]


@pytest.mark.parametrize(
    "kind",
    ["labels", "segments", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cnn", "vit"))],
)
def test_from_parents_to_answers_on_a_device(
    kind: str, a: st.Parent, b: st.Parent, vit: st.Parent, data: st.Data, gpu: torch.device
) -> None:
    part = {"images": 30}
    some = st.load_data("noise/5/pixels", train=part, val=part, test=part)
    some = some if kind == "segments" else data
    train, val = some.train.take(40), some.val.take(20)
    here, there = _pair(kind, a, b, vit), _pair(kind, a, b, vit).to("cuda")
    assert (here.device, there.device) == (torch.device("cpu"), DEVICE)
    fits = [network.fit(train, recalibrate=20, batch_size=16) for network in (here, there)]
    for one, other in zip(*fits, strict=True):
        assert (one.switch, one.kernel, one.macs) == (other.switch, other.kernel, other.macs)
        assert one.r2 == pytest.approx(other.r2, abs=1e-6)
    for one, other in zip(here.stitches, there.to("cpu").stitches, strict=True):
        assert all(
            torch.allclose(weight, same, atol=1e-4)
            for weight, same in zip(one.parameters(), other.parameters(), strict=True)
        )
    there.to("cuda")
    assert _judged(here, val) == _judged(there, val)
    if kind != "segments":
        (cascade,) = st.Evaluator(there, val).tune_exits(networks(there, CASCADES[:1]))
        images = val.pick(range(8), there.views, DEVICE).images
        with torch.no_grad():
            answers = cascade.extract()(*images)
            (crossed,) = networks(there, PLAIN[3:])
            assert crossed.extract()(*images).device == answers.device == DEVICE
        tuned = [n.tune(train, steps=2, networks=2, batch_size=8) for n in (here, there)]
        for before, after in zip(*tuned, strict=True):
            assert before.after == pytest.approx(after.after, abs=1e-3)
