"""Judge cascades: one evaluation of both heads tells what every threshold gives.

What is tuned with labels, the weights of the answer of both and the calibrated confidence, is
judged by cross-fitting: each half of the images with what was tuned on the other half. A threshold
needs no labels: it is a rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from optuna_stitch.evaluation.accumulator import (
    Accumulator,
    MixableResult,
    PerImageResult,
    Streamed,
    mixed,
)
from optuna_stitch.evaluation.metrics import LearnedMetric
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.stitching.cascade import Exit, confidences
from optuna_stitch.utils.device import are_finite, fetch
from optuna_stitch.utils.errors import ConfigError

# Against chance in few images.
_RIDGE = 1e-3

# Of a temperature, and of a weight's odds: a line search that goes far overflows nothing.
_LARGEST_LOGARITHM = 10.0


@dataclass(frozen=True)
class Curve:
    """What images say of a cascade, for every threshold.

    Args:
        ranks: The share of images whose first answer is less sure, by image, ``(N,)``.
        first: What the first answers say, by metric.
        both: What the answers of both heads say.
    """

    ranks: Tensor
    first: Mapping[str, MixableResult]
    both: Mapping[str, MixableResult]

    def results(self, threshold: float) -> dict[str, MixableResult]:
        """What images say of the cascade with a threshold, by metric.

        Args:
            threshold: The share of images that go on.
        """
        on = self.goes_on(threshold)
        return {name: mixed(self.both[name], first, on) for name, first in self.first.items()}

    def goes_on(self, threshold: float) -> Tensor:
        """Which images both heads answer, ``(N,)`` bool.

        Args:
            threshold: As for `results`.
        """
        return self.ranks < threshold

    def take(self, order: Tensor) -> Curve:
        """The same with images in another order.

        Args:
            order: Positions of images here, ``(N,)``.
        """
        return Curve(
            self.ranks[order],
            {name: said.take(order) for name, said in self.first.items()},
            {name: said.take(order) for name, said in self.both.items()},
        )


class CascadeAccumulator:
    """Accumulates what images say of both heads of a cascade.

    Args:
        metrics: What is wanted of it.
        classes: Number of classes.
        first: The number of the head that is asked first, 0 or 1.
        settings: How its confidence and its answer are made.

    Attributes:
        finite: As for `Accumulator`.
    """

    def __init__(
        self, metrics: Sequence[LearnedMetric], classes: int, first: int, settings: CascadeSettings
    ) -> None:
        self.finite = True
        self._first = first
        self._settings = settings
        self._metrics = metrics
        self._classes = classes
        self._start()
        self._sure: list[Tensor] = []
        self._kept: list[tuple[Tensor, Tensor, Mapping[str, Tensor]]] = []

    def update(
        self,
        heads: Tensor,
        labels: Mapping[str, Tensor],
        targets: Tensor,
        *,
        finite: bool | None = None,
    ) -> None:
        """Add a batch.

        Args:
            heads: What both heads answer, ``(N, 2, classes, ...)``.
            labels: By metric, as for `Accumulator.update`.
            targets: The split's own labels.
            finite: As for `Accumulator.update`.
        """
        self.finite = self.finite and (are_finite([heads])[0] if finite is None else finite)
        if not self.finite:
            return
        heads = heads.float()
        if self._settings.is_tuned and heads.dim() == 3:
            self._kept.append((heads, targets, labels))
            return
        plain = untuned_exit(self._first, self._settings)
        first = heads[:, self._first]
        self._sure.append(plain.sure(first))
        self._add(first, plain.mean(heads[:, 0], heads[:, 1]), labels)

    def curve(self) -> Curve:
        """What all images so far say."""
        ranks = self._cross_fitted() if self._kept else _ranks(torch.cat(self._sure).cpu())
        first, both = (_mixable(accumulator.results()) for accumulator in self._accumulators)
        return Curve(ranks, first, both)

    def _cross_fitted(self) -> Tensor:
        """Judge each half of the images with what the other half tuned; returns the ranks."""
        names = list(self._kept[0][2])
        columns = [[heads, targets, *labels.values()] for heads, targets, labels in self._kept]
        heads, targets, *said = fetch([torch.cat(column) for column in zip(*columns, strict=True)])
        labels = dict(zip(names, said, strict=True))
        first, both = heads[:, self._first], torch.empty_like(heads[:, 0])
        ranks = torch.empty(len(heads), dtype=torch.float64)
        halves = [torch.arange(start, len(heads), 2) for start in range(2)]
        for half, other in zip(halves, reversed(halves), strict=True):
            found = tune_exit(heads[other], targets[other], self._first, self._settings)
            both[half] = found.mean(heads[half, 0], heads[half, 1])
            ranks[half] = _ranks(found.sure(first[half]))
        self._start()
        self._add(first, both, labels)
        return ranks

    def _start(self) -> None:
        self._accumulators = [
            Accumulator(self._metrics, self._classes, per_image=True) for _ in range(2)
        ]

    def _add(self, first: Tensor, both: Tensor, labels: Mapping[str, Tensor]) -> None:
        for accumulator, logits in zip(self._accumulators, (first, both), strict=True):
            accumulator.update(logits, labels, finite=True)


def untuned_exit(first: int, settings: CascadeSettings) -> Exit:
    """An exit of which nothing is tuned with labels, without a threshold.

    Args:
        first: The number of the head that is asked first.
        settings: How its confidence is made; of a calibrated one, the largest probability.
    """
    measure = settings.confidence if settings.confidence != "calibrated" else "probability"
    return Exit(first, measure, 1.0, 1.0)


def tune_exit(heads: Tensor, targets: Tensor, first: int, settings: CascadeSettings) -> Exit:
    """Tune what of a cascade needs labels; `with_share` finds its threshold.

    Args:
        heads: Answers of both heads, ``(N, 2, classes)`` or ``(N, 2, classes, H, W)``.
        targets: Labels, ``(N,)``.
        first: The number of the head that is asked first.
        settings: How confidence and answer are made; where pixels are labelled nothing is tuned.
    """
    found = untuned_exit(first, settings)
    if heads.dim() == 3:
        if settings.answer == "tuned":
            found = _tuned_answer(found, heads, targets)
        if settings.confidence == "calibrated":
            found = _calibrated(found, heads[:, first], targets)
    return found


def with_share(found: Exit, sure: Tensor, share: float) -> Exit:
    """The same exit with the threshold that lets a share of some images go on.

    Args:
        found: The exit.
        sure: How sure its first answers are on these images, ``(N,)``.
        share: Of the images.
    """
    ascending = sure.sort().values
    count = round(share * len(sure))
    threshold = float(ascending[count]) if count < len(sure) else float(ascending[-1]) + 1e-6
    return replace(found, threshold=threshold, share=share)


def _tuned_answer(found: Exit, heads: Tensor, targets: Tensor) -> Exit:
    """Weights and temperatures of least cross-entropy of the answer of both.

    Of temperatures and of the weight's odds the logarithms are sought, from the plain mean on.
    """
    scores, labels = heads.double().numpy(), targets.numpy()[:, None]
    # a class's score changes nothing but by its distance to the largest one
    scores = scores - scores.max(axis=2, keepdims=True)
    right = [np.take_along_axis(scores[:, head], labels, axis=1)[:, 0] for head in range(2)]

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        sharpness, weight = np.exp(x[:2]), expit(x[2])
        parts, slopes = [], []
        for head, share in enumerate((weight, 1 - weight)):
            powers = np.exp(sharpness[head] * scores[:, head])
            total = powers.sum(axis=1)
            expected = (powers * scores[:, head]).sum(axis=1) / total
            parts.append(np.log(share) + sharpness[head] * right[head] - np.log(total))
            slopes.append(sharpness[head] * (right[head] - expected))
        whole = np.logaddexp(*parts)
        of_a = np.exp(parts[0] - whole)
        gradient = [of_a * slopes[0], (1 - of_a) * slopes[1], of_a - weight]
        value = _RIDGE * float(x @ x) - float(whole.mean())
        return value, 2 * _RIDGE * x - np.array([slope.mean() for slope in gradient])

    options = {"maxiter": 50}
    bounds = [(-_LARGEST_LOGARITHM, _LARGEST_LOGARITHM)] * 3
    best = minimize(
        loss, np.zeros(3), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    ).x
    sharpness = np.exp(best[:2])
    return replace(
        found,
        weight=float(expit(best[2])),
        temperatures=(float(1 / sharpness[0]), float(1 / sharpness[1])),
    )


def _calibrated(found: Exit, logits: Tensor, targets: Tensor) -> Exit:
    """The log-odds that the first answer is right, by logistic regression on all measures."""
    measured = confidences(logits / found.temperatures[found.first])
    features = torch.stack([torch.ones_like(measured["margin"]), *measured.values()], 1).numpy()
    right = (logits.argmax(dim=1) == targets).double().numpy()

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        odds = features @ x
        value = np.logaddexp(0, odds) - right * odds
        slope = features.T @ (expit(odds) - right) / len(right)
        return float(value.mean()) + _RIDGE * float(x @ x), slope + 2 * _RIDGE * x

    best = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x
    return replace(
        found, confidence="calibrated", coefficients=tuple(float(value) for value in best)
    )


def _mixable(results: Mapping[str, PerImageResult]) -> dict[str, MixableResult]:
    found: dict[str, MixableResult] = {}
    for name, said in results.items():
        if isinstance(said, Streamed):
            raise ConfigError(
                f"The metric {name!r} does not say what single images say, so that no cascade can "
                "be judged by it: give it `of_confusions`, or leave cascades out with "
                "`outputs`."
            )
        found[name] = said
    return found


def _ranks(sure: Tensor) -> Tensor:
    """The share of images that are less sure, by image."""
    order = sure.argsort(stable=True)
    ranks = torch.empty(len(sure), dtype=torch.float64)
    ranks[order] = torch.arange(len(sure), dtype=torch.float64) / len(sure)
    return ranks
