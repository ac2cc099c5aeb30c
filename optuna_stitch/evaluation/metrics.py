"""Figures of a subnetwork, any of which can be an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from optuna_stitch.evaluation.latency import latency_ms, worst_latency_ms
from optuna_stitch.stitching.genotype import SIDES, Genotype, Side
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.text import number_text, percent_text

if TYPE_CHECKING:
    import torchmetrics

Direction = Literal["maximize", "minimize"]

# The label of pixels that count for nothing, as in Pascal VOC.
VOID = 255


@dataclass(frozen=True)
class Unit:
    """What people call a figure, and the unit that they read it in.

    Args:
        words: What a sentence calls it; of a cost, what there can be fewer of:
            ``multiply-accumulates``.
        symbol: Of the unit, ``%`` or ``M MACs``; empty where there is none.
        scale: What values are divided by.
        axis: The title of its axis in a plot, and of a column: ``latency (ms)``. If empty, it
            follows from the words and the symbol.

    Example:
        >>> from optuna_stitch.evaluation.metrics import unit_of
        >>> unit_of("macs").text(1_234_500), unit_of("macs").symbol
        ('1.234', 'M MACs')
        >>> unit_of("mean_iou").title
        'mean IoU (%)'
    """

    words: str
    symbol: str = ""
    scale: float = 1.0
    axis: str = ""

    @property
    def share(self) -> bool:
        """Whether it is a share of one, which reads better in percent."""
        return self.symbol == "%"

    @property
    def title(self) -> str:
        """Of an axis, with the unit."""
        return self.axis or (f"{self.words} ({self.symbol})" if self.symbol else self.words)

    @property
    def head(self) -> str:
        """Of a column, with the unit: short."""
        return f"{self.words} (%)" if self.share else self.symbol or self.words

    def text(self, value: float) -> str:
        """A value in this unit, without the unit's symbol.

        Args:
            value: As metrics give it.
        """
        if self.share:
            return percent_text(value, sign="")
        return number_text(value / self.scale)

    def __call__(self, value: float) -> str:
        """A value with its unit: ``98.50%``, ``4.099 M MACs``.

        Args:
            value: As metrics give it.
        """
        return f"{self.text(value)}{'%' if self.share else f' {self.symbol or self.words}'}"


@dataclass(frozen=True)
class ImageMetric:
    """A figure that is a mean over images.

    Where ``compute`` returns booleans, right or wrong per image, the figure can be raced.

    Args:
        name: What it is called, in the study and in every table.
        compute: Takes logits ``(N, classes)`` and labels ``(N,)``, returns ``(N,)``.
        direction: Which way is better.
        reference: A subnetwork whose answers are the labels, in place of the split's own.
        version: If given, figures of your own metric are remembered under its name and version;
            change it when you change the metric.
        unit: What people read it in; its bare value, if None.

    Example:
        >>> def sure(logits, targets):
        ...     return logits.softmax(dim=1).amax(dim=1) > 0.9
        >>> metrics = [st.ImageMetric("sure", sure, version="1"), "macs"]
        >>> evaluator = st.Evaluator(supernetwork, data.val, metrics)
        >>> figures = evaluator.evaluate([supernetwork.subnetwork({"output": "a"})])[0]
        >>> 0 <= figures["sure"] <= 1
        True
    """

    name: str
    compute: Callable[[Tensor, Tensor], Tensor]
    direction: Direction = "maximize"
    reference: Genotype | None = None
    version: str | None = None
    unit: Unit | None = None


@dataclass(frozen=True)
class Metric:
    """A figure computed from what a subnetwork answers on all images of a split.

    Args:
        name: What it is called.
        compute: Takes logits ``(N, classes)`` and labels ``(N,)``, returns a number.
        direction: Which way is better.
        version: As for `ImageMetric`.
        unit: As for `ImageMetric`.

    Example:
        >>> def spread(logits, targets):
        ...     return logits.argmax(dim=1).double().std()
        >>> evaluator = st.Evaluator(supernetwork, data.val, [st.Metric("spread", spread)])
        >>> evaluator.evaluate([supernetwork.subnetwork({"output": "a"})])[0]["spread"] >= 0
        True
    """

    name: str
    compute: Callable[[Tensor, Tensor], float | Tensor]
    direction: Direction = "maximize"
    version: str | None = None
    unit: Unit | None = None


@dataclass(frozen=True)
class StreamedMetric:
    """A figure computed batch by batch, for answers too large to keep: those of segmentation.

    Args:
        name: What it is called.
        make: Takes the number of classes, returns a new metric of torchmetrics' that is updated
            with logits ``(N, classes, ...)`` and labels ``(N, ...)``.
        direction: Which way is better.
        version: As for `ImageMetric`.
        of_confusions: The same figure from confusion matrices ``(..., classes, classes)``, label
            by row and answer by column, as ``(...,)``. With it, reports have intervals and paired
            comparisons.
        unit: As for `ImageMetric`.
    """

    name: str
    make: Callable[[int], torchmetrics.Metric]
    direction: Direction = "maximize"
    version: str | None = None
    of_confusions: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None
    unit: Unit | None = None


@dataclass(frozen=True)
class Cost:
    """A figure known from a subnetwork alone, without running it on images.

    Args:
        name: What it is called.
        compute: Takes a subnetwork, returns a number.
        direction: Which way is better.
        unit: As for `ImageMetric`.

    Example:
        >>> stitches = st.Cost("stitches", lambda subnetwork: len(subnetwork.on))
        >>> evaluator = st.Evaluator(supernetwork, data.val, [stitches])
        >>> evaluator.evaluate([supernetwork.subnetwork({"output": "b"})])[0]["stitches"]
        0.0
    """

    name: str
    compute: Callable[[Subnetwork], float]
    direction: Direction = "minimize"
    unit: Unit | None = None


LearnedMetric = ImageMetric | Metric | StreamedMetric

AnyMetric = LearnedMetric | Cost


@dataclass(frozen=True)
class SideMetric:
    """A figure of one of two answers, of networks that answer both of two questions.

    Known metrics have names for it: ``accuracy_a``, ``mean_iou_b``.

    Args:
        metric: The figure.
        side: Whose answer, ``a`` or ``b``.

    Example:
        >>> def sure(logits, targets):
        ...     return logits.softmax(dim=1).amax(dim=1) > 0.9
        >>> st.SideMetric(st.ImageMetric("sure", sure), "b").name
        'sure_b'
    """

    metric: LearnedMetric
    side: Side

    @property
    def name(self) -> str:
        """What it is called: the metric's name, and the side."""
        return f"{self.metric.name}_{self.side}"

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        return self.metric.direction

    @property
    def unit(self) -> Unit:
        """What people read it in."""
        return replace(of := unit_of(self.metric), words=f"{of.words} of {self.side}")

    @property
    def judged(self) -> LearnedMetric:
        """The metric as the answers of one side are judged by; agreement is with that parent."""
        metric = self.metric
        if isinstance(metric, ImageMetric) and metric.reference is not None:
            own = Genotype(self.side)
            return replace(metric, reference=own, version=f"with parent {self.side}")
        return metric


