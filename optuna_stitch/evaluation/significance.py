"""Intervals and paired tests for figures measured on the same test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, norm
from torch import Tensor

from optuna_stitch.evaluation.accumulator import (
    Confusions,
    Hits,
    Logits,
    PairedResult,
    PerImageResult,
    Scores,
)

Interval = tuple[float, float]

_RESAMPLES = 2000

# A figure of all answers is computed again on every resample, which takes longer.
_RESAMPLES_OF_ANSWERS = 200

_BOUNDS = [0.025, 0.975]


def interval_of(result: PerImageResult) -> Interval | None:
    """The 95% interval of a figure.

    Args:
        result: What the test images say.

    Returns:
        Wilson's interval of a share of images, a bootstrap interval of other figures; None where
        single images are not known, and of the mean over a single image.
    """
    match result:
        case Hits(right):
            return wilson_interval(int(right.sum()), len(right))
        case Scores(values):
            return _mean_interval(values) if len(values) > 1 else None
        case Confusions():
            return _quantiles(_resampled(result))
        case Logits():
            return _quantiles(_resampled_answers(result))
        case _:
            return None


def paired_p_value(first: PairedResult, second: PairedResult) -> float:
    """Two-sided p-value that two networks are equally good on the same images.

    Args:
        first: What the images say of one network.
        second: What they say of the other, of the same kind.

    Returns:
        McNemar's for right and wrong images, the paired bootstrap's for confusion matrices.

    Raises:
        TypeError: If the two are of different kinds.
    """
    match first, second:
        case Hits(), Hits():
            return mcnemar(first.right, second.right)
        case Confusions(), Confusions():
            return paired_bootstrap(first, second)
        case _:
            raise TypeError(
                f"{type(first).__name__} and {type(second).__name__} cannot be compared in pairs."
            )


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson, 1927).

    Args:
        successes: How many of the images are classified correctly.
        total: How many images there are.
        confidence: Of the interval.

    Example:
        >>> low, high = wilson_interval(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def difference_interval(first: Tensor, second: Tensor) -> Interval:
    """The 95% interval of a difference in accuracy on the same images.

    That of Agresti and Min ("Simple improved confidence intervals for comparing matched
    proportions", 2005): Wald's, with half an image more of each kind.

    Args:
        first: ``(N,)`` bool, which images one network gets right.
        second: The same for the other, on the same images.

    Example:
        >>> first = torch.arange(100) < 90
        >>> low, high = difference_interval(first, torch.arange(100) < 80)
        >>> round(low, 3), round(high, 3)
        (0.037, 0.159)
    """
    only_first = float((first & ~second).sum()) + 0.5
    only_second = float((~first & second).sum()) + 0.5
    images = len(first) + 2
    difference = (only_first - only_second) / images
    variance = ((only_first + only_second) / images - difference**2) / images
    margin = float(norm.ppf(0.975)) * math.sqrt(variance)
    return difference - margin, difference + margin


def mcnemar(first: Tensor, second: Tensor) -> float:
    """Two-sided exact p-value that two networks are equally accurate (McNemar, 1947).

    Only images that exactly one of them gets right tell them apart; under equality each of the
    two is right on half of those.

    Args:
        first: ``(N,)`` bool, which images the first network gets right.
        second: The same for the second, on the same images.

    Example:
        >>> first = torch.tensor([True, True, True, True, False])
        >>> mcnemar(first, ~first)
        0.375
    """
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def paired_bootstrap(first: Confusions, second: Confusions) -> float:
    """Two-sided p-value that two networks label pixels equally well.

    Both figures are computed on the same bootstrap samples of the images; counted is how often
    the sign of their difference turns.

    Args:
        first: Confusion matrices of one network.
        second: Of the other one, on the same images.
    """
    differences = _resampled(first) - _resampled(second)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (_RESAMPLES + 1)))


def retained_interval(pairs: Sequence[tuple[PairedResult, PairedResult]]) -> Interval:
    """The 95% bootstrap interval of the smaller share of what others reach that is retained.

    A network and the parent are resampled on the same images; the questions one by one.

    Args:
        pairs: Of every question what the images say of the network, and of the parent alone.

    Example:
        >>> from optuna_stitch.evaluation.accumulator import Hits
        >>> hits = Hits(torch.tensor([True, True, False, True]))
        >>> retained_interval([(hits, hits)])
        (1.0, 1.0)
    """
    shares = [_resampled_shares(own, alone, seed) for seed, (own, alone) in enumerate(pairs)]
    return _quantiles(np.min(shares, axis=0))


def _resampled_shares(own: PairedResult, alone: PairedResult, seed: int) -> NDArray[np.float64]:
    """One figure over the other, on bootstrap samples of the images."""
    if isinstance(own, Confusions) and isinstance(alone, Confusions):
        return _shares(_resampled(own), _resampled(alone))
    assert isinstance(own, Hits), own
    assert isinstance(alone, Hits), alone
    # of images only who is right matters: samples of them are draws of four kinds
    kinds = (2 * own.right.long() + alone.right.long()).bincount(minlength=4).double().numpy()
    images = len(own.right)
    drawn = np.random.default_rng(seed).multinomial(images, kinds / images, size=_RESAMPLES)
    return _shares(drawn[:, 2] + drawn[:, 3], drawn[:, 1] + drawn[:, 3])


def _shares(own: NDArray[Any], alone: NDArray[Any]) -> NDArray[np.float64]:
    """One figure over the other, whole where that is nought."""
    shares: NDArray[np.float64] = np.divide(own, alone, out=np.ones(len(own)), where=alone > 0)
    return shares


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): p-values that hold for all comparisons together.

    Args:
        p_values: One per comparison.

    Returns:
        Corrected p-values, in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    raised = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    corrected = np.empty_like(raised)
    corrected[order] = raised
    return [float(value) for value in corrected]


def _mean_interval(values: Tensor) -> Interval:
    found = bootstrap(
        (values.double().numpy(),),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=50,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _resampled(result: Confusions) -> NDArray[np.float64]:
    """The figure on bootstrap samples of the images, which are the same for every network."""
    images, *shape = result.matrices.shape
    rng = np.random.default_rng(0)
    counts = rng.multinomial(images, np.full(images, 1 / images), size=_RESAMPLES)
    totals = counts @ result.matrices.reshape(images, -1)
    return result.of_confusions(totals.reshape(_RESAMPLES, *shape))


def _resampled_answers(result: Logits) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    images = len(result.targets)
    drawn = []
    for _ in range(_RESAMPLES_OF_ANSWERS):
        chosen = torch.from_numpy(rng.integers(images, size=images))
        figure = result.metric.compute(result.logits[chosen], result.targets[chosen])
        drawn.append(float(figure))
    return np.array(drawn)


def _quantiles(figures: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(figures, _BOUNDS)
    return float(low), float(high)
