"""Intervals and paired tests for figures measured on the same test images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest
from torch import Tensor


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, 1927).

    Args:
        successes: How many of the images are classified correctly.
        total: How many images there are.
        confidence: Of the interval.
    """
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Tensor, second: Tensor) -> float:
    """Two-sided exact p-value that two networks are equally accurate (McNemar, 1947).

    Only images that exactly one of them gets right tell them apart; under equality each of the
    two is right on half of those.

    Args:
        first: ``(N,)`` bool, which images the first network gets right.
        second: The same for the second, on the same images.
    """
    only_first = int((first & ~second).sum())
    only_second = int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): p-values that hold for all claims together.

    Args:
        p_values: One per claim.

    Returns:
        Corrected p-values, in the same order.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    raised = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    corrected = np.empty_like(raised)
    corrected[order] = raised
    return [float(value) for value in corrected]
