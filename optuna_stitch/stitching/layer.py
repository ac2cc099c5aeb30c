"""The stitch: a small linear layer from one parent's feature to the other's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_stitch.models.layouts import Layout, resample

# What a linear map reads of a feature: its grid, the mean over its grid, or one prefix token.
Part = Literal["grid", "mean"] | int


class Stitch(nn.Module):
    """Turn the feature at one end of a match into what the other end expects.

    On the grid it is a convolution, at whichever of the two resolutions is smaller; the
    resampling to the target's grid is fixed. Of reduced rank, it is two convolutions, the second
    1 × 1. Prefix tokens have a linear map each, from the source's prefix token of the same place,
    or from the mean over its grid where it has none.

    Args:
        source: Layout of the feature that is read, C_s channels.
        target: Layout of the feature that is replaced, C_t channels and P prefix tokens.
        kernel: Side k of the convolution's kernel, odd.
        rank: Rank r of the map, or None for full rank.
        everywhere: Whether every position of the grid has a bias of its own.

    Attributes:
        weight: ``(C_t, C_s, k, k)``, or ``(r, C_s, k, k)``.
        expand: ``(C_t, r)``, or None at full rank.
        bias: ``(C_t, 1, 1)``, or ``(C_t, h, w)`` on the smaller grid.
        prefix_weight: ``(P, C_t, C_s)``.
        prefix_bias: ``(P, C_t)``.
    """

    def __init__(
        self,
        source: Layout,
        target: Layout,
        *,
        kernel: int = 1,
        rank: int | None = None,
        everywhere: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.kernel = kernel
        self.rank = rank
        self.everywhere = everywhere
        rows, columns, prefix = target.channels, source.channels, target.prefix
        self.weight = _zeros(rank or rows, columns, kernel, kernel)
        self.expand = _zeros(rows, rank) if rank else None
        self.bias = _zeros(rows, *(self.grid if everywhere else (1, 1)))
        self.prefix_weight = _zeros(prefix, rows, columns)
        self.prefix_bias = _zeros(prefix, rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        weights = self.weight.numel() + (self.expand.numel() if self.expand is not None else 0)
        return self.grid[0] * self.grid[1] * weights + self.prefix_weight.numel()

    @property
    def grid(self) -> tuple[int, int]:
        """The grid on which the channels are mixed: the smaller one in each direction."""
        (height, width), (rows, columns) = self.source.grid, self.target.grid
        return min(height, rows), min(width, columns)

    @property
    def prefix_parts(self) -> list[Part]:
        """What each of the target's prefix tokens is made from."""
        wanted = range(self.target.prefix)
        if not self.source.prefix:
            return ["mean" for _ in wanted]
        return [min(place, self.source.prefix - 1) for place in wanted]

    def forward(self, feature: Tensor) -> Tensor:
        """Map a source feature, N images in the source's layout, to the target's layout.

        Args:
            feature: N images in the source's layout.
        """
        grid = read_part(self.source, feature, "grid", self.grid)
        bias = None if self.everywhere else self.bias.flatten()
        padding = self.kernel // 2
        if self.expand is None:
            mapped = F.conv2d(grid, self.weight, bias, padding=padding)
        else:
            latent = F.conv2d(grid, self.weight, padding=padding)
            mapped = F.conv2d(latent, self.expand[:, :, None, None], bias)
        if self.everywhere:
            mapped = mapped + self.bias
        prefix: Tensor | None = None
        if self.target.prefix:
            tokens = [read_part(self.source, feature, part) for part in self.prefix_parts]
            read = torch.stack([token.flatten(1) for token in tokens], dim=1)
            prefix = torch.einsum("npc,prc->npr", read, self.prefix_weight) + self.prefix_bias
        return self.target.join(resample(mapped, self.target.grid), prefix)

    def extra_repr(self) -> str:
        """What `print` shows: the two layouts, and what is not the simplest choice."""
        rank = f", rank={self.rank}" if self.rank else ""
        everywhere = ", everywhere=True" if self.everywhere else ""
        return f"{self.source} -> {self.target}, kernel={self.kernel}{rank}{everywhere}"


class Stitches(nn.ModuleList):
    """The stitches of a supernetwork, in the order of their switches."""

    def __iter__(self) -> Iterator[Stitch]:
        return cast("Iterator[Stitch]", super().__iter__())


def read_part(
    layout: Layout, feature: Tensor, part: Part, size: tuple[int, int] = (1, 1)
) -> Tensor:
    """Part of a feature as a grid.

    Args:
        layout: The feature's layout.
        feature: N images in that layout.
        part: What to read of it.
        size: Height and width to resample the grid to, where it is read.

    Returns:
        ``(N, C, *size)`` for the grid, ``(N, C, 1, 1)`` for its mean or for a prefix token.
    """
    grid, prefix = layout.split(feature)
    if part == "grid":
        return resample(grid, size)
    if part == "mean" or prefix is None:
        return grid.mean(dim=(2, 3), keepdim=True)
    return prefix[:, part, :, None, None]


def _zeros(*shape: int) -> nn.Parameter:
    # stitches are fitted in closed form; only tuning asks for gradients
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)
