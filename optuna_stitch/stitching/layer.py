"""The stitch: a small linear layer from one parent's feature to the other's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_stitch.models.layouts import Layout, fold, folds, resample, unfold

# What a linear map reads of a feature: its grid, the mean over its grid, or one prefix token; or
# that mean and all prefix tokens.
Part = Literal["grid", "mean", "context"] | int


class Stitch(nn.Module):
    """Turn the feature at one end of a match into what the other end expects.

    On the grid it is a convolution, at whichever of the two resolutions is smaller. Of the finer
    grid, the positions that fall on one of the smaller grid are channels there (``folded``), so
    that the map knows them apart; or the resampling to or from it is fixed: an average where it
    shrinks, bilinear where it grows. Of reduced rank, it is two convolutions, the second 1 × 1.
    With ``context``, every position also reads the mean over the source's grid and its prefix
    tokens, which is computed once per image.
    Prefix tokens have a linear map each, from the source's prefix token of the same place,
    or from the mean over its grid where it has none.

    Args:
        source: Layout of the feature that is read, C_s channels.
        target: Layout of the feature that is replaced, C_t channels and P prefix tokens.
        kernel: Side k of the convolution's kernel, odd.
        rank: Rank r of the map, or None for full rank.
        everywhere: Whether every position of the grid has a bias of its own.
        folded: Whether positions of the finer grid are channels of the smaller one; it takes grids
            of which one is a whole number of times the other, and that not a single position.
        context: Whether every position reads the source's mean and prefix tokens too.

    Attributes:
        weight: ``(C_t, C_s, k, k)``, or ``(r, C_s, k, k)``; of folded channels, f² times as many.
        expand: ``(C_t, r)``, or None at full rank.
        bias: ``(C_t, 1, 1)``, or ``(C_t, h, w)`` on the smaller grid.
        context_weight: ``(C_t, (1 + P_s) C_s)`` or ``(r, (1 + P_s) C_s)``, or None without.
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
        folded: bool = False,
        context: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        self.target = target
        self.kernel = kernel
        self.rank = rank
        self.everywhere = everywhere
        self.folded = folded and self.times != (1, 1)
        rows, columns = target.channels, source.channels
        if self.folded:
            rows, columns = rows * self.times[1] ** 2, columns * self.times[0] ** 2
        self.weight = _zeros(rank or rows, columns, kernel, kernel)
        self.expand = _zeros(rows, rank) if rank else None
        self.bias = _zeros(rows, *(self.grid if everywhere else (1, 1)))
        seen = source.channels * (1 + source.prefix)
        self.context_weight = _zeros(rank or rows, seen) if context else None
        self.prefix_weight = _zeros(target.prefix, target.channels, source.channels)
        self.prefix_bias = _zeros(target.prefix, target.channels)

    @property
    def form(self) -> dict[str, Any]:
        """What it was made with, beside its layouts."""
        return {
            "kernel": self.kernel,
            "rank": self.rank,
            "everywhere": self.everywhere,
            "folded": self.folded,
            "context": self.context_weight is not None,
        }

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        weights = self.weight.numel() + (self.expand.numel() if self.expand is not None else 0)
        once = self.prefix_weight.numel()
        if self.context_weight is not None:
            once += self.context_weight.numel()
        return self.grid[0] * self.grid[1] * weights + once

    @property
    def grid(self) -> tuple[int, int]:
        """The grid on which the channels are mixed: the smaller one in each direction."""
        (height, width), (rows, columns) = self.source.grid, self.target.grid
        return min(height, rows), min(width, columns)

    @property
    def times(self) -> tuple[int, int]:
        """How many times finer than the smaller grid, by a whole number, source and target are."""
        return folds(self.source.grid, self.grid), folds(self.target.grid, self.grid)

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
        grid = read_part(self.source, feature, "grid", self.grid, folded=self.folded)
        bias = None if self.everywhere else self.bias.flatten()
        padding = self.kernel // 2
        mapped = F.conv2d(
            grid, self.weight, bias if self.expand is None else None, padding=padding
        )
        if self.context_weight is not None:
            seen = read_context(self.source, feature)
            mapped = mapped + F.linear(seen, self.context_weight)[:, :, None, None]
        if self.expand is not None:
            mapped = F.conv2d(mapped, self.expand[:, :, None, None], bias)
        if self.everywhere:
            mapped = mapped + self.bias
        prefix: Tensor | None = None
        if self.target.prefix:
            tokens = [read_part(self.source, feature, part) for part in self.prefix_parts]
            read = torch.stack([token.flatten(1) for token in tokens], dim=1)
            prefix = torch.einsum("npc,prc->npr", read, self.prefix_weight) + self.prefix_bias
        mapped = unfold(mapped, self.times[1] if self.folded else 1)
        return self.target.join(resample(mapped, self.target.grid), prefix)

    def extra_repr(self) -> str:
        """What `print` shows: the two layouts, and what is not the simplest choice."""
        said = ", ".join(f"{name}={value}" for name, value in self.form.items() if value)
        return f"{self.source} -> {self.target}, {said}"


class Stitches(nn.ModuleList):
    """The stitches of a supernetwork, in the order of their switches."""

    def __iter__(self) -> Iterator[Stitch]:
        return cast("Iterator[Stitch]", super().__iter__())


def read_part(
    layout: Layout,
    feature: Tensor,
    part: Part,
    size: tuple[int, int] = (1, 1),
    *,
    folded: bool = False,
) -> Tensor:
    """Part of a feature as a grid.

    Args:
        layout: The feature's layout.
        feature: N images in that layout.
        part: What to read of it.
        size: Height and width to resample the grid to, where it is read.
        folded: Whether positions of a grid that is finer by a whole number of times become
            channels, instead of being averaged.

    Returns:
        ``(N, C, *size)`` for the grid, or ``(N, C · f², *size)``; ``(N, C, 1, 1)`` for its mean or
        for a prefix token, ``(N, (1 + P) C, 1, 1)`` for all of these.
    """
    grid, prefix = layout.split(feature)
    if part == "grid":
        return resample(fold(grid, folds(layout.grid, size) if folded else 1), size)
    if part == "context":
        return read_context(layout, feature)[:, :, None, None]
    if part == "mean" or prefix is None:
        return grid.mean(dim=(2, 3), keepdim=True)
    return prefix[:, part, :, None, None]


def read_context(layout: Layout, feature: Tensor) -> Tensor:
    """What all positions of a feature have in common: its mean, and its prefix tokens.

    Args:
        layout: The feature's layout.
        feature: N images in that layout.

    Returns:
        ``(N, (1 + P) C)``.
    """
    grid, prefix = layout.split(feature)
    mean = grid.mean(dim=(2, 3))
    return mean if prefix is None else torch.cat([mean, prefix.flatten(1)], dim=1)


def _zeros(*shape: int) -> nn.Parameter:
    # stitches are fitted in closed form; only tuning asks for gradients
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)
