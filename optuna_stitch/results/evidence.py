"""What each test image says about a network: the ground of intervals and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import VOID
from optuna_stitch.results.statistics import mcnemar, wilson_interval
from optuna_stitch.stitching.genotype import Genotype

_RESAMPLES = 2000


class Evidence(Protocol):
    """Answers of one network, image by image.

    Attributes:
        metric: Name of the figure that they give.
    """

    metric: ClassVar[str]

    @property
    def figure(self) -> float:
        """The figure over all images."""
        ...

    def interval(self) -> tuple[float, float]:
        """Its 95% interval."""
        ...

    def p_value(self, other: Evidence) -> float:
        """Two-sided p-value that two networks are equally good, on the same images."""
        ...


@dataclass(frozen=True)
class Hits:
    """Which images a network classifies correctly.

    Args:
        right: ``(N,)`` bool.
    """

    right: Tensor
    metric: ClassVar[str] = "accuracy"

    @property
    def figure(self) -> float:
        """Accuracy."""
        return float(self.right.double().mean())

    def interval(self) -> tuple[float, float]:
        """Wilson's interval."""
        return wilson_interval(int(self.right.sum()), len(self.right))

    def p_value(self, other: Evidence) -> float:
        """McNemar's exact test."""
        assert isinstance(other, Hits)
        return mcnemar(self.right, other.right)


@dataclass(frozen=True)
class Confusions:
    """A network's confusion matrix on each image, label by row and answer by column.

    Args:
        matrices: ``(N, classes, classes)`` counts of pixels.
    """

    matrices: NDArray[np.float64]
    metric: ClassVar[str] = "mean_iou"

    @property
    def figure(self) -> float:
        """Mean intersection over union."""
        return float(_mean_iou(self.matrices.sum(axis=0)))

    def interval(self) -> tuple[float, float]:
        """The 2.5% and 97.5% quantiles over bootstrap samples of the images."""
        low, high = np.quantile(self._resampled(), [0.025, 0.975])
        return float(low), float(high)

    def p_value(self, other: Evidence) -> float:
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
        return _mean_iou(totals.reshape(_RESAMPLES, *self.matrices.shape[1:]))


def gather_evidence(evaluator: Evaluator, genotypes: Sequence[Genotype]) -> Sequence[Evidence]:
    """Run networks over the evaluator's split, and keep what each image says.

    Args:
        evaluator: Over the test split.
        genotypes: The networks.

    Returns:
        `Hits` for networks that label images, `Confusions` for those that label pixels.
    """
    segments, classes = evaluator.supernetwork.segments, evaluator.supernetwork.classes
    kept: list[list[Tensor]] = [[] for _ in genotypes]
    for targets, answers in evaluator.answers(genotypes):
        for column, logits in zip(kept, answers, strict=True):
            guesses = logits.argmax(dim=1)
            right = guesses == targets
            column.append(_confusions(guesses, targets, classes) if segments else right)
    if segments:
        return [Confusions(torch.cat(column).double().numpy()) for column in kept]
    return [Hits(torch.cat(column)) for column in kept]


def _confusions(guesses: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Confusion matrices ``(N, classes, classes)`` of masks ``(N, H, W)``."""
    pairs = torch.where(targets == VOID, classes * classes, targets * classes + guesses)
    counted = [image.bincount(minlength=classes * classes + 1) for image in pairs.flatten(1)]
    return torch.stack(counted)[:, :-1].reshape(-1, classes, classes)


def _mean_iou(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean IoU of confusion matrices ``(..., classes, classes)``, over classes that occur."""
    both = np.diagonal(totals, axis1=-2, axis2=-1)
    either = totals.sum(axis=-1) + totals.sum(axis=-2) - both
    occurs = either > 0
    ratios = np.divide(both, either, out=np.zeros_like(either), where=occurs)
    means: NDArray[np.float64] = ratios.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return means
