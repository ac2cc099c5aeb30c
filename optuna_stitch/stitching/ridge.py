"""Ridge regression from covariances: its strength and its rank, chosen on held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
        """The same with some of the source's columns only."""
        return Centred(self.xx[kept][:, kept], self.xy[kept], self.yy, self.rounding)

    @property
    def constant(self) -> bool:
        """Whether the source never changes."""
        return float(self.xx.diagonal().mean()) <= self.rounding

    def ridge(self, strengths: Tensor) -> Tensor:
        """Ridge by strength, which is relative to the columns' mean variance."""
        return strengths * self.xx.diagonal().mean() + self.rounding


@dataclass(frozen=True)
class Candidate:
    """One kernel's solution, and what it would cost.

    Args:
        kernel: Its side.
        columns: Which columns it reads.
        index: Place of its ridge strength in `RIDGES`.
        directions: Target directions by the variance predicted in them, ``(C_t, C_t)``, as
            columns, orthonormal where channels are in units of their deviation.
        rank: How many of them are kept, or None for all.
        error: Held-out squared error, in units of the channels' variance.
        raw_error: Held-out squared error.
    """

    kernel: int
    columns: Tensor
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
) -> Candidate:
    """Solve for one kernel on the fitted images; choose strength and rank on the held-out ones.

    Args:
        fitted: Covariances of the fitted images.
        held_out: Covariances of the held-out images about the means of the fitted ones.
        scale: Deviation of every target channel, ``(C_t,)``.
        columns: Which columns the kernel reads.
        kernel: Its side.
        choices: What may be chosen from.
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
    rank = _rank(gains, len(columns), choices)
    kept = directions[:, : rank or len(directions)]
    raw = solution @ kept @ (kept.T * scale)
    raw_error = (
        held_out.yy.sum() - 2 * (raw * held_out.xy).sum() + (raw * (held_out.xx @ raw)).sum()
    )
    error = units - float(gains[(rank or len(gains)) - 1])
    return Candidate(kernel, columns, index, directions, rank, error, float(raw_error))


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
    """The solution ``(c, C_t)`` of ridge regression of some strength, one of `RIDGES`."""
    identity = torch.eye(len(moments.xx), dtype=moments.xx.dtype)
    ridge = moments.ridge(torch.tensor(strength, dtype=moments.xx.dtype))
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
    strengths = torch.tensor(RIDGES, dtype=eigenvalues.dtype)[:, None]
    inverse = 1 / (eigenvalues + fitted.ridge(strengths))
    error: Tensor = (
        held_out.yy.sum() - 2 * inverse @ linear + ((inverse @ quadratic) * inverse).sum(1)
    )
    return error
