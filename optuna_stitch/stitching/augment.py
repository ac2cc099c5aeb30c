"""What happens to images while a network is finished: mirrored, moved, blended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def moved(
    images: Sequence[Tensor],
    targets: Tensor,
    generator: torch.Generator,
    *,
    flip: bool,
    shift: float,
) -> tuple[list[Tensor], Tensor]:
    """Mirror half the images and move each by a random way, its border repeated.

    Args:
        images: The same images by view, ``(N, C, H, W)`` each.
        targets: Labels ``(N,)``, or ``(N, H, W)``, which move along.
        generator: Draws.
        flip: Whether to mirror.
        shift: By what share of their side images are moved at most.
    """
    if not (flip or shift):
        return list(images), targets
    count = len(targets)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    ways = shift * (2 * torch.rand(2, count, generator=generator) - 1)

    def move(values: Tensor) -> Tensor:
        *_, height, width = values.shape
        found = values
        for dimension, size, way in ((2, height, ways[0]), (3, width, ways[1])):
            places = torch.arange(size) + (way * size).round().long()[:, None]
            if dimension == 3:
                places = torch.where(mirrored[:, None], size - 1 - places, places)
            shape = [count, 1, 1, 1]
            shape[dimension] = size
            places = places.clamp(0, size - 1).reshape(shape).to(values.device)
            found = found.gather(dimension, places.expand_as(found))
        return found

    if targets.dim() > 1:
        targets = move(targets[:, None])[:, 0]
    return [move(some) for some in images], targets


def blended(
    images: Sequence[Tensor], generator: torch.Generator
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Blend each image with another of the batch (mixup; Zhang et al., 2018).

    Args:
        images: The same images by view.
        generator: Draws.

    Returns:
        The images, which other each has, and how much is left of its own, from half to all.
    """
    rows = torch.randperm(len(images[0]), generator=generator).to(images[0].device)
    kept = 0.5 + 0.5 * torch.rand(1, generator=generator).to(images[0].device)
    return [kept * some + (1 - kept) * some[rows] for some in images], (rows, kept)
