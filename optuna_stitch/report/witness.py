"""Gather what test images say of one network, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from optuna_stitch.evaluation.metrics import (
    METRICS,
    ImageMetric,
    LearnedMetric,
    Metric,
    StreamedMetric,
)
from optuna_stitch.report.evidence import (
    Confusions,
    Hits,
    Logits,
    PerImageResult,
    Scores,
    Streamed,
    confusions,
)


class Witness:
    """Gather what images say of one network, batch by batch.

    Args:
        metrics: What is wanted.
        classes: Number of classes.

    Attributes:
        finite: Whether all logits so far are finite numbers.
    """

    def __init__(self, metrics: Sequence[LearnedMetric], classes: int) -> None:
        self._metrics = metrics
        self._classes = classes
        self._kept: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
        self._streams = {
            metric.name: metric.make(classes)
            for metric in metrics
            if isinstance(metric, StreamedMetric) and not _of_pixels(metric)
        }
        self._guesses: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._keeps_all = any(isinstance(metric, Metric) for metric in metrics)
        self.finite = True

    def update(self, logits: Tensor, labels: Mapping[str, Tensor], targets: Tensor) -> None:
        """Add a batch.

        Args:
            logits: ``(N, classes, ...)``.
            labels: By metric, what the network should answer, ``(N, ...)``.
            targets: The split's own labels.
        """
        self.finite = self.finite and bool(logits.isfinite().all())
        guesses = logits.argmax(dim=1)
        if guesses.dim() == 1:
            self._guesses.append(guesses)
        if self._keeps_all:
            self._logits.append(logits)
            self._targets.append(targets)
        matrices: Tensor | None = None
        for metric in self._metrics:
            if isinstance(metric, ImageMetric):
                said = metric.compute(logits, labels[metric.name])
                self._kept[metric.name].append(said)
            elif metric.name in self._streams:
                self._streams[metric.name].update(logits, labels[metric.name])
            elif isinstance(metric, StreamedMetric):
                if matrices is None:
                    matrices = confusions(guesses, targets, self._classes)
                self._kept[metric.name].append(matrices)

    @property
    def guesses(self) -> Tensor | None:
        """The class of every image, ``(N,)``; None of networks that label pixels."""
        return torch.cat(self._guesses) if self._guesses else None

    def per_image(self) -> dict[str, PerImageResult]:
        """What was gathered, by metric."""
        return {metric.name: self._evidence(metric) for metric in self._metrics}

    def _evidence(self, metric: LearnedMetric) -> PerImageResult:
        if isinstance(metric, Metric):
            return Logits(metric, torch.cat(self._logits), torch.cat(self._targets))
        if metric.name in self._streams:
            return Streamed(float(self._streams[metric.name].compute()))
        said = torch.cat(self._kept[metric.name])
        if isinstance(metric, StreamedMetric):
            return Confusions(said.double().numpy(), metric.name)
        return Hits(said) if said.dtype == torch.bool else Scores(said)


def _of_pixels(metric: StreamedMetric) -> bool:
    """Whether confusion matrices tell the figure."""
    return METRICS.get(metric.name) is metric
