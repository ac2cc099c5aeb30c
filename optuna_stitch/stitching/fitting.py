"""Fit every stitch in closed form, in one pass over unlabelled images.

A stitch has to reproduce the target's own feature from the raw source feature. With the parents
frozen that is linear least squares, whose optimum needs only sums over positions: the pass streams
means and Gram matrices (float64) for all stitches in both directions at once, then solves each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from optuna_stitch.data import Split
from optuna_stitch.errors import FitError
from optuna_stitch.networks.layouts import resample
from optuna_stitch.progress import progress_bar
from optuna_stitch.stitching.genotype import Genotype, Side
from optuna_stitch.stitching.layers import Stitch
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supernetwork import Supernetwork

# One image in this many is held out to choose the ridge strength.
_HELD_OUT = 5
# Ridge strengths tried, relative to the mean variance of the source's channels.
_RIDGES = tuple(10.0**exponent for exponent in range(-8, 2))


@dataclass(frozen=True)
class StitchFit:
    """How well one stitch was fitted.

    Args:
        switch: Name of its switch.
        r2: Share of the target's variance explained on held-out images, before the variance was
            matched.
        ridge: The ridge strength chosen, relative to the mean variance of the source's channels.
        macs: Multiply-accumulates per image.
    """

    switch: str
    r2: float
    ridge: float
    macs: int


def fit(
    supernetwork: Supernetwork,
    split: Split,
    *,
    images: int | None = None,
    positions: int = 64,
    match_variance: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> list[StitchFit]:
    """Fit all stitches of a supernetwork in place.

    Ridge regression with a strength chosen per stitch on held-out images. Ridge shrinks the
    variance of what it predicts; ``match_variance`` restores it: every output channel's deviation
    from its mean is scaled to the target's own variance.

    Args:
        supernetwork: Whose stitches to fit.
        split: Unlabelled images; the train split, so that the search's images stay unseen.
        images: How many of them (all, if None).
        positions: How many grid positions of an image to use at most, drawn at random.
        match_variance: Whether to restore the variance that ridge takes.
        batch_size: Images per batch; if None, as the supernetwork says.
        seed: Draws the positions.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        One entry per stitch, in the switches' order.

    Raises:
        FitError: If there are too few images, or features are not finite.
    """
    taken = split.take(images)
    if len(taken) < 2 * _HELD_OUT:
        raise FitError(
            f"{len(taken)} images are too few to fit stitches; give at least {2 * _HELD_OUT}."
        )
    regressions = [
        _Regression(switch.name, stitch, match_variance)
        for switch, stitch in zip(supernetwork.switches, _stitches(supernetwork), strict=True)
    ]
    features, places = _features(supernetwork)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(), progress_bar(show_progress_bar=show_progress_bar) as progress:
        task = progress.add_task("Read features", total=len(taken), note="")
        seen = 0
        for batch in taken.batches(supernetwork.views, batch_size or supernetwork.batch_size):
            values = features.run(batch.images)
            held_out = (torch.arange(seen, seen + len(batch)) % _HELD_OUT) == _HELD_OUT - 1
            for switch, regression in zip(supernetwork.switches, regressions, strict=True):
                other: Side = "a" if switch.into == "b" else "b"
                regression.add(
                    values[places[other, switch.source]],
                    values[places[switch.into, switch.target]],
                    held_out,
                    positions,
                    generator,
                )
            seen += len(batch)
            progress.advance(task, len(batch))
        task = progress.add_task("Fit stitches", total=len(regressions), note="")
        fits = []
        for regression in regressions:
            fits.append(regression.solve())
            progress.advance(task)
    return fits


def _stitches(supernetwork: Supernetwork) -> list[Stitch]:
    return [stitch for stitch in supernetwork.stitches if isinstance(stitch, Stitch)]


def _features(supernetwork: Supernetwork) -> tuple[Program, dict[tuple[Side, str], int]]:
    """A program that returns the raw features of every match, and where each is in its result."""
    supergraph = supernetwork.supergraph
    steps = supergraph.resolve(Genotype("ensemble")).steps
    step_of = {place: step for step, (place, _) in enumerate(steps)}
    wanted: list[tuple[Side, str]] = []
    for pair in supernetwork.matches:
        wanted += [("a", pair.a.node), ("b", pair.b.node)]
    program = Program(
        supergraph.operations,
        [(place, tuple(step_of[read] for read in reads)) for place, reads in steps],
        [step_of[supergraph.raw(side, node)] for side, node in wanted],
    )
    return program, {key: index for index, key in enumerate(wanted)}


@dataclass
class _Moments:
    """Sums over samples (x, y), from which every least-squares solution follows.

    Args:
        columns: Length of x.
        rows: Length of y.
    """

    columns: int
    rows: int
    count: int = 0
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    xx: Tensor = field(init=False)
    xy: Tensor = field(init=False)
    yy: Tensor = field(init=False)

    def __post_init__(self) -> None:
        zeros = torch.zeros
        double = torch.float64
        self.x, self.y = zeros(self.columns, dtype=double), zeros(self.rows, dtype=double)
        self.xx = zeros(self.columns, self.columns, dtype=double)
        self.xy = zeros(self.columns, self.rows, dtype=double)
        self.yy = zeros(self.rows, dtype=double)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add samples, x ``(n, columns)`` and y ``(n, rows)``."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum(0)

    def __add__(self, other: _Moments) -> _Moments:
        total = _Moments(self.columns, self.rows, self.count + other.count)
        for name in ("x", "y", "xx", "xy", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def about(self, other: _Moments) -> tuple[Tensor, Tensor, Tensor]:
        """As `centred`, but about the means of other samples."""
        x, y = self.x / self.count, self.y / self.count
        dx, dy = x - other.x / other.count, y - other.y / other.count
        xx, xy, yy = self.centred()
        return xx + torch.outer(dx, dx), xy + torch.outer(dx, dy), yy + dy.square()

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances ``(columns, columns)`` and ``(columns, rows)``, variances ``(rows,)``."""
        x, y = self.x / self.count, self.y / self.count
        return (
            self.xx / self.count - torch.outer(x, x),
            self.xy / self.count - torch.outer(x, y),
            (self.yy / self.count - y.square()).clamp_min(0),
        )


