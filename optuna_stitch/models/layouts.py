"""How a feature lies in its tensor, and one canonical view of every layout.

The canonical view of a feature is a grid of C-vectors, ``(N, C, H, W)``, plus prefix tokens,
``(N, P, C)`` (class, register and distillation tokens). A pooled vector is a grid of 1 × 1.
Stitches are linear maps between canonical views, so that any layout can meet any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["NCHW", "NHWC", "NLC", "NC"]


@dataclass(frozen=True)
class Layout:
    """Where the channels, the grid and the prefix tokens of a feature are.

    Args:
        kind: Order of the dimensions, as timm's ``Format`` names them, and ``NC`` for vectors.
        channels: Length C of the vectors.
        grid: Height and width (H, W) of the grid, in positions.
        prefix: Number P of prefix tokens (``NLC`` only).

    Example:
        >>> layout = a.graph().points[0].layout
        >>> str(layout), layout.positions
        ('NCHW 16×16×16', 256)
        >>> grid, prefix = layout.split(torch.zeros(2, 16, 16, 16))
        >>> grid.shape, prefix
        (torch.Size([2, 16, 16, 16]), None)
    """

    kind: Kind
    channels: int
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def positions(self) -> int:
        """Number of grid positions, H · W."""
        return self.grid[0] * self.grid[1]

    def __str__(self) -> str:
        if self.kind == "NC":
            return f"NC {self.channels}"
        prefix = f"{self.prefix}+" if self.prefix else ""
        return f"{self.kind} {self.channels}×{prefix}{self.grid[0]}×{self.grid[1]}"

    def split(self, feature: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the canonical view of a feature.

        Args:
            feature: A tensor in this layout, N images.

        Returns:
            The grid ``(N, C, H, W)`` and the prefix tokens ``(N, P, C)``, None where P = 0.
        """
        if self.kind == "NCHW":
            return feature, None
        if self.kind == "NHWC":
            return feature.permute(0, 3, 1, 2), None
        if self.kind == "NC":
            return feature[:, :, None, None], None
        tokens = feature[:, self.prefix :].transpose(1, 2)
        grid = tokens.reshape(*tokens.shape[:2], *self.grid)
        return grid, feature[:, : self.prefix] if self.prefix else None

    def join(self, grid: Tensor, prefix: Tensor | None) -> Tensor:
        """Turn a canonical view into a tensor of this layout: the inverse of `split`.

        Args:
            grid: ``(N, C, H, W)``.
            prefix: The prefix tokens ``(N, P, C)``; None where P = 0.
        """
        if self.kind == "NCHW":
            return grid
        if self.kind == "NHWC":
            return grid.permute(0, 2, 3, 1)
        if self.kind == "NC":
            return grid.flatten(1)
        tokens = grid.flatten(2).transpose(1, 2)
        return tokens if prefix is None else torch.cat([prefix, tokens], dim=1)


def folds(grid: tuple[int, int], size: tuple[int, int]) -> int:
    """How many positions of a grid, along each side, fall on one of a coarser grid.

    Args:
        grid: Height and width of the grid.
        size: Height and width of the coarser grid.

    Returns:
        The whole number of times that it is finer in both directions; 1 where there is none, or
        where the coarser grid is a single position.
    """
    times, rest = divmod(grid[0], size[0])
    if rest or size == (1, 1) or grid != (times * size[0], times * size[1]):
        return 1
    return times


def fold(grid: Tensor, times: int) -> Tensor:
    """Make the positions of a grid that fall on one of a coarser grid its channels.

    Args:
        grid: ``(N, C, times · H, times · W)``.
        times: How many positions, along each side.

    Returns:
        ``(N, C · times², H, W)``; `unfold` is the inverse.
    """
    return grid if times == 1 else F.pixel_unshuffle(grid, times)


def unfold(grid: Tensor, times: int) -> Tensor:
    """The inverse of `fold`.

    Args:
        grid: ``(N, C · times², H, W)``.
        times: How many positions, along each side.
    """
    return grid if times == 1 else F.pixel_shuffle(grid, times)


def resample(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a grid linearly: average where it shrinks, bilinear where it grows.

    Args:
        grid: ``(N, C, H, W)``.
        size: The new height and width, in positions.

    Returns:
        ``(N, C, *size)``; the grid itself where the size does not change.
    """
    height, width = grid.shape[-2:]
    shrunk = (min(height, size[0]), min(width, size[1]))
    if shrunk != (height, width):
        grid = F.adaptive_avg_pool2d(grid, shrunk)
    if shrunk != size:
        grid = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return grid
