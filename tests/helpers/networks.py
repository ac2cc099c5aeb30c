"""Subnetworks by their genotypes, and networks that are made at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.layer import Stitch


def networks(supernetwork: st.Supernetwork, genotypes: Iterable[Genotype]) -> list[st.Subnetwork]:
    return [supernetwork.subnetwork(genotype) for genotype in genotypes]


def map_of(stitch: Stitch) -> Tensor:
    """What a stitch multiplies by: its factors, whose signs are free, as one matrix."""
    weight = stitch.weight.detach().flatten(1)
    return weight if stitch.expand is None else stitch.expand.detach() @ weight


class SmallNetwork(nn.Module):
    """Labels every pixel, or the image."""

    def __init__(self, width: int, *, segments: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 5 if segments else 10, 1)
        self.segments = segments

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.conv(self.norm(self.stem(images)).relu()).relu())
        return x if self.segments else x.mean((2, 3))


def small_pair(*, segments: bool = False, side: int = 16) -> st.Supernetwork:
    """Two of them, stitched wherever that is possible, not fitted; always the same."""
    torch.manual_seed(0)
    view = st.View((3, side, side))
    parents = [
        st.load_parent(SmallNetwork(width, segments=segments), view=view, name=f"{width}")
        for width in (4, 6)
    ]
    return st.stitch(*parents, points="all")


def small_parents(modules: Sequence[nn.Module]) -> list[st.Parent]:
    """Networks that see images of 8 pixels, as parents."""
    view = st.View((3, 8, 8))
    return [
        st.load_parent(module, view=view, name=f"network {place}")
        for place, module in enumerate(modules)
    ]


def small_trio(*, widths: Sequence[int] = (4, 6, 8)) -> st.Supernetwork:
    """Three of them, stitched wherever that is possible, by random stitches; always the same."""
    torch.manual_seed(0)
    modules = [SmallNetwork(width, segments=False) for width in widths]
    supernetwork = st.stitch(*small_parents(modules), points="all")
    for weight in supernetwork.stitches.parameters():
        nn.init.normal_(weight, std=0.3)
    return supernetwork