class _LinearFit:
    """Ridge regression of one linear map, from the moments of two sets of images."""

    def __init__(self, columns: int, rows: int) -> None:
        self.fitted = _Moments(columns, rows)
        self.held_out = _Moments(columns, rows)

    def solve(self, match_variance: bool) -> tuple[Tensor, Tensor, float, float]:
        """Solve for weight ``(rows, columns)`` and bias ``(rows,)``; also R² and ridge."""
        total = self.fitted + self.held_out
        covariance, cross, variance = total.centred()
        scale = covariance.diagonal().mean()
        if scale == 0:  # the source never changes: the best prediction is the target's mean
            return torch.zeros_like(cross).T, total.y / total.count, 0.0, 0.0
        errors, spread = self._errors()
        best = int(errors.argmin())
        identity = torch.eye(len(covariance), dtype=covariance.dtype)
        factor = torch.linalg.cholesky(covariance + _RIDGES[best] * scale * identity)
        solution = torch.cholesky_solve(cross, factor)
        if match_variance:
            predicted = (solution * (covariance @ solution)).sum(0)
            # a dead channel, or one that nothing predicts, keeps its mean
            usable = predicted > 1e-12 * variance.clamp_min(1e-12)
            solution = solution * torch.where(usable, (variance / predicted).sqrt(), 0.0)
        bias = (total.y - solution.T @ total.x) / total.count
        r2 = 1 - float(errors[best]) / spread if spread > 0 else 0.0
        return solution.T, bias, r2, _RIDGES[best]

    def _errors(self) -> tuple[Tensor, float]:
        """Mean squared error on the held-out images by ridge strength, and their variance.

        With the fitted covariance ``V diag(e) Vᵀ``, the solution is ``V diag(d) P`` for
        ``P = Vᵀ cross`` and ``d = 1 / (e + ridge)``, so that with held-out moments ``M`` and ``Q``
        in the basis V the error is ``|y|² - 2 d · diag(P Qᵀ) + dᵀ (M ∘ P Pᵀ) d``: one matrix
        product for all strengths together.
        """
        covariance, cross, _ = self.fitted.centred()
        xx, xy, yy = self.held_out.about(self.fitted)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        eigenvalues = eigenvalues.clamp_min(0)
        projected = vectors.T @ cross
        linear = (projected * (vectors.T @ xy)).sum(1)
        quadratic = (vectors.T @ xx @ vectors) * (projected @ projected.T)
        strengths = torch.tensor(_RIDGES, dtype=xx.dtype)[:, None] * covariance.diagonal().mean()
        inverse = 1 / (eigenvalues + strengths)
        errors = yy.sum() - 2 * inverse @ linear + ((inverse @ quadratic) * inverse).sum(1)
        return errors, float(self.held_out.centred()[2].sum())


class _Regression:
    """All linear maps of one stitch: the grid's, and one for each prefix token."""

    def __init__(self, name: str, stitch: Stitch, match_variance: bool) -> None:
        self._name = name
        self._stitch = stitch
        self._match_variance = match_variance
        shape = stitch.source.channels, stitch.target.channels
        self._grid = _LinearFit(*shape)
        self._prefix = [_LinearFit(*shape) for _ in range(stitch.target.prefix)]

    def add(
        self,
        source: Tensor,
        target: Tensor,
        held_out: Tensor,
        positions: int,
        generator: torch.Generator,
    ) -> None:
        """Add a batch of source and target features; ``held_out`` ``(N,)`` marks images."""
        if not (source.isfinite().all() and target.isfinite().all()):
            raise FitError(
                f"The features of stitch {self._name!r} hold NaN or infinite values; check both "
                "parents' weights and the images."
            )
        grid, read = self._stitch.sources(source)
        wanted, prefix = self._stitch.target.split(target)
        wanted = resample(wanted, (grid.shape[2], grid.shape[3]))
        x, y = grid.flatten(2), wanted.flatten(2)
        if x.shape[2] > positions:
            chosen = torch.randperm(x.shape[2], generator=generator)[:positions]
            x, y = x[..., chosen], y[..., chosen]
        for part, images in ((self._grid.fitted, ~held_out), (self._grid.held_out, held_out)):
            part.add(_rows(x[images]), _rows(y[images]))
        if read is None or prefix is None:
            return
        for place, linear in enumerate(self._prefix):
            linear.fitted.add(read[~held_out, place], prefix[~held_out, place])
            linear.held_out.add(read[held_out, place], prefix[held_out, place])

    def solve(self) -> StitchFit:
        """Solve every linear map and put it into the stitch."""
        stitch = self._stitch
        weight, bias, r2, ridge = self._grid.solve(self._match_variance)
        stitch.weight.copy_(weight)
        stitch.bias.copy_(bias)
        for place, linear in enumerate(self._prefix):
            weight, bias, _, _ = linear.solve(self._match_variance)
            stitch.prefix_weight[place].copy_(weight)
            stitch.prefix_bias[place].copy_(bias)
        return StitchFit(self._name, r2, ridge, stitch.macs)


def _rows(x: Tensor) -> Tensor:
    """``(N, C, positions)`` as samples ``(N · positions, C)``."""
    return x.transpose(1, 2).flatten(0, 1)
