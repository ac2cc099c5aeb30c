"""What each test image says about a network: the ground of figures, intervals and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor

from optuna_stitch.evaluation.metrics import VOID, Metric
from optuna_stitch.report.significance import mcnemar, wilson_interval

_RESAMPLES = 2000

# A figure of all answers is computed again on every resample, which takes longer.
_RESAMPLES_OF_ANSWERS = 200

_BOUNDS = [0.025, 0.975]

Interval = tuple[float, float]


class PerImageResult(Protocol):
    """What all images say of one figure of a network."""

    @property
    def figure(self) -> float:
        """The figure over all images."""
        ...

    def interval(self) -> Interval | None:
        """Its 95% interval; None where single images are not known."""
        ...


class PairedResult(PerImageResult, Protocol):
    """PerImageResult that can be compared with another network's on the same images."""

    def p_value(self, other: PairedResult) -> float:
        """Two-sided p-value that two networks are equally good."""
        ...


@dataclass(frozen=True)
class Hits:
    """Which images a network gets right.

    Args:
        right: ``(N,)`` bool.
    """

    right: Tensor

    @property
    def figure(self) -> float:
        """Share of the images."""
        return float(self.right.double().mean())

    def interval(self) -> Interval:
        """Wilson's interval."""
        return wilson_interval(int(self.right.sum()), len(self.right))

    def p_value(self, other: PairedResult) -> float:
        """McNemar's exact test."""
        assert isinstance(other, Hits)
        return mcnemar(self.right, other.right)


@dataclass(frozen=True)
class Scores:
    """A number for every image, of which the mean counts.

    Args:
        values: ``(N,)``.
    """

    values: Tensor

    @property
    def figure(self) -> float:
        """The mean."""
        return float(self.values.double().mean())

    def interval(self) -> Interval | None:
        """The bootstrap's; None of a single image."""
        if len(self.values) < 2:
            return None
        found = bootstrap(
            (self.values.double().numpy(),),
            np.mean,
            n_resamples=_RESAMPLES,
            batch=50,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Confusions:
    """A network's confusion matrix on each image, label by row and answer by column.

    Args:
        matrices: ``(N, classes, classes)`` counts of pixels.
        metric: Which figure counts, ``mean_iou`` or ``pixel_accuracy``.
    """

    matrices: NDArray[np.float64]
    metric: str = "mean_iou"

    @property
    def figure(self) -> float:
        """The figure of all pixels."""
        return float(_of_confusions(self.matrices.sum(axis=0), self.metric))

    def interval(self) -> Interval:
        """The 2.5% and 97.5% quantiles over bootstrap samples of the images."""
        low, high = np.quantile(self._resampled(), _BOUNDS)
        return float(low), float(high)

    def p_value(self, other: PairedResult) -> float:
        """The paired bootstrap: how often the sign of the difference turns, twice."""
        assert isinstance(other, Confusions)
        differences = self._resampled() - other._resampled()
        tail = min((differences <= 0).sum(), (differences >= 0).sum())
        return float(min(1.0, 2 * (tail + 1) / (_RESAMPLES + 1)))

    def _resampled(self) -> NDArray[np.float64]:
        """The figure on bootstrap samples, which are the same for every network."""
        images = len(self.matrices)
        rng = np.random.default_rng(0)
        counts = rng.multinomial(images, np.full(images, 1 / images), size=_RESAMPLES)
        totals = counts @ self.matrices.reshape(images, -1)
        return _of_confusions(totals.reshape(_RESAMPLES, *self.matrices.shape[1:]), self.metric)


@dataclass(frozen=True)
class Logits:
    """All answers of a network, for a figure that is no mean over images.

    Args:
        metric: The figure.
        logits: ``(N, classes)``.
        targets: ``(N,)``.
    """

    metric: Metric
    logits: Tensor
    targets: Tensor

    @property
    def figure(self) -> float:
        """The figure of all answers."""
        return float(self.metric.compute(self.logits, self.targets))

    def interval(self) -> Interval:
        """The 2.5% and 97.5% quantiles over bootstrap samples of the images."""
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(_RESAMPLES_OF_ANSWERS):
            chosen = torch.from_numpy(rng.integers(len(self.targets), size=len(self.targets)))
            drawn.append(float(self.metric.compute(self.logits[chosen], self.targets[chosen])))
        low, high = np.quantile(drawn, _BOUNDS)
        return float(low), float(high)


@dataclass(frozen=True)
class Streamed:
    """A figure that was gathered without keeping what single images say."""

    figure: float

    def interval(self) -> None:
        """Unknown."""
        return


def confusions(guesses: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Confusion matrices ``(N, classes, classes)`` of masks ``(N, H, W)``."""
    pairs = torch.where(targets == VOID, classes * classes, targets * classes + guesses)
    counted = [image.bincount(minlength=classes * classes + 1) for image in pairs.flatten(1)]
    return torch.stack(counted)[:, :-1].reshape(-1, classes, classes)


def _of_confusions(totals: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Figures of confusion matrices ``(..., classes, classes)``."""
    both = np.diagonal(totals, axis1=-2, axis2=-1)
    if metric == "pixel_accuracy":
        share: NDArray[np.float64] = both.sum(axis=-1) / totals.sum(axis=(-2, -1)).clip(1)
        return share
    either = totals.sum(axis=-1) + totals.sum(axis=-2) - both
    occurs = either > 0
    ratios = np.divide(both, either, out=np.zeros_like(either), where=occurs)
    means: NDArray[np.float64] = ratios.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return means
