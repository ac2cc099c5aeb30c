"""Refit one linear layer: the weights that best give what is wanted from what it reads.

Ridge regression of what is missing, so that weights stay where nothing is gained; its strength is
chosen on images that are held out. Where an activation follows that is flat in places, such as a
ReLU, answers need to be right only as far as it hears them: by turns, what is wanted where it is
not heard becomes the nearest answer that sounds the same, and the layer is fitted to that (Zhang,
Zou, He and Sun, "Accelerating very deep convolutional networks for classification and detection",
2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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

# Two values of the shape of a layer's answers, or one that is broadcast to it: low and high.
Bounds = tuple[Tensor, Tensor]

# Of weights, ``(g, d, o)``, and of biases, ``(g, o)``.
_Change = tuple[Tensor, Tensor]

# How often a layer is fitted anew to what an activation hears of its answers.
_ROUNDS = 3


@dataclass(frozen=True)
class Refit:
    """What became of one layer.

    Args:
        before: Share of the variance of what it shall answer that it reproduced on held-out
            images, a bias set right; where an activation follows, of what that hears.
        after: The same after refitting.
        ridge: The strength chosen; None where the weights stay.
        lacking: ``(C,)``, what has to be added to its answers, as far as it has no bias; None
            where their size is to be made good as well.
    """

    before: float
    after: float
    ridge: float | None
    lacking: Tensor | None = None


@dataclass(frozen=True)
class _Samples:
    """Rows that a layer is fitted on: of d numbers that are read, and o answers, by group.

    Args:
        x: ``(P, g, d)``, what is read.
        wanted: ``(P, g, o)``, what shall be answered.
        told: ``(P, g, o)``, what the weights answer as they are.
        held: ``(P,)``, whether a row is held out.
        low: ``(P, g, o)``, what answers may fall below without being heard; None for nothing.
        high: Likewise, what they may exceed.
    """

    x: Tensor
    wanted: Tensor
    told: Tensor
    held: Tensor
    low: Tensor | None
    high: Tensor | None

    def part(self, rows: Tensor) -> _Samples:
        """Some of the rows.

        Args:
            rows: ``(P,)``, which.
        """
        low, high = (None if some is None else some[rows] for some in (self.low, self.high))
        x, wanted, told, held = (
            some[rows] for some in (self.x, self.wanted, self.told, self.held)
        )
        return _Samples(x, wanted, told, held, low, high)

    def answers(self, change: Tensor, bias: Tensor) -> Tensor:
        """What is answered after a change, ``(P, g, o)``.

        Args:
            change: ``(g, d, o)``, of the weights.
            bias: ``(g, o)``.
        """
        return (
            self.told + torch.einsum("pgd,gdo->pgo", self.x, change.to(self.x)) + bias.to(self.x)
        )

    def asked(self, answers: Tensor) -> Tensor:
        """What is wanted, where that is heard; elsewhere the next best that sounds like it.

        Args:
            answers: What is answered.
        """
        if self.low is None or self.high is None:
            return self.wanted
        asked = torch.where(self.wanted <= self.low, answers.minimum(self.low), self.wanted)
        return torch.where(self.wanted >= self.high, answers.maximum(self.high), asked)

    def error(self, change: Tensor, bias: Tensor) -> float:
        """Mean squared error of what is heard after a change, summed over outputs.

        Args:
            change: ``(g, d, o)``.
            bias: ``(g, o)``.
        """
        missing = self._heard(self.answers(change, bias)) - self._heard(self.wanted)
        return float(missing.square().sum() / len(missing))

    @property
    def spread(self) -> float:
        """Variance of what shall be heard, summed over outputs."""
        return float(self._heard(self.wanted).var(0, correction=0).sum()) or 1.0

    def _heard(self, answers: Tensor) -> Tensor:
        if self.low is None or self.high is None:
            return answers
        return answers.clamp(self.low, self.high)


@dataclass(frozen=True)
class _Sums:
    """Means over samples: of d numbers that are read, and of o that are missing, by group.

    Args:
        count: Number of samples.
        x: ``(g, d)``, of what is read.
        r: ``(g, o)``, of what is missing.
        xx: ``(g, d, d)``, of products.
        xr: ``(g, d, o)``, likewise.
    """

    count: int
    x: Tensor
    r: Tensor
    xx: Tensor
    xr: Tensor

    @staticmethod
    def of(x: Tensor, r: Tensor) -> _Sums:
        """Means over samples, in float64.

        Args:
            x: ``(P, g, d)``.
            r: ``(P, g, o)``.
        """
        x, r = _summed(x), _summed(r)
        count, turned = x.shape[1], x.transpose(1, 2)
        return _Sums(count, x.mean(1), r.mean(1), turned @ x / count, turned @ r / count)

    def towards(self, x: Tensor, r: Tensor) -> _Sums:
        """The same where something else is missing.

        Args:
            x: ``(g, P, d)``, as before, in float64.
            r: ``(g, P, o)``, likewise.
        """
        return replace(self, r=r.mean(1), xr=x.transpose(1, 2) @ r / self.count)

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
        )

    def factor(self, strength: float, *, centred: bool) -> Tensor:
        """The Cholesky factor of the normal equations, ``(g, d, d)``.

        Args:
            strength: Of ridge regression, relative to the mean variance of what is read.
            centred: Whether a bias makes good what is missing on average.
        """
        xx = self.xx
        if centred:
            xx = xx - self.x[:, :, None] * self.x[:, None]
        ridge = (strength * xx.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(1e-12)
        identity = torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
        found: Tensor = torch.linalg.cholesky(xx + ridge[:, None, None] * identity)
        return found

    def solution(self, strength: float, *, centred: bool, factor: Tensor | None = None) -> Tensor:
        """What is to be added to the weights, ``(g, d, o)``.

        Args:
            strength: Of ridge regression, relative to the mean variance of what is read.
            centred: Whether a bias makes good what is missing on average.
            factor: What `factor` says, if it is known.
        """
        xr = self.xr - self.x[:, :, None] * self.r[:, None] if centred else self.xr
        if factor is None:
            factor = self.factor(strength, centred=centred)
        found: Tensor = torch.cholesky_solve(xr, factor)
        return found

    def bias(self, change: Tensor, *, centred: bool) -> Tensor:
        """What is missing on average after a change of the weights, ``(g, o)``.

        Args:
            change: ``(g, d, o)``.
            centred: Whether a bias makes that good; otherwise it is 0.
        """
        missing = self.r - torch.einsum("gd,gdo->go", self.x, change)
        return missing if centred else torch.zeros_like(missing)


def _summed(values: Tensor) -> Tensor:
    """Samples by group in float64, ``(g, P, ...)``, where they can be summed."""
    if not sums_in_float64(values.device):
        values = values.cpu()
    return values.double().transpose(0, 1)


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
        heard: Iterable[Bounds] | None = None,
        sized: bool = False,
    ) -> Refit:
        """Change the weights, where that reproduces more on held-out images; set a bias right.

        Args:
            read: What it reads, by batch: ``(N, C, H, W)``, or ``(..., C)`` of what is fully
                connected.
            wanted: What it shall answer, by batch, in the shape of its answers.
            counts: Number of images, by batch; all positions of an image are held out, or none.
            generator: Draws positions.
            centred: Whether a bias makes good what is missing on average, or what follows does.
            heard: By batch, between which answers the activation that follows hears
                differences; in the shape of the answers, or one that is broadcast to it.
            sized: Whether their size may not be made good by what follows.

        Returns:
            What became of it; shares are zero where it is more than a linear map, or values are
            no finite numbers: it stays.
        """
        samples = self._samples(read, wanted, counts, generator, heard)
        if samples is None:
            return Refit(0.0, 0.0, None)
        fitted, tested = samples.part(~samples.held), samples.part(samples.held)
        sums, others = (_Sums.of(some.x, some.wanted - some.told) for some in (fitted, tested))
        none = torch.zeros_like(sums.xr)
        spread = tested.spread
        least = before = tested.error(none, sums.bias(none, centred=centred))
        best: _Change | None = None
        ridge, rounds = None, 0
        for strength in _RIDGES:
            found = _solved(fitted, sums, strength, 0, centred=centred)
            error = tested.error(*found)
            if error < min(least, before - _WORTH * spread):
                least, ridge, best = error, strength, found
        if ridge is not None and heard is not None:
            found = _solved(fitted, sums, ridge, _ROUNDS, centred=centred, start=best)
            error = tested.error(*found)
            if error < least:
                least, rounds, best = error, 1, found
        whole = sums.plus(others)
        if ridge is None:
            change, added = none, whole.bias(none, centred=True)
        else:
            # what was held out is fitted too, from what is known already
            change, added = _solved(samples, whole, ridge, rounds, centred=centred, start=best)
        weight, bias = self.module.weight, self.module.bias
        # (g, d, o) as (g · o, ...)
        weight += change.transpose(1, 2).reshape(weight.shape).to(weight)
        lacking = added.flatten().to(weight)
        if bias is not None:
            bias += lacking
            lacking = torch.zeros_like(lacking)
        absolute = ridge is not None and (sized or rounds > 0)
        shares = 1 - before / spread, 1 - least / spread
        return Refit(*shares, ridge, lacking if absolute else None)

    def _samples(
        self,
        read: Sequence[Tensor],
        wanted: Sequence[Tensor],
        counts: Sequence[int],
        generator: torch.Generator,
        heard: Iterable[Bounds] | None,
    ) -> _Samples | None:
        """Rows to fit on.

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
        bounds: Iterable[Bounds | None] = [None] * len(read) if heard is None else heard
        for some, target, count, bound in zip(read, wanted, counts, bounds, strict=True):
            answers = self._rows(target)
            rows = len(answers)
            chosen = torch.randperm(rows, generator=generator)[: many * count // images]
            held = (seen + chosen * count // rows) % EVERY == EVERY - 1
            chosen, held = chosen.to(some.device), held.to(some.device)
            shape = (len(chosen), self.groups, -1)
            x = self._read(some, target, chosen).reshape(len(chosen), self.groups, width)
            y = answers.index_select(0, chosen).reshape(shape)
            predicted = torch.einsum("pgd,gdo->pgo", x, grouped) + bias
            limits = [self._rows(limit.to(target).expand_as(target)) for limit in bound or ()]
            found.append(
                (
                    *(x, y, predicted, held),
                    *(limit.index_select(0, chosen).reshape(shape) for limit in limits),
                )
            )
            seen += count
            if len(found) == 1:
                told = self._rows(self.module(some)).index_select(0, chosen)
                far = (told - predicted.flatten(1)).abs().max()
                if not far <= 1e-3 * told.abs().max():
                    return None
        x, y, predicted, held, *ends = (torch.cat(column) for column in zip(*found, strict=True))
        low, high = ends or (None, None)
        finite = all(are_finite([x, y, predicted]))
        return _Samples(x, y, predicted, held, low, high) if finite else None

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


def _solved(
    samples: _Samples,
    sums: _Sums,
    strength: float,
    rounds: int,
    *,
    centred: bool,
    start: _Change | None = None,
) -> _Change:
    """How weights and biases change.

    Args:
        samples: What is fitted.
        sums: Of these.
        strength: Of the ridge.
        rounds: How often it is fitted anew to what is heard.
        centred: Whether there are biases.
        start: What the first round starts from; what is wanted, heard or not, if None.
    """
    if start is None or not rounds:
        change = sums.solution(strength, centred=centred)
        start = change, sums.bias(change, centred=centred)
    if rounds:
        x, factor = _summed(samples.x), sums.factor(strength, centred=centred)
        for _ in range(rounds):
            asked = samples.asked(samples.answers(*start))
            sums = sums.towards(x, _summed(asked - samples.told))
            change = sums.solution(strength, centred=centred, factor=factor)
            start = change, sums.bias(change, centred=centred)
    return start
