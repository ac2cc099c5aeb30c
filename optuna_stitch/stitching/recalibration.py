"""BatchNorm statistics for what follows a stitch, from unlabelled images.

A stitched feature is not the parent's own: its mean and variance drift further at every layer. A
BatchNorm downstream of a stitch gets statistics under which its output has the mean and the
variance that the parent's own feature has there, on the same images. Comparing on the same images
needs few of them, and does not adapt the network to the images: where nothing was stitched,
nothing changes.

The statistics depend on the path that leads to the node. They are values of the computation like
any other: the same path has the same statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from optuna_stitch.data.splits import CPU, Split
from optuna_stitch.data.view import View
from optuna_stitch.stitching.batch_norm import BatchNorm
from optuna_stitch.stitching.program import Observer, Program

# How much a channel's deviation is scaled at most.
_LARGEST_SCALE = 30.0

Statistics = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Calibration:
    """Images that BatchNorm statistics are estimated on.

    Args:
        views: How the images are seen.
        pixels: The images by view, ``(N, C, H, W)``, 8 bits a channel.
        batch_size: Images per batch.
    """

    views: tuple[View, ...]
    pixels: tuple[Tensor, ...] = field(repr=False)
    batch_size: int

    @staticmethod
    def of(
        split: Split, views: Sequence[View], batch_size: int, device: torch.device = CPU
    ) -> Calibration:
        """Take the images of a split.

        Args:
            split: The images.
            views: How they are seen.
            batch_size: Images per batch.
            device: Where they are kept.
        """
        seen: list[list[Tensor]] = [[] for _ in views]
        for batch in split.batches(views, batch_size, device=device):
            for column, view, images in zip(seen, views, batch.images, strict=True):
                column.append(view.pixels(images))
        return Calibration(tuple(views), tuple(torch.cat(column) for column in seen), batch_size)

    def __len__(self) -> int:
        return len(self.pixels[0])

    def to(self, device: torch.device) -> Calibration:
        """The same on a device.

        Args:
            device: Where to.
        """
        return replace(self, pixels=tuple(pixels.to(device) for pixels in self.pixels))

    @property
    def count(self) -> int:
        """Number of batches."""
        return -(-len(self) // self.batch_size)

    def batches(self, layout: torch.memory_format) -> list[tuple[Tensor, ...]]:
        """The images as the parents see them.

        Args:
            layout: How they lie in memory.
        """
        return [
            tuple(
                view.normalize(pixels[start : start + self.batch_size]).contiguous(
                    memory_format=layout
                )
                for view, pixels in zip(self.views, self.pixels, strict=True)
            )
            for start in range(0, len(self), self.batch_size)
        ]


def statistics_of(parents: Program, images: Sequence[Tensor]) -> dict[int, Statistics]:
    """Mean and variance of what the parents' BatchNorms read, nothing being stitched.

    Args:
        parents: Both parents.
        images: A batch, by view.

    Returns:
        Statistics by operation.
    """
    found: dict[int, Statistics] = {}

    def observe(step: int, norm: BatchNorm, inputs: Sequence[Any]) -> None:
        found[parents.places[step]] = channel_statistics(inputs[0])

    with torch.no_grad():
        parents.observe(images, observe)
    return found


def match_batch(program: Program, own: dict[int, Statistics]) -> Observer:
    """Give BatchNorms downstream of a stitch statistics that fit the batch that runs.

    With the batch's mean m and variance v where the parent's own feature has m₀ and v₀, and the
    parent's statistics μ and σ², the new ones are ``m - (m₀ - μ) / s`` and ``σ² / s²`` for
    ``s² = v₀ / v``.

    Args:
        program: What to change as it runs.
        own: What `statistics_of` says of the batch.

    Returns:
        What `Program.observe` takes.
    """
    stitched = set(program.stitched_norms)

    def match(step: int, norm: BatchNorm, inputs: Sequence[Any]) -> None:
        if step in stitched:
            found = channel_statistics(inputs[0])
            program.normalize(step, *matched(norm, found, own[program.places[step]]))

    return match


def recalibrate(
    program: Program,
    batches: Sequence[Sequence[Tensor]],
    parents: Sequence[dict[int, Statistics]],
    given: Sequence[Mapping[int, Tensor]] | None = None,
) -> list[list[Any]]:
    """Give BatchNorms downstream of a stitch the average of what fits each calibration batch.

    Args:
        program: What to change, in place.
        batches: The calibration images, by batch and view.
        parents: For every batch what `statistics_of` says of it.
        given: For every batch the values of the steps that are given.

    Returns:
        For every batch what the program returns on it.
    """
    averages: dict[int, Statistics] = {}
    norms = program.stitched_norms
    answers: list[list[Any]] = []
    total = sum(len(images[0]) for images in batches)
    for number, (images, own) in enumerate(zip(batches, parents, strict=True)):
        known = given[number] if given is not None else {}
        answers.append(program.observe(images, match_batch(program, own), known))
        share = len(images[0]) / total
        for step in norms:
            mean, variance = program.statistics[step]
            before = averages.get(step, (torch.zeros_like(mean), torch.zeros_like(variance)))
            averages[step] = before[0] + share * mean, before[1] + share * variance
    for step, statistics in averages.items():
        program.normalize(step, *statistics)
    return answers


def matched(norm: BatchNorm, found: Statistics, own: Statistics) -> Statistics:
    """Statistics under which a BatchNorm answers as it does in its parent.

    Args:
        norm: The parent's.
        found: Mean and variance ``(C,)`` of what it reads downstream of a stitch.
        own: The same of what it reads in its parent, on the same images.

    Returns:
        Mean and variance, see `match_batch`.
    """
    (mean, variance), (own_mean, own_variance) = found, own
    scale = ((own_variance + norm.eps) / (variance + norm.eps)).sqrt()
    scale = scale.clamp(1 / _LARGEST_SCALE, _LARGEST_SCALE)
    wanted = (norm.variance + norm.eps) / scale.square() - norm.eps
    return mean - (own_mean - norm.mean) / scale, wanted.clamp_min(0)


def channel_statistics(feature: Tensor) -> Statistics:
    """Mean and variance by channel, ``(C,)``.

    Args:
        feature: ``(N, C, ...)``.
    """
    others = [dimension for dimension in range(feature.dim()) if dimension != 1]
    variance, mean = torch.var_mean(feature.detach().float(), others, correction=0)
    return mean, variance
