"""Cascades: one head answers, and where it is unsure both do.

How sure an answer is can be measured in several ways; `Exit` holds the measure, and the threshold
below which the second head is asked too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from optuna_stitch.stitching.genotype import SIDES, Side
from optuna_stitch.stitching.settings import Confidence

# What each measure of confidence is, in words.
MEASURES: dict[Confidence, str] = {
    "probability": "the largest class probability",
    "margin": "the largest class probability less the second largest",
    "entropy": "one less the entropy over that of a uniform guess",
    "calibrated": "the probability that the answer is right, from three measures of it",
}


def confidences(logits: Tensor) -> dict[Confidence, Tensor]:
    """How sure answers are, by measure; each from 0 to 1, more is surer.

    ``probability`` is the largest class probability, ``margin`` that less the second largest, and
    ``entropy`` one less the entropy over that of a uniform guess. Of networks that label pixels
    each is averaged over the pixels of an image.

    Args:
        logits: ``(N, classes, ...)``.

    Returns:
        ``(N,)`` each.
    """
    # in double precision: many answers are so sure that they differ in the last digits only
    log_probabilities = F.log_softmax(logits.double(), dim=1)
    probabilities = log_probabilities.exp()
    largest = probabilities.topk(min(2, logits.shape[1]), dim=1).values
    top = largest[:, 0]
    margin = top - largest[:, 1] if largest.shape[1] > 1 else top
    # the logarithm of a probability that is nought is finite here, so that nought times it is too
    entropy = -(probabilities * log_probabilities.clamp(min=-1e4)).sum(dim=1)
    peaked = 1 - entropy / math.log(max(2, logits.shape[1]))
    measured: dict[Confidence, Tensor] = {
        "probability": top,
        "margin": margin,
        "entropy": peaked,
    }
    return {
        name: value.flatten(1).mean(dim=1) if value.dim() > 1 else value
        for name, value in measured.items()
    }


@dataclass(frozen=True)
class Exit:
    """When a cascade's first answer is enough, and what is answered where it is not.

    Args:
        first: The number of the head that is asked first, 0 or 1: of a's and b's, 0 for a's.
        confidence: How it is measured how sure an answer is.
        threshold: Of that measure; images below it go on.
        share: The share of the images that it was tuned on which go on.
        weight: Of a's class probabilities in the answer of both; b's have the rest.
        temperatures: What a's and b's logits are divided by before they are averaged.
        coefficients: Of the calibrated measure: a constant, then one for each other measure, whose
            sum is the log-odds that the first answer is right.
        sides: Whose heads they are. What is said here of a and b holds for these.
    """

    first: int
    confidence: Confidence
    threshold: float
    share: float
    weight: float = 0.5
    temperatures: tuple[float, float] = (1.0, 1.0)
    coefficients: tuple[float, ...] = ()
    sides: tuple[Side, Side] = SIDES

    @property
    def recipe(self) -> str:
        """How it answers, for people."""
        ours, other = self.sides[self.first], self.sides[1 - self.first]
        mean = "mean" if self.weight == 0.5 else "weighted mean"
        return (
            f"{ours} where {MEASURES[self.confidence]} is {self.threshold:.3f} or more, else the "
            f"{mean} of {ours}'s and {other}'s class probabilities"
        )

    def sure(self, logits: Tensor) -> Tensor:
        """How sure first answers are, ``(N,)``.

        Args:
            logits: Of the first head, ``(N, classes, ...)``.
        """
        measured = confidences(logits / self.temperatures[self.first])
        if self.confidence != "calibrated":
            return measured[self.confidence]
        constant, *slopes = self.coefficients
        odds = torch.full_like(measured["margin"], constant)
        for slope, value in zip(slopes, measured.values(), strict=True):
            odds = odds + slope * value
        return torch.sigmoid(odds)

    def goes_on(self, logits: Tensor) -> Tensor:
        """Which images the second head answers too, ``(N,)`` bool.

        Args:
            logits: Of the first head, ``(N, classes, ...)``.
        """
        return self.sure(logits) < self.threshold

    def asks_second(self, heads: Tensor) -> Tensor:
        """Which images the second head answers too, ``(N,)`` bool.

        Args:
            heads: Of both heads, ``(N, 2, classes, ...)``.
        """
        return self.goes_on(heads[:, self.first])

    def mean(self, a: Tensor, b: Tensor) -> Tensor:
        """The answer of both heads: the weighted mean of their class probabilities, as logits.

        Args:
            a: Logits of a's head, ``(N, classes, ...)``.
            b: Logits of b's head, of the same shape.
        """
        shares = (self.weight, 1 - self.weight)
        parts = [
            F.log_softmax(logits / temperature, dim=1) + math.log(share)
            for logits, temperature, share in zip((a, b), self.temperatures, shares, strict=True)
            if share > 0
        ]
        return torch.logaddexp(*parts) if len(parts) == 2 else parts[0]

    def answer(self, heads: Tensor) -> Tensor:
        """The cascade's logits, ``(N, classes, ...)``.

        Args:
            heads: Of both heads, ``(N, 2, classes, ...)``.
        """
        a, b = heads.unbind(dim=1)
        first = a if self.first == 0 else b
        unsure = self.goes_on(first).reshape(-1, *(1,) * (first.dim() - 1))
        return torch.where(unsure, self.mean(a, b), first)
