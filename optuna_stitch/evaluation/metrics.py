"""Figures of a subnetwork, any of which can be an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.functional.classification import multiclass_calibration_error

from optuna_stitch.evaluation.latency import latency_ms
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.errors import ConfigError

Direction = Literal["maximize", "minimize"]

# The label of pixels that count for nothing, as in Pascal VOC.
VOID = 255


@dataclass(frozen=True)
class ImageMetric:
    """A figure that is the mean over images of what each image says.

    Args:
        name: What it is called, in the study and in every table.
        compute: Takes logits ``(N, classes)`` and labels ``(N,)``, returns ``(N,)``.
        direction: Which way is better.
        reference: A subnetwork whose answers are the labels, in place of the split's own.
        version: If given, figures of your own metric are remembered under its name and version;
            change it when you change the metric.

    ``compute`` may return booleans, right or wrong by image: such a figure can be raced.
    """

    name: str
    compute: Callable[[Tensor, Tensor], Tensor]
    direction: Direction = "maximize"
    reference: Genotype | None = None
    version: str | None = None


@dataclass(frozen=True)
class Metric:
    """A figure computed from what a subnetwork answers on all images of a split.

    Args:
        name: What it is called.
        compute: Takes logits ``(N, classes)`` and labels ``(N,)``, returns a number.
        direction: Which way is better.
        version: As for `ImageMetric`.
    """

    name: str
    compute: Callable[[Tensor, Tensor], float | Tensor]
    direction: Direction = "maximize"
    version: str | None = None


@dataclass(frozen=True)
class StreamedMetric:
    """A figure gathered batch by batch, for answers too large to keep: those of segmentation.

    Args:
        name: What it is called.
        make: Takes the number of classes, returns a new metric of torchmetrics' that is updated
            with logits ``(N, classes, ...)`` and labels ``(N, ...)``.
        direction: Which way is better.
        version: As for `ImageMetric`.
    """

    name: str
    make: Callable[[int], torchmetrics.Metric]
    direction: Direction = "maximize"
    version: str | None = None


@dataclass(frozen=True)
class Cost:
    """A figure known from a subnetwork alone, without running it on images.

    Args:
        name: What it is called.
        compute: Takes a subnetwork, returns a number.
        direction: Which way is better.
    """

    name: str
    compute: Callable[[Subnetwork], float]
    direction: Direction = "minimize"


LearnedMetric = ImageMetric | Metric | StreamedMetric

AnyMetric = LearnedMetric | Cost


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest logit is the label's, by image."""
    return logits.argmax(dim=1) == targets


def top5(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the label is among the five largest logits, by image."""
    largest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (largest == targets[:, None]).any(dim=1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probability of the label in nats, by image."""
    return F.cross_entropy(logits, targets, reduction="none")


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
        ImageMetric("accuracy", accuracy),
        ImageMetric("top5", top5),
        ImageMetric("agreement", accuracy, reference=Genotype("ensemble")),
        ImageMetric("cross_entropy", cross_entropy, "minimize"),
        Metric("calibration_error", calibration_error, "minimize"),
        StreamedMetric("mean_iou", _mean_iou),
        StreamedMetric("pixel_accuracy", _pixel_accuracy),
        Cost("macs", lambda subnetwork: subnetwork.macs),
        Cost("parameters", lambda subnetwork: subnetwork.parameters),
        Cost("weight_bytes", lambda subnetwork: subnetwork.weight_bytes),
        Cost("activation_bytes", lambda subnetwork: subnetwork.activation_bytes),
        Cost("latency_ms", latency_ms),
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


def cached_name(metric: LearnedMetric) -> str | None:
    """Under which name a metric's figures may be kept for other processes; None if not at all."""
    if METRICS.get(metric.name) is metric:
        return metric.name
    return f"{metric.name} {metric.version}" if metric.version is not None else None


# Figures that are shares of one, and read better in percent.
SHARES = {"accuracy", "top5", "agreement", "mean_iou", "pixel_accuracy", "calibration_error"}


@dataclass(frozen=True)
class Axis:
    """What a figure is called, and in which unit it is shown.

    Args:
        title: Of the axis.
        words: What a sentence calls it, in the plural.
        unit: What the values are divided by.
        symbol: Of that unit.
    """

    title: str
    words: str
    unit: float = 1.0
    symbol: str = ""


_AXES = {
    "macs": Axis(
        "multiply-accumulates per image (millions)", "multiply-accumulates", 1e6, "M MACs"
    ),
    "parameters": Axis("parameters (millions)", "parameters", 1e6, "M parameters"),
    "weight_bytes": Axis("weights (MB)", "bytes of weights", 1e6, "MB"),
    "activation_bytes": Axis("activations per image (MB)", "bytes of activations", 1e6, "MB"),
    "latency_ms": Axis("latency (ms)", "milliseconds", 1.0, "ms"),
}


def axis_of(metric: str) -> Axis:
    """How a figure is shown: shares in percent, costs in their units.

    Args:
        metric: Its name.
    """
    if metric in SHARES:
        return Axis(f"{words_of(metric)} (%)", words_of(metric), 0.01, "%")
    return _AXES.get(metric, Axis(metric, metric, 1.0, metric))


def words_of(metric: str) -> str:
    """A figure's name in a sentence."""
    return metric.replace("_", " ").replace("iou", "IoU")
