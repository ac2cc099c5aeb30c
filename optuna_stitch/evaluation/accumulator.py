"""Figures of one subnetwork, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optuna_stitch.evaluation.metrics import ImageMetric, LearnedMetric, Metric, StreamedMetric


@dataclass(frozen=True)
class Evaluation:
    """What is known of a subnetwork.

    Args:
        figures: By name of the metric, in the metrics' order. Figures that need images are NaN
            where the subnetwork failed.
        images: How many images are behind them.
        stopped: Whether a race stopped it before the last image: figures that need images are
            then estimates.
        failed: The operation that made the first value that is no finite number, or nothing.
        ruled_out: Whether its cost alone broke a constraint, so that it was not run: figures that
            need images are NaN.
    """

    figures: dict[str, float]
    images: int
    stopped: bool = False
    failed: str = ""
    ruled_out: bool = False

    def __getitem__(self, metric: str) -> float:
        return self.figures[metric]


class Gatherer:
    """Gather what one subnetwork answers.

    Args:
        metrics: What is wanted of it.
        classes: Number of classes.
    """

    def __init__(self, metrics: Sequence[LearnedMetric], classes: int) -> None:
        self._metrics = metrics
        self._by_image: dict[str, list[Tensor]] = {
            metric.name: [] for metric in metrics if isinstance(metric, ImageMetric)
        }
        self._streamed = {
            metric.name: metric.make(classes)
            for metric in metrics
            if isinstance(metric, StreamedMetric)
        }
        self._whole = [metric.name for metric in metrics if isinstance(metric, Metric)]
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, logits: Tensor, labels: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            logits: What the subnetwork answers, ``(N, classes, ...)``.
            labels: By metric, what it should answer, ``(N, ...)``.
        """
        for metric in self._metrics:
            wanted = labels[metric.name]
            if isinstance(metric, ImageMetric):
                self._by_image[metric.name].append(metric.compute(logits, wanted))
            elif isinstance(metric, StreamedMetric):
                self._streamed[metric.name].update(logits, wanted)
        if self._whole:  # all of them are told the split's own labels
            self._logits.append(logits)
            self._targets.append(labels[self._whole[0]])

    def by_image(self, metric: str) -> Tensor:
        """What a metric says of every image so far, ``(n,)``."""
        gathered = torch.cat(self._by_image[metric])
        self._by_image[metric] = [gathered]
        return gathered

    def figures(self) -> dict[str, float]:
        """The figures over all images so far."""
        found: dict[str, float] = {}
        for metric in self._metrics:
            if isinstance(metric, ImageMetric):
                found[metric.name] = float(self.by_image(metric.name).double().mean())
            elif isinstance(metric, StreamedMetric):
                found[metric.name] = float(self._streamed[metric.name].compute())
            else:
                logits, targets = torch.cat(self._logits), torch.cat(self._targets)
                found[metric.name] = float(metric.compute(logits, targets))
        return found
