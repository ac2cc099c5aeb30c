"""Figures of a subnetwork, any of which can be an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
)

from optuna_stitch.errors import ConfigError
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork

Direction = Literal["maximize", "minimize"]

# The label of pixels that count for nothing, as in Pascal VOC.
VOID = 255


@dataclass(frozen=True)
class Metric:
    """A figure computed from what a subnetwork answers on all images of a split.

    Args:
        name: What it is called, in the study and in every table.
        compute: Takes logits ``(N, classes)`` and labels ``(N,)``, returns a number.
        direction: Which way is better.
    """

    name: str
    compute: Callable[[Tensor, Tensor], float | Tensor]
    direction: Direction = "maximize"


@dataclass(frozen=True)
class StreamedMetric:
    """A figure gathered batch by batch, for answers too large to keep: those of segmentation.

    Args:
        name: What it is called.
        make: Takes the number of classes, returns a new metric of torchmetrics' that is updated
            with logits ``(N, classes, ...)`` and labels ``(N, ...)``.
        direction: Which way is better.
    """

    name: str
    make: Callable[[int], torchmetrics.Metric]
    direction: Direction = "maximize"


@dataclass(frozen=True)
class Cost:
    """A figure known from a genotype alone, without running it.

    Args:
        name: What it is called.
        compute: Takes the supernetwork and a genotype, returns a number.
        direction: Which way is better.
    """

    name: str
    compute: Callable[[Supernetwork, Genotype], float]
    direction: Direction = "minimize"


AnyMetric = Metric | StreamedMetric | Cost


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of images whose largest logit is the label's."""
    return multiclass_accuracy(logits, targets, num_classes=logits.shape[1], average="micro")


def top5(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of images whose label is among the five largest logits."""
    classes = logits.shape[1]
    return multiclass_accuracy(logits, targets, classes, average="micro", top_k=min(5, classes))


def calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Expected calibration error over 15 bins of confidence."""
    return multiclass_calibration_error(logits, targets, num_classes=logits.shape[1])


def _mean_iou(classes: int) -> torchmetrics.Metric:
    """Intersection over union, averaged over classes."""
    return MulticlassJaccardIndex(classes, ignore_index=VOID)


def _pixel_accuracy(classes: int) -> torchmetrics.Metric:
    """Share of pixels whose largest logit is the label's."""
    return MulticlassAccuracy(classes, average="micro", ignore_index=VOID)


METRICS: dict[str, AnyMetric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy),
        Metric("top5", top5),
        Metric("cross_entropy", F.cross_entropy, "minimize"),
        Metric("calibration_error", calibration_error, "minimize"),
        StreamedMetric("mean_iou", _mean_iou),
        StreamedMetric("pixel_accuracy", _pixel_accuracy),
        Cost("macs", lambda supernetwork, genotype: supernetwork.macs(genotype)),
        Cost("parameters", lambda supernetwork, genotype: supernetwork.parameters(genotype)),
    )
}


def resolve_metrics(metrics: Sequence[str | AnyMetric]) -> tuple[AnyMetric, ...]:
    """Look names up, and pass metrics through.

    Raises:
        ConfigError: If a name is unknown, or is there twice.
    """
    found: list[AnyMetric] = []
    for metric in metrics:
        if isinstance(metric, str):
            if metric not in METRICS:
                raise ConfigError(
                    f"There is no metric {metric!r}; known are {', '.join(METRICS)}, and your "
                    "own as `Metric(name, function)`."
                )
            metric = METRICS[metric]
        found.append(metric)
    names = [metric.name for metric in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"Each metric may be there once; these are {names}.")
    return tuple(found)
