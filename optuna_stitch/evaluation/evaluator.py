"""Judge subnetworks on a split: run many at once, compute their figures, remember them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from optuna_stitch.data import Split
from optuna_stitch.errors import ConfigError, DataError
from optuna_stitch.evaluation.metrics import (
    VOID,
    AnyMetric,
    Cost,
    Metric,
    StreamedMetric,
    resolve_metrics,
)
from optuna_stitch.evaluation.plan import plan
from optuna_stitch.progress import track
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork


class Evaluator:
    """Figures of subnetworks on one split, each subnetwork computed once.

    Args:
        supernetwork: Whose subnetworks.
        split: Images to judge them on.
        metrics: Names of known metrics, or metrics of your own.
        batch_size: Images per batch; if None, as many as the supernetwork's `batch_size` says.

    Raises:
        ConfigError: If a metric is unknown, or is for another task.
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: Split,
        metrics: Sequence[str | AnyMetric] = ("accuracy", "macs"),
        *,
        batch_size: int | None = None,
    ) -> None:
        self.supernetwork = supernetwork
        self.split = split
        self.metrics = resolve_metrics(metrics)
        self.batch_size = batch_size or supernetwork.batch_size
        self._known: dict[Genotype, dict[str, float]] = {}
        for metric in self.metrics:
            if isinstance(metric, Metric) and supernetwork.segments:
                raise ConfigError(
                    f"The metric {metric.name!r} judges one label an image, but "
                    f"{supernetwork.a.name} and {supernetwork.b.name} label every pixel; use "
                    "mean_iou or pixel_accuracy."
                )

    def evaluate(
        self, genotypes: Sequence[Genotype], *, show_progress_bar: bool = False
    ) -> list[dict[str, float]]:
        """Figures by metric name, one entry per genotype.

        Genotypes that are the same subnetwork, now or in an earlier call, are computed once.

        Args:
            genotypes: The subnetworks.
            show_progress_bar: Whether to show a progress bar, over batches of images.

        Raises:
            DataError: If an image has a label that the parents have no class for.
        """
        canonical = [self.supernetwork.canonical(genotype) for genotype in genotypes]
        new = [g for g in dict.fromkeys(canonical) if g not in self._known]
        measured = self._measure(new, show_progress_bar)
        for genotype, learned in zip(new, measured, strict=True):
            costs = {
                metric.name: float(metric.compute(self.supernetwork, genotype))
                for metric in self.metrics
                if isinstance(metric, Cost)
            }
            figures = {**learned, **costs}
            self._known[genotype] = {metric.name: figures[metric.name] for metric in self.metrics}
        return [dict(self._known[genotype]) for genotype in canonical]

    def logits(self, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """What subnetworks answer on the whole split, ``(len(split), classes, ...)`` each."""
        kept: list[list[Tensor]] = [[] for _ in genotypes]
        for _, answers in self.answers(genotypes):
            for column, logits in zip(kept, answers, strict=True):
                column.append(logits)
        return [torch.cat(column) for column in kept]

    def answers(self, genotypes: Sequence[Genotype]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """What subnetworks answer, batch by batch.

        Yields:
            The batch's labels, ``(N,)`` or ``(N, H, W)``, and logits of each genotype,
            ``(N, classes)`` or ``(N, classes, H, W)``.

        Raises:
            DataError: If an image has a label that the parents have no class for.
        """
        with torch.inference_mode():
            program = plan(self.supernetwork, genotypes)
            for batch in self.split.batches(self.supernetwork.views, self.batch_size):
                self._check_labels(batch.targets)
                yield batch.targets, program.run(batch.images)

    def _measure(
        self, genotypes: Sequence[Genotype], show_progress_bar: bool
    ) -> list[dict[str, float]]:
        """The figures that need images, by genotype."""
        whole = [metric for metric in self.metrics if isinstance(metric, Metric)]
        streamed = [metric for metric in self.metrics if isinstance(metric, StreamedMetric)]
        if not genotypes or not (whole or streamed):
            return [{} for _ in genotypes]
        classes = self.supernetwork.classes
        gathered = [{metric.name: metric.make(classes) for metric in streamed} for _ in genotypes]
        kept: list[list[Tensor]] = [[] for _ in genotypes]
        labels: list[Tensor] = []
        for targets, answers in track(
            self.answers(genotypes),
            f"Evaluate {len(genotypes)} networks",
            total=math.ceil(len(self.split) / self.batch_size),
            show_progress_bar=show_progress_bar,
        ):
            labels.append(targets)
            for place, logits in enumerate(answers):
                for gather in gathered[place].values():
                    gather.update(logits, targets)
                if whole:
                    kept[place].append(logits)
        targets = torch.cat(labels)
        found: list[dict[str, float]] = []
        for column, gatherers in zip(kept, gathered, strict=True):
            figures = {name: float(gather.compute()) for name, gather in gatherers.items()}
            if whole:
                logits = torch.cat(column)
                figures |= {m.name: float(m.compute(logits, targets)) for m in whole}
            found.append(figures)
        return found

    def _check_labels(self, targets: Tensor) -> None:
        if self.supernetwork.segments:
            targets = targets[targets != VOID]
        largest = int(targets.max()) if targets.numel() else 0
        if largest >= self.supernetwork.classes:
            raise DataError(
                f"The {self.split.name} split has label {largest}, but "
                f"{self.supernetwork.a.name} and {self.supernetwork.b.name} tell only "
                f"{self.supernetwork.classes} classes apart."
            )
