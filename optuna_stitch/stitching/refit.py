"""Refit one linear layer: the weights that best give what is wanted from what it reads.

Ridge regression of what is missing, so that weights stay where nothing is gained; its strength is
chosen on images that are held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optuna_stitch.stitching.moments import EVERY
from optuna_stitch.utils.device import are_finite, sums_in_float64

# Positions of all images that a layer is fitted on; fewer, where they hold more numbers than that.
_SAMPLES, _FEWEST, _NUMBERS = 24_000, 2_000, 1 << 26

# Strengths of ridge regression, relative to the mean variance of what is read.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

# Weights change where that explains this share more of the variance.
_WORTH = 1e-4


@dataclass(frozen=True)
class _Sums:
    """Means over samples: of d numbers that are read, and of o that are missing, by group.

    Args:
        count: Number of samples.
        x: ``(g, d)``, of what is read.
        r: ``(g, o)``, of what is missing.
        xx: ``(g, d, d)``, of products.
        xr: ``(g, d, o)``, likewise.
        rr: Of squares, summed over groups and outputs.
    """

    count: int
    x: Tensor
    r: Tensor
    xx: Tensor
    xr: Tensor
    rr: float

    @staticmethod
    def of(x: Tensor, r: Tensor) -> _Sums:
        """Means over samples, in float64.

        Args:
            x: ``(P, g, d)``.
            r: ``(P, g, o)``.
        """
        if not sums_in_float64(x.device):
            x, r = x.cpu(), r.cpu()
        x, r = x.double().transpose(0, 1), r.double().transpose(0, 1)
        count, turned = x.shape[1], x.transpose(1, 2)
        rr = float(r.square().sum() / count)
        return _Sums(count, x.mean(1), r.mean(1), turned @ x / count, turned @ r / count, rr)

    def plus(self, other: _Sums) -> _Sums:
        """The means over the samples of both.

        Args:
            other: Other samples.
        """
        count = self.count + other.count
        one, two = self.count / count, other.count / count
        return _Sums(
            count,
            one * self.x + two * other.x,
            one * self.r + two * other.r,
            one * self.xx + two * other.xx,
            one * self.xr + two * other.xr,
            one * self.rr + two * other.rr,
        )

    def solution(self, strength: float, *, centred: bool) -> Tensor:
        """What is to be added to the weights, ``(g, d, o)``.

        Args:
            strength: Of ridge regression, relative to the mean variance of what is read.
            centred: Whether a bias makes good what is missing on average.
        """
        xx, xr = self.xx, self.xr
        if centred:
            xx = xx - self.x[:, :, None] * self.x[:, None]
            xr = xr - self.x[:, :, None] * self.r[:, None]
        ridge = (strength * xx.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(1e-12)
        identity = torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
        factor = torch.linalg.cholesky(xx + ridge[:, None, None] * identity)
        found: Tensor = torch.cholesky_solve(xr, factor)
        return found

    def bias(self, change: Tensor) -> Tensor:
        """What is missing on average after a change of the weights, ``(g, o)``.

        Args:
            change: ``(g, d, o)``.
        """
        return self.r - torch.einsum("gd,gdo->go", self.x, change)

    def error(self, change: Tensor, bias: Tensor | None) -> float:
        """Mean squared error after a change, summed over outputs.

        Args:
            change: ``(g, d, o)``.
            bias: ``(g, o)``, or None.
        """
        error = self.rr + (change * (self.xx @ change - 2 * self.xr)).sum()
        if bias is not None:
            error = error + (bias * (bias - 2 * self.bias(change))).sum()
        return float(error)


class Layer:
    """A fully connected layer, or another one, as a linear map in one group of channels or more.

    Args:
        module: The layer.
    """

    def __init__(self, module: nn.Linear | nn.Conv2d) -> None:
        self.module = module
        self.groups = 1

    @staticmethod
    def of(module: nn.Module) -> Layer:
        """What takes samples of a layer.

        Args:
            module: The layer.
        """
        if isinstance(module, nn.Conv2d):
            return _Convolution(module)
        assert isinstance(module, nn.Linear)
        return Layer(module)

    def refit(
        self,
        read: Sequence[Tensor],
        wanted: Sequence[Tensor],
        counts: Sequence[int],
        generator: torch.Generator,
        *,
        centred: bool,
    ) -> tuple[float, float, float | None]:
        """Change the weights, where that reproduces more on held-out images; set a bias right.

        Args:
            read: What it reads, by batch: ``(N, C, H, W)``, or ``(..., C)`` of what is fully
                connected.
            wanted: What it shall answer, by batch, in the shape of its answers.
            counts: Number of images, by batch; all positions of an image are held out, or none.
            generator: Draws positions.
            centred: Whether a bias makes good what is missing on average, or what follows does.

        Returns:
            Shares of the variance that are reproduced with the weights as they were, a bias set
            right, and now; and the strength of the ridge, None where the weights stay. Zeros where
            the layer is more than a linear map, or values are no finite numbers: it stays.
        """
        weight, bias = self.module.weight, self.module.bias
        samples = self._samples(read, wanted, counts, generator)
        if samples is None:
            return 0.0, 0.0, None
        x, y, missing, held = samples
        fitted, tested = (_Sums.of(x[part], missing[part]) for part in (~held, held))
        none = torch.zeros_like(fitted.xr)
        spread = float(y[held].var(0, correction=0).sum()) or 1.0
        least = before = tested.error(none, fitted.bias(none) if centred else None)
        ridge = None
        for strength in _RIDGES:
            change = fitted.solution(strength, centred=centred)
            error = tested.error(change, fitted.bias(change) if centred else None)
            if error < min(least, before - _WORTH * spread):
                least, ridge = error, strength
        whole = fitted.plus(tested)
        change = none if ridge is None else whole.solution(ridge, centred=centred)
        # (g, d, o) as (g · o, ...)
        weight += change.transpose(1, 2).reshape(weight.shape).to(weight)
        if bias is not None:
            bias += whole.bias(change).flatten().to(bias)
        return 1 - before / spread, 1 - least / spread, ridge

    def _samples(
        self,
        read: Sequence[Tensor],
        wanted: Sequence[Tensor],
        counts: Sequence[int],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """What is read, ``(P, g, d)``, wanted and missing, ``(P, g, o)``, and what is held out.

        None where the layer is more than a linear map, or its values are no finite numbers.
        """
        weight = self.module.weight
        width = weight[0].numel()
        grouped = weight.reshape(self.groups, -1, width).transpose(1, 2)
        bias = 0.0 if self.module.bias is None else self.module.bias.reshape(self.groups, -1)
        many = max(_FEWEST, min(_SAMPLES, _NUMBERS // (self.groups * width)))
        images = sum(counts)
        found: list[tuple[Tensor, ...]] = []
        seen = 0
        for some, target, count in zip(read, wanted, counts, strict=True):
            answers = self._rows(target)
            rows = len(answers)
            chosen = torch.randperm(rows, generator=generator)[: many * count // images]
            held = (seen + chosen * count // rows) % EVERY == EVERY - 1
            chosen, held = chosen.to(some.device), held.to(some.device)
            x = self._read(some, target, chosen).reshape(len(chosen), self.groups, width)
            y = answers.index_select(0, chosen).reshape(len(chosen), self.groups, -1)
            predicted = torch.einsum("pgd,gdo->pgo", x, grouped) + bias
            found.append((x, y, y - predicted, held))
            seen += count
            if len(found) == 1:
                told = self._rows(self.module(some)).index_select(0, chosen)
                far = (told - predicted.flatten(1)).abs().max()
                if not far <= 1e-3 * told.abs().max():
                    return None
        x, y, missing, held = (torch.cat(column) for column in zip(*found, strict=True))
        return (x, y, missing, held) if all(are_finite([x, missing])) else None

    def _rows(self, answers: Tensor) -> Tensor:
        """Answers by position, ``(images · positions, outputs)``."""
        return answers.flatten(0, -2)

    def _read(self, feature: Tensor, answers: Tensor, chosen: Tensor) -> Tensor:
        """What is read for some rows, ``(rows, columns)``."""
        return feature.flatten(0, -2).index_select(0, chosen)


class _Convolution(Layer):
    """A convolution: at every position it reads a neighbourhood, in each group of channels."""

    def __init__(self, module: nn.Conv2d) -> None:
        super().__init__(module)
        self.groups = module.groups
        self._size, self._stride, self._dilation = (
            module.kernel_size,
            module.stride,
            module.dilation,
        )
        self._padding = module.padding

    def _rows(self, answers: Tensor) -> Tensor:
        return answers.permute(0, 2, 3, 1).flatten(0, 2)

    def _read(self, feature: Tensor, answers: Tensor, chosen: Tensor) -> Tensor:
        grid = answers.shape[2:]
        borders: list[tuple[int, int]] = []  # before and behind, by dimension
        for d in range(2):
            reach = (grid[d] - 1) * self._stride[d] + (self._size[d] - 1) * self._dilation[d] + 1
            lacking = max(reach - feature.shape[2 + d], 0)
            same = isinstance(self._padding, str) or type(self.module) is not nn.Conv2d
            before = lacking // 2 if same else int(self._padding[d])
            borders.append((before, max(lacking - before, 0)))
        (top, bottom), (left, right) = borders
        padded = F.pad(feature, (left, right, top, bottom)).permute(0, 2, 3, 1)
        height, width = padded.shape[1:3]
        cells = grid[0] * grid[1]
        image, cell = chosen // cells, chosen % cells
        row, column = cell // grid[1] * self._stride[0], cell % grid[1] * self._stride[1]
        first = (image * height + row) * width + column
        taps = [
            down * self._dilation[0] * width + across * self._dilation[1]
            for down in range(self._size[0])
            for across in range(self._size[1])
        ]
        wanted = first[:, None] + torch.tensor(taps, device=first.device)
        read = padded.flatten(0, 2).index_select(0, wanted.flatten())
        # (rows, taps, channels) as (rows, channels, taps)
        return read.reshape(len(chosen), len(taps), -1).transpose(1, 2)
