"""The linear maps that moments imply; held-out images choose the kernel and the biases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_stitch.stitching.moments import FITTED, HELD_OUT, Moments, Pair

# Ridge strengths tried, relative to the mean variance of the source's columns.
RIDGES = tuple(10.0**exponent for exponent in range(-8, 2))


@dataclass(frozen=True)
class Choices:
    """What the fit may choose from.

    Args:
        kernels: Sides of the kernels that are tried; the moments must hold the largest.
        rank_loss: Share of the explained variance that a lower rank, or a smaller kernel, may
            cost on held-out images; None for full rank, except where that is over the largest
            size.
        largest: Weights at most, or None for no limit; a lower rank keeps within it.
        everywhere: Whether every position may have a bias of its own.
        match_variance: Whether to restore the variance that ridge takes.
    """

    kernels: tuple[int, ...]
    rank_loss: float | None = None
    largest: int | None = None
    everywhere: bool = True
    match_variance: bool = True


@dataclass(frozen=True)
class Centred:
    """Covariances of one set of images, about some centre.

    Args:
        xx: ``(c, c)``.
        xy: ``(c, C_t)``.
        yy: ``(C_t,)``.
        rounding: Error that float64 may have left in ``xx``; the least ridge.
    """

    xx: Tensor
    xy: Tensor
    yy: Tensor
    rounding: float

    def columns(self, kept: Tensor) -> Centred:
        """The same with some of the source's columns only.

        Args:
            kept: Which columns, in their new order.
        """
        return Centred(self.xx[kept][:, kept], self.xy[kept], self.yy, self.rounding)

    @property
    def constant(self) -> bool:
        """Whether the source never changes."""
        return float(self.xx.diagonal().mean()) <= self.rounding

    def ridge(self, strengths: Tensor) -> Tensor:
        """Ridge by strength, which is relative to the columns' mean variance.

        Args:
            strengths: Relative to the mean variance of the columns, of any shape.
        """
        return strengths * self.xx.diagonal().mean() + self.rounding


@dataclass(frozen=True)
class Candidate:
    """One kernel's solution, and what it would cost.

    Args:
        kernel: Its side.
        columns: Which columns it reads.
        context: Whether they are also those that are the same at every position.
        index: Place of its ridge strength in `RIDGES`.
        directions: Target directions by the variance predicted in them, ``(C_t, C_t)``, as
            columns, orthonormal where channels are in units of their deviation.
        rank: How many of them are kept, or None for all.
        error: Held-out squared error, in units of the channels' variance.
        raw_error: Held-out squared error.
    """

    kernel: int
    columns: Tensor
    context: bool
    index: int
    directions: Tensor
    rank: int | None
    error: float
    raw_error: float


def candidate_of(
    fitted: Centred,
    held_out: Centred,
    scale: Tensor,
    columns: Tensor,
    kernel: int,
    choices: Choices,
    seen: int = 0,
) -> Candidate:
    """Solve for one kernel on the fitted images; choose strength and rank on the held-out ones.

    Args:
        fitted: Covariances of the fitted images.
        held_out: Covariances of the held-out images about the means of the fitted ones.
        scale: Deviation of every target channel, ``(C_t,)``.
        columns: Which columns the kernel reads.
        kernel: Its side.
        choices: What may be chosen from.
        seen: How many of the columns are the same at every position; they cost nothing there.
    """
    fitted, held_out = fitted.columns(columns), held_out.columns(columns)
    index = int(_errors(fitted, held_out).argmin())
    solution = ridge_solution(fitted, RIDGES[index]) / scale
    predicted = solution.T @ fitted.xx @ solution
    directions = torch.linalg.eigh(predicted).eigenvectors.flip(1)
    # what each direction takes off the held-out error
    turned = solution @ directions
    gains = (
        2 * (turned * (held_out.xy / scale @ directions)).sum(0)
        - (turned * (held_out.xx @ turned)).sum(0)
    ).cumsum(0)
    units = float((held_out.yy / scale.square()).sum())
    rank = _rank(gains, len(columns) - seen, choices)
    kept = directions[:, : rank or len(directions)]
    raw = solution @ kept @ (kept.T * scale)
    raw_error = (
        held_out.yy.sum() - 2 * (raw * held_out.xy).sum() + (raw * (held_out.xx @ raw)).sum()
    )
    error = units - float(gains[(rank or len(gains)) - 1])
    found = float(raw_error)
    return Candidate(kernel, columns, seen > 0, index, directions, rank, error, found)


def _rank(gains: Tensor, width: int, choices: Choices) -> int | None:
    """The lowest rank whose loss is allowed, within the largest size; None if full is smaller."""
    rows = len(gains)
    rank, full = rows, width * rows
    if choices.rank_loss is not None:
        enough = gains >= gains[-1] - choices.rank_loss * gains[-1].abs()
        rank = int(enough.nonzero()[0]) + 1
    if choices.largest is not None and min(rank * (width + rows), full) > choices.largest:
        rank = max(1, choices.largest // (width + rows))
    return rank if rank * (width + rows) < full else None


def ridge_solution(moments: Centred, strength: float) -> Tensor:
    """The solution ``(c, C_t)`` of ridge regression of some strength, one of `RIDGES`.

    Args:
        moments: Centred moments of the images that are fitted.
        strength: One of `RIDGES`.
    """
    identity = torch.eye(len(moments.xx), dtype=moments.xx.dtype, device=moments.xx.device)
    ridge = moments.ridge(moments.xx.new_tensor(strength))
    factor: Tensor = torch.linalg.cholesky(moments.xx + ridge * identity)
    return torch.cholesky_solve(moments.xy, factor)


def _errors(fitted: Centred, held_out: Centred) -> Tensor:
    """Squared error on the held-out images by ridge strength.

    With the fitted covariance ``V diag(e) Vᵀ``, the solution is ``V diag(d) P`` for
    ``P = Vᵀ cross`` and ``d = 1 / (e + ridge)``, so that with held-out moments ``M`` and ``Q``
    in the basis V the error is ``|y|² - 2 d · diag(P Qᵀ) + dᵀ (M ∘ P Pᵀ) d``: one matrix
    product for all strengths together.
    """
    eigenvalues, vectors = torch.linalg.eigh(fitted.xx)
    eigenvalues = eigenvalues.clamp_min(0)
    projected = vectors.T @ fitted.xy
    linear = (projected * (vectors.T @ held_out.xy)).sum(1)
    quadratic = (vectors.T @ held_out.xx @ vectors) * (projected @ projected.T)
    strengths = eigenvalues.new_tensor(RIDGES)[:, None]
    inverse = 1 / (eigenvalues + fitted.ridge(strengths))
    error: Tensor = (
        held_out.yy.sum() - 2 * inverse @ linear + ((inverse @ quadratic) * inverse).sum(1)
    )
    return error


# Rounding errors of sums in float64, relative to the mean square of what is summed.
_ROUNDING = 1e-13

# A bias for every position has to explain this share of the target's variance.
_WORTH = 0.01


@dataclass(frozen=True)
class Solution:
    """One fitted linear map, from c columns (channels times taps) to C_t channels.

    Args:
        weight: ``(C_t, c)``, or its first factor ``(r, c)`` at reduced rank.
        expand: The second factor ``(C_t, r)``, or None at full rank.
        bias: ``(C_t, 1, 1)``, or ``(C_t, h, w)`` where every position has its own.
        context: What is multiplied with what all positions have in common, ``(C_t, ...)`` or
            ``(r, ...)``; None without.
        kernel: Side of the kernel.
        folded: Whether positions of a finer grid are channels.
        error: Squared error on held-out images, in units of the channels' variance.
        r2: Share of the target's variance explained on held-out images, before its variance was
            matched.
        ridge: The strength chosen, relative to the mean variance of the columns.
    """

    weight: Tensor
    expand: Tensor | None
    bias: Tensor
    context: Tensor | None
    kernel: int
    folded: bool
    error: float
    r2: float
    ridge: float

    @property
    def rank(self) -> int | None:
        """Rank, or None where it is full."""
        return None if self.expand is None else self.expand.shape[1]


class Regression:
    """Least squares for one pair of readings.

    Args:
        moments: Sums that have the pair.
        pair: What is read, and what has to be reproduced.
    """

    def __init__(self, moments: Moments, pair: Pair) -> None:
        self._pair = pair
        self._folded = pair.source.folded or pair.target.folded
        self._count = moments.count * len(moments.positions[pair.source.size])
        self._x = moments.means(pair.source)  # (2, positions, c)
        self._y = moments.means(pair.target)
        self._xx = moments.product(pair.source, pair.source)
        self._xy = moments.product(pair.source, pair.target)
        self._yy = moments.squares[pair.target]
        self._rounding = _ROUNDING * float(self._squares.mean())
        self._share = moments.count / moments.count.sum()
        sums = [moments.sums[reading].sum(0) for reading in (pair.source.base, pair.target)]
        self._maps = [total / moments.count.sum() for total in sums]
        self._seen = self._alike()

    def _alike(self) -> Tensor:
        """Give columns that are the same at every position the variance of the others.

        An average varies less than what is averaged, and ridge would hold that against it.

        Returns:
            What these columns were multiplied with.
        """
        seen = self._pair.source.seen
        own = self._xx.shape[1] - seen
        mean = torch.tensordot(self._share, self._x, 1).mean(0)
        variance = (self._squares - mean.square()).clamp_min(0)
        factor = torch.ones_like(variance)
        if seen and float(variance[own:].mean()) > self._rounding:
            factor[own:] = (variance[:own].mean() / variance[own:].mean()).sqrt()
            self._x = self._x * factor
            self._xx = self._xx * factor * factor[:, None]
            self._xy = self._xy * factor[:, None]
            self._rounding = _ROUNDING * float(self._squares.mean())
        return factor[own:]

    @property
    def _squares(self) -> Tensor:
        """Mean square of every column."""
        return self._xx.diagonal(dim1=1, dim2=2).sum(0) / self._count.sum()

    def solve(self, choices: Choices) -> Solution:
        """Choose ridge strength, kernel and rank on held-out images; then solve on all.

        The rank is reduced by regressing on the directions in which most of the target's
        standardized variance is predicted (reduced-rank regression: Izenman 1975).

        Args:
            choices: What may be chosen.
        """
        everywhere = choices.everywhere and self._varies_by_position()
        fitted, held_out = self._sets(everywhere)
        total = self._total(everywhere)
        spread = float(held_out.yy.sum())
        scale = (total.yy + 1e-12 * total.yy.max()).sqrt()
        if fitted.constant or total.constant or float(total.yy.max()) == 0:
            return self._constant(everywhere, choices)

        def candidate(kernel: int, seen: int = 0) -> Candidate:
            columns = self._columns(kernel, context=seen > 0)
            return candidate_of(fitted, held_out, scale, columns, kernel, choices, seen)

        candidates = [candidate(kernel) for kernel in choices.kernels]
        least = min(candidate.error for candidate in candidates)
        units = float((held_out.yy / scale.square()).sum())
        # as with the rank: what is explained less for being cheaper
        slack = (choices.rank_loss or 0.0) * max(units - least, 0.0)
        allowed = [candidate for candidate in candidates if candidate.error <= least + slack]
        best = min(allowed, key=lambda candidate: candidate.kernel)
        seen = self._pair.source.seen
        wider = candidate(best.kernel, seen) if seen else best
        if wider.error < best.error - slack:
            # neighbours may have stood for what all positions have in common
            smaller = [candidate(k, seen) for k in choices.kernels if k < wider.kernel]
            near = [one for one in smaller if one.error <= wider.error + slack]
            best = min([*near, wider], key=lambda candidate: candidate.kernel)
        r2 = 1 - best.raw_error / spread if spread > 0 else 0.0
        return self._finish(total, best, scale, everywhere, choices, r2)

    def _columns(self, kernel: int, *, context: bool = False) -> Tensor:
        """The columns that a smaller kernel reads of the largest one's, context or not."""
        side = self._pair.source.kernel
        device = self._xx.device
        taps = torch.arange(side * side, device=device).reshape(side, side)
        edge = (side - kernel) // 2
        inner = taps[edge : side - edge, edge : side - edge].flatten()
        channels = torch.arange(self._pair.source.channels, device=device)
        own = (channels[:, None] * side * side + inner).flatten()
        if not context:
            return own
        width = self._pair.source.width
        return torch.cat([own, torch.arange(width - self._pair.source.seen, width, device=device)])

    def _varies_by_position(self) -> bool:
        """Whether held-out targets are much nearer to the means by position than to one mean."""
        if self._y.shape[1] == 1:
            return False
        own, fitted = self._y[HELD_OUT], self._y[FITTED]
        square = self._yy[HELD_OUT] / self._count[HELD_OUT]
        by_position, overall = (
            (square - (2 * own * centre - centre.square()).mean(0)).clamp_min(0)
            for centre in (fitted, _flat(fitted))
        )
        used = overall > 0
        return float((by_position[used] / overall[used]).mean()) < 1 - _WORTH

    def _centres(self, part: int, everywhere: bool) -> tuple[Tensor, Tensor]:
        x, y = self._x[part], self._y[part]
        return (x, y) if everywhere else (_flat(x), _flat(y))

    def _sets(self, everywhere: bool) -> tuple[Centred, Centred]:
        """Covariances of the fitted and of the held-out images, both about the fitted means."""
        centres = self._centres(FITTED, everywhere)
        return self._about(FITTED, centres), self._about(HELD_OUT, centres)

    def _about(self, part: int, centres: tuple[Tensor, Tensor]) -> Centred:
        x, y = centres
        mx, my, count = self._x[part], self._y[part], self._count[part]
        yy = self._yy[part] / count - (2 * my * y - y.square()).mean(0)
        return Centred(
            _shifted(self._xx[part] / count, mx, mx, x, x),
            _shifted(self._xy[part] / count, mx, my, x, y),
            yy.clamp_min(0),
            self._rounding,
        )

    def _total(self, everywhere: bool) -> Centred:
        """Covariances of all images about their own means."""
        x, y = (torch.tensordot(self._share, means, 1) for means in (self._x, self._y))
        centre = (x, y) if everywhere else (_flat(x), _flat(y))
        fitted, held_out = (self._about(part, centre) for part in (FITTED, HELD_OUT))
        one, other = self._share
        return Centred(
            one * fitted.xx + other * held_out.xx,
            one * fitted.xy + other * held_out.xy,
            one * fitted.yy + other * held_out.yy,
            self._rounding,
        )

    def _constant(self, everywhere: bool, choices: Choices) -> Solution:
        """Where the source or the target never changes, the best prediction is the mean."""
        kernel = min(choices.kernels)
        rows, width = self._pair.target.width, self._pair.source.channels * kernel**2
        weight = self._xx.new_zeros(rows, width)
        bias = self._bias(weight, kernel, everywhere)
        return Solution(weight, None, bias, None, kernel, self._folded, math.inf, 0.0, 0.0)

    def _finish(
        self,
        total: Centred,
        best: Candidate,
        scale: Tensor,
        everywhere: bool,
        choices: Choices,
        r2: float,
    ) -> Solution:
        part = total.columns(best.columns)
        solution = ridge_solution(part, RIDGES[best.index])  # (c, C_t)
        first, expand = solution, None
        if best.rank is not None:
            kept = best.directions[:, : best.rank]
            first, expand = solution / scale @ kept, scale[:, None] * kept
            solution = first @ expand.T
        if choices.match_variance:
            predicted = (solution * (part.xx @ solution)).sum(0)
            # a dead channel, or one that nothing predicts, keeps its mean
            usable = predicted > 1e-12 * part.yy.clamp_min(1e-12)
            factor = torch.where(usable, (part.yy / predicted).sqrt(), 0.0)
            solution = solution * factor
            if expand is None:
                first = solution
            else:
                expand = expand * factor[:, None]
        bias = self._bias(solution.T, best.kernel, everywhere)
        weight, context = first.T, None
        if best.context:
            own = self._pair.source.channels * best.kernel**2
            weight, context = weight[:, :own], weight[:, own:] * self._seen
        kernel, error, strength = best.kernel, best.error, RIDGES[best.index]
        return Solution(weight, expand, bias, context, kernel, self._folded, error, r2, strength)

    def _bias(self, weight: Tensor, kernel: int, everywhere: bool) -> Tensor:
        """What is added so that the prediction's mean is the target's, here or everywhere."""
        source, target = self._maps
        own = self._pair.source.channels * kernel**2
        x: Tensor
        y: Tensor
        x, y = (torch.tensordot(self._share, means, 1).mean(0) for means in (self._x, self._y))
        if everywhere:
            reads = weight[:, :own].reshape(len(weight), -1, kernel, kernel)
            predicted: Tensor = torch.conv2d(source[None], reads, padding=kernel // 2)[0]
            seen = weight.shape[1] - own
            return target - predicted - (weight[:, own:] @ x[len(x) - seen :])[:, None, None]
        columns = self._columns(kernel, context=weight.shape[1] > own)
        return (y - weight @ x[columns])[:, None, None]


def _shifted(product: Tensor, mx: Tensor, my: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean of products about the centres x and y, where the means are mx and my."""
    shift: Tensor = (mx.T @ y + x.T @ my - x.T @ y) / len(x)
    return product - shift


def _flat(means: Tensor) -> Tensor:
    """One mean at all positions."""
    return means.mean(0, keepdim=True).expand_as(means)