@dataclass(frozen=True)
class Retained:
    """The smaller of two shares: of what each parent reaches alone, how much is left.

    A parent that gets nothing right has nothing to retain, and its share is whole; `check_parents`
    finds such parents.
    """

    name: str = "retained"
    direction: Direction = "maximize"

    @property
    def unit(self) -> Unit:
        """What people read it in."""
        return _share("retained")

    @staticmethod
    def share(own: float, alone: float) -> float:
        """What share of one figure another one is.

        Args:
            own: Of a network.
            alone: Of the parent.
        """
        return own / alone if alone > 0 else 1.0


RETAINED = Retained()

# What studies may have for objectives and constraints.
StudyMetric = AnyMetric | SideMetric | Retained


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the largest logit is the label's, per image.

    Args:
        logits: ``(N, classes)``.
        targets: Labels, ``(N,)``.

    Returns:
        ``(N,)`` bool.
    """
    return logits.argmax(dim=1) == targets


def top5(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the label is among the five largest logits, per image.

    Args:
        logits: ``(N, classes)``.
        targets: Labels, ``(N,)``.

    Returns:
        ``(N,)`` bool.
    """
    largest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (largest == targets[:, None]).any(dim=1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probability of the label in nats, per image.

    Args:
        logits: ``(N, classes)``.
        targets: Labels, ``(N,)``.

    Returns:
        ``(N,)``.
    """
    return F.cross_entropy(logits, targets, reduction="none")


def calibration_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Expected calibration error over 15 bins of confidence, a share.

    Args:
        logits: ``(N, classes)``.
        targets: Labels, ``(N,)``.
    """
    # imported here and below, since that takes seconds and few studies need it
    from torchmetrics.functional.classification import multiclass_calibration_error

    return multiclass_calibration_error(logits, targets, num_classes=logits.shape[1])


def balanced_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Accuracy by class, averaged over the classes that occur: each counts alike.

    Args:
        logits: ``(N, classes)``.
        targets: Labels, ``(N,)``.
    """
    counts = targets.bincount(minlength=logits.shape[1])
    right = targets[accuracy(logits, targets)].bincount(minlength=logits.shape[1])
    return (right[counts > 0].double() / counts[counts > 0]).mean()


def _mean_iou(classes: int) -> torchmetrics.Metric:
    """Intersection over union, averaged over classes."""
    from torchmetrics.classification import MulticlassJaccardIndex

    return MulticlassJaccardIndex(classes, ignore_index=VOID)


def _pixel_accuracy(classes: int) -> torchmetrics.Metric:
    """Share of pixels whose largest logit is the label's."""
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(classes, average="micro", ignore_index=VOID)


def class_iou_of(confusions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union by class; NaN of those that do not occur.

    Args:
        confusions: Matrices ``(..., classes, classes)``, label by row and answer by column.

    Returns:
        ``(..., classes)``.
    """
    both = np.diagonal(confusions, axis1=-2, axis2=-1)
    either = confusions.sum(axis=-1) + confusions.sum(axis=-2) - both
    nowhere = np.full_like(either, np.nan)
    ratios: NDArray[np.float64] = np.divide(both, either, out=nowhere, where=either > 0)
    return ratios


def mean_iou_of(confusions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union, averaged over the classes that occur.

    Args:
        confusions: As for `class_iou_of`.

    Returns:
        ``(...,)``.
    """
    ratios = class_iou_of(confusions)
    occur = (~np.isnan(ratios)).sum(axis=-1)
    means: NDArray[np.float64] = np.nansum(ratios, axis=-1) / np.maximum(occur, 1)
    return means


def pixel_accuracy_of(confusions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of pixels whose largest logit is the label's.

    Args:
        confusions: As for `class_iou_of`.

    Returns:
        ``(...,)``.
    """
    both = np.diagonal(confusions, axis1=-2, axis2=-1)
    share: NDArray[np.float64] = both.sum(axis=-1) / confusions.sum(axis=(-2, -1)).clip(1)
    return share


def _share(words: str) -> Unit:
    return Unit(words, "%", 0.01)


def _millions(words: str, symbol: str, axis: str) -> Unit:
    return Unit(words, symbol, 1e6, axis)


METRICS: dict[str, AnyMetric] = {
    metric.name: metric
    for metric in (
        ImageMetric("accuracy", accuracy, unit=_share("accuracy")),
        ImageMetric("top5", top5, unit=_share("top5")),
        ImageMetric(
            "agreement", accuracy, reference=Genotype("ensemble"), unit=_share("agreement")
        ),
        Metric("balanced_accuracy", balanced_accuracy, unit=_share("balanced accuracy")),
        ImageMetric("cross_entropy", cross_entropy, "minimize"),
        Metric(
            "calibration_error", calibration_error, "minimize", unit=_share("calibration error")
        ),
        StreamedMetric("mean_iou", _mean_iou, of_confusions=mean_iou_of, unit=_share("mean IoU")),
        StreamedMetric(
            "pixel_accuracy",
            _pixel_accuracy,
            of_confusions=pixel_accuracy_of,
            unit=_share("pixel accuracy"),
        ),
        Cost(
            "macs",
            lambda subnetwork: subnetwork.macs,
            unit=_millions(
                "multiply-accumulates", "M MACs", "multiply-accumulates per image (millions)"
            ),
        ),
        Cost(
            "worst_macs",
            lambda subnetwork: subnetwork.worst_macs,
            unit=_millions(
                "multiply-accumulates at worst",
                "M MACs at worst",
                "multiply-accumulates of the most expensive image (millions)",
            ),
        ),
        Cost(
            "parameters",
            lambda subnetwork: subnetwork.parameters,
            unit=_millions("parameters", "M parameters", "parameters (millions)"),
        ),
        Cost(
            "weight_bytes",
            lambda subnetwork: subnetwork.weight_bytes,
            unit=_millions("bytes of weights", "MB", "weights (MB)"),
        ),
        Cost(
            "activation_bytes",
            lambda subnetwork: subnetwork.activation_bytes,
            unit=_millions("bytes of activations", "MB", "activations per image (MB)"),
        ),
        Cost("latency_ms", latency_ms, unit=Unit("milliseconds", "ms", axis="latency (ms)")),
        Cost(
            "worst_latency_ms",
            worst_latency_ms,
            unit=Unit("milliseconds at worst", "ms at worst", axis="latency at worst (ms)"),
        ),
    )
}


def quality_metric(*, segments: bool) -> LearnedMetric:
    """What tells how good networks are: accuracy, or mean IoU.

    Args:
        segments: Whether they label pixels.
    """
    metric = METRICS["mean_iou" if segments else "accuracy"]
    assert not isinstance(metric, Cost)
    return metric


def _known(name: str) -> StudyMetric | None:
    """The metric of a name, which may end with a side; None if there is none."""
    if name == RETAINED.name:
        return RETAINED
    whose, _, side = name.rpartition("_")
    metric = METRICS.get(whose)
    if side in SIDES and metric is not None and not isinstance(metric, Cost):
        return SideMetric(metric, "a" if side == "a" else "b")
    return METRICS.get(name)


def unit_of(metric: str | StudyMetric) -> Unit:
    """What people call a figure, and the unit that they read it in.

    Args:
        metric: A metric, or its name; one of your own is known by its name only as it stands.
    """
    known = _known(metric) if isinstance(metric, str) else metric
    if known is not None and known.unit is not None:
        return known.unit
    name = metric if isinstance(metric, str) else metric.name
    return Unit(name.replace("_", " "))


def resolve_metrics(metrics: Sequence[str | StudyMetric]) -> tuple[StudyMetric, ...]:
    """Look names up, and pass metrics through.

    Args:
        metrics: Names of known metrics, or metrics.

    Raises:
        ConfigError: If a name is unknown, or is there twice.
    """
    found: list[StudyMetric] = []
    for metric in metrics:
        known = _known(metric) if isinstance(metric, str) else metric
        if known is None:
            raise ConfigError(
                f"There is no metric {metric!r}; known are {', '.join(METRICS)}, and your own as "
                "`Metric(name, function)`. Parents with two jobs have retained, and names that "
                "end with a side, such as accuracy_a."
            )
        found.append(known)
    names = [metric.name for metric in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"Each metric may be there once; these are {names}.")
    return tuple(found)


def metrics_of_one_job(metrics: Sequence[str | StudyMetric]) -> tuple[AnyMetric, ...]:
    """Look metrics up for networks that give one answer.

    Args:
        metrics: As for `resolve_metrics`.

    Raises:
        ConfigError: As `resolve_metrics` says, and if one is for two answers.
    """
    found: list[AnyMetric] = []
    for metric in resolve_metrics(metrics):
        if isinstance(metric, (SideMetric, Retained)):
            raise ConfigError(
                f"The metric {metric.name!r} is for parents with two jobs; these have one. Say "
                "accuracy or mean_iou, or give `stitch` the outputs `both`."
            )
        found.append(metric)
    return tuple(found)


def check_sides(metrics: Sequence[StudyMetric]) -> None:
    """Check that metrics are for networks that answer two questions.

    Args:
        metrics: They.

    Raises:
        ConfigError: If one says of answers something, and not of whose.
    """
    for metric in metrics:
        if not isinstance(metric, (Cost, SideMetric, Retained)):
            raise ConfigError(
                f"The parents have two jobs, so that {metric.name!r} needs a side: "
                f"{metric.name}_a or {metric.name}_b; or say retained, the smaller share of what "
                "each parent reaches alone."
            )


def cached_name(metric: LearnedMetric) -> str | None:
    """Under which name a metric's figures may be kept for other processes; None if not at all.

    Args:
        metric: The metric.
    """
    if METRICS.get(metric.name) is metric:
        return metric.name
    return f"{metric.name} {metric.version}" if metric.version is not None else None
