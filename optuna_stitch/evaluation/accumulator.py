"""Per-image results of a subnetwork, accumulated batch by batch.

The search, its races, the report and its baselines all use `Accumulator`. `Labels` says what
answers are compared with, and `Evaluation` what is known of a subnetwork in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optuna_stitch.evaluation.metrics import (
    VOID,
    ImageMetric,
    LearnedMetric,
    Metric,
    StreamedMetric,
)
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.device import are_finite, send


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

    Example:
        >>> evaluator = st.Evaluator(supernetwork, data.val, ["accuracy", "macs"])
        >>> (evaluation,) = evaluator.evaluate([supernetwork.subnetwork({"output": "a"})])
        >>> evaluation.images, list(evaluation.figures)
        (200, ['accuracy', 'macs'])
    """

    figures: dict[str, float]
    images: int
    stopped: bool = False
    failed: str = ""
    ruled_out: bool = False

    def __getitem__(self, metric: str) -> float:
        return self.figures[metric]


@dataclass(frozen=True)
class Hits:
    """Which images a network gets right.

    Args:
        right: ``(N,)`` bool.
    """

    right: Tensor

    @property
    def figure(self) -> float:
        """Their share."""
        return float(self.right.double().mean())

    def where(self, chosen: Tensor, other: Hits) -> Hits:
        """This network on some images, another one on the rest.

        Args:
            chosen: ``(N,)`` bool, the images of this one.
            other: The other one, on the same images.
        """
        return Hits(torch.where(chosen, self.right, other.right))

    def take(self, order: Tensor) -> Hits:
        """The same with images in another order.

        Args:
            order: Positions of images here, ``(N,)``.
        """
        return Hits(self.right[order])


@dataclass(frozen=True)
class Scores:
    """A number per image, whose mean is the figure.

    Args:
        values: ``(N,)``.
    """

    values: Tensor

    @property
    def figure(self) -> float:
        """The mean."""
        return float(self.values.double().mean())

    def where(self, chosen: Tensor, other: Scores) -> Scores:
        """As for `Hits`.

        Args:
            chosen: ``(N,)`` bool, the images of this one.
            other: The other one, on the same images.
        """
        return Scores(torch.where(chosen, self.values, other.values))

    def take(self, order: Tensor) -> Scores:
        """The same with images in another order.

        Args:
            order: Positions of images here, ``(N,)``.
        """
        return Scores(self.values[order])


@dataclass(frozen=True)
class Confusions:
    """A confusion matrix per image, label by row and answer by column.

    Args:
        matrices: ``(N, classes, classes)`` counts of pixels.
        of_confusions: The figure of matrices ``(..., classes, classes)``; see `StreamedMetric`.
    """

    matrices: NDArray[np.float64]
    of_confusions: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    @property
    def figure(self) -> float:
        """The figure of all pixels."""
        return float(self.of_confusions(self.matrices.sum(axis=0)))

    def where(self, chosen: Tensor, other: Confusions) -> Confusions:
        """As for `Hits`.

        Args:
            chosen: ``(N,)`` bool, the images of this one.
            other: The other one, on the same images.
        """
        mixed = np.where(chosen.numpy()[:, None, None], self.matrices, other.matrices)
        return Confusions(mixed, self.of_confusions)

    def take(self, order: Tensor) -> Confusions:
        """The same with images in another order.

        Args:
            order: Positions of images here, ``(N,)``.
        """
        return Confusions(self.matrices[order.numpy()], self.of_confusions)


@dataclass(frozen=True)
class Logits:
    """All answers of a network, for a figure that is no mean over images.

    Args:
        metric: The figure.
        logits: ``(N, classes)``.
        targets: Labels, ``(N,)``.
    """

    metric: Metric
    logits: Tensor
    targets: Tensor

    @property
    def figure(self) -> float:
        """The figure of all answers."""
        return float(self.metric.compute(self.logits, self.targets))

    def where(self, chosen: Tensor, other: Logits) -> Logits:
        """As for `Hits`.

        Args:
            chosen: ``(N,)`` bool, the images of this one.
            other: The other one, on the same images.
        """
        logits = torch.where(chosen[:, None], self.logits, other.logits)
        return Logits(self.metric, logits, self.targets)

    def take(self, order: Tensor) -> Logits:
        """The same with images in another order.

        Args:
            order: Positions of images here, ``(N,)``.
        """
        return Logits(self.metric, self.logits[order], self.targets[order])


@dataclass(frozen=True)
class Streamed:
    """A figure of which single images are not known.

    Args:
        figure: The figure of all images.
    """

    figure: float


# What can be compared between two networks on the same images.
PairedResult = Hits | Confusions

# What can be mixed, some images of one network and the rest of another.
MixableResult = PairedResult | Scores | Logits

PerImageResult = MixableResult | Streamed


def mixed(then: MixableResult, alone: MixableResult, chosen: Tensor) -> MixableResult:
    """What images say of one network on some of them, and of another one on the rest.

    Args:
        then: What they say of the one.
        alone: What they say of the other one, by the same metric.
        chosen: ``(N,)`` bool, the images of the one.
    """
    if type(then) is not type(alone):
        raise TypeError(f"{type(then).__name__} and {type(alone).__name__} cannot be mixed.")
    return then.where(chosen, alone)  # type: ignore[arg-type]


class Accumulator:
    """Accumulates what images say of one subnetwork.

    Args:
        metrics: What is wanted of it.
        classes: Number of classes.
        per_image: Whether to keep what a report needs besides the figures: the class of every
            image, and a confusion matrix per image where pixels are labelled. Without it, figures
            of pixels are streamed.

    Attributes:
        finite: Whether all logits so far are finite numbers; the first batch with others, and
            every batch after it, is left out.

    Example:
        >>> from optuna_stitch.evaluation.metrics import METRICS
        >>> accumulator = Accumulator([METRICS["accuracy"]], classes=2)
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
        >>> accumulator.update(logits, {"accuracy": torch.tensor([0, 1, 1])})
        >>> accumulator.by_image("accuracy").tolist()
        [True, True, False]
        >>> round(accumulator.figures()["accuracy"], 3)
        0.667
    """

    def __init__(
        self, metrics: Sequence[LearnedMetric], classes: int, *, per_image: bool = False
    ) -> None:
        self.finite = True
        self._metrics = metrics
        self._classes = classes
        self._per_image = per_image
        self._said: dict[str, list[Tensor]] = {
            metric.name: [] for metric in metrics if isinstance(metric, ImageMetric)
        }
        streamed = [metric for metric in metrics if isinstance(metric, StreamedMetric)]
        self._confused = [m.name for m in streamed if per_image and m.of_confusions is not None]
        self._streams = {m.name: m.make(classes) for m in streamed if m.name not in self._confused}
        self._whole = [metric.name for metric in metrics if isinstance(metric, Metric)]
        self._confusions: list[Tensor] = []
        self._guesses: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(
        self, logits: Tensor, labels: Mapping[str, Tensor], *, finite: bool | None = None
    ) -> None:
        """Add a batch.

        Args:
            logits: What the subnetwork answers, ``(N, classes)`` or ``(N, classes, H, W)``.
            labels: By metric, what it should answer, ``(N,)`` or ``(N, H, W)``.
            finite: Whether the logits are finite numbers, where that is known.
        """
        self.finite = self.finite and (are_finite([logits])[0] if finite is None else finite)
        if not self.finite:
            return
        logits = logits.float()
        for metric in self._metrics:
            if isinstance(metric, ImageMetric):
                self._said[metric.name].append(metric.compute(logits, labels[metric.name]))
            elif metric.name in self._streams:
                stream = self._streams[metric.name].to(logits.device)
                stream.update(logits, labels[metric.name])
        if self._whole:  # the labels of all of them are the split's own
            self._logits.append(logits)
            self._targets.append(labels[self._whole[0]])
        if self._per_image:
            guesses = logits.argmax(dim=1)
            if guesses.dim() == 1:
                self._guesses.append(guesses)
            if self._confused:
                targets = labels[self._confused[0]]
                self._confusions.append(confusions_of(guesses, targets, self._classes))

    def by_image(self, metric: str) -> Tensor:
        """What a metric says of every image so far, ``(n,)``.

        Args:
            metric: Name of an `ImageMetric`.
        """
        return _joined(self._said[metric])

    @property
    def guesses(self) -> Tensor | None:
        """The class of every image so far, ``(n,)``; None where pixels are labelled.

        Only where what single images say is kept.
        """
        return _joined(self._guesses) if self._guesses else None

    def results(self) -> dict[str, PerImageResult]:
        """What all images so far say, by metric, in the metrics' order."""
        return {metric.name: self._result(metric) for metric in self._metrics}

    def figures(self) -> dict[str, float]:
        """The figures over all images so far, by metric."""
        return {name: result.figure for name, result in self.results().items()}

    def _result(self, metric: LearnedMetric) -> PerImageResult:
        if isinstance(metric, ImageMetric):
            said = self.by_image(metric.name)
            return Hits(said) if said.dtype == torch.bool else Scores(said)
        if isinstance(metric, Metric):
            return Logits(metric, _joined(self._logits), _joined(self._targets))
        if metric.of_confusions is not None and metric.name in self._confused:
            matrices = _joined(self._confusions).double().numpy()
            return Confusions(matrices, metric.of_confusions)
        return Streamed(float(self._streams[metric.name].compute()))


def _joined(parts: list[Tensor]) -> Tensor:
    """Batches as one tensor on the processor, which takes their place.

    Joined twice, they are copied once.
    """
    parts[:] = [torch.cat(parts).cpu()] if len(parts) > 1 else [parts[0].cpu()]
    return parts[0]


def confusions_of(guesses: Tensor, targets: Tensor, classes: int) -> Tensor:
    """A confusion matrix per image, label by row and guess by column.

    Args:
        guesses: Classes ``(N, H, W)``.
        targets: Labels ``(N, H, W)``; pixels of the label `VOID` are left out.
        classes: Number of classes.

    Returns:
        ``(N, classes, classes)`` counts.
    """
    pairs = torch.where(targets == VOID, classes * classes, targets * classes + guesses)
    counted = [image.bincount(minlength=classes * classes + 1) for image in pairs.flatten(1)]
    return torch.stack(counted)[:, :-1].reshape(-1, classes, classes)


class Labels:
    """What answers are compared with: a split's labels, or what a reference subnetwork answers.

    Args:
        metrics: The metrics; an `ImageMetric` may have a reference.
        supergraph: Of the supernetwork of the references.
        answers: Gives labels and logits of subnetworks on the whole split, batch by batch; called
            once for each reference.
    """

    def __init__(
        self,
        metrics: Sequence[LearnedMetric],
        supergraph: Supergraph,
        answers: Callable[[Sequence[Subnetwork]], Iterable[tuple[Tensor, Sequence[Tensor]]]],
    ) -> None:
        self._metrics = metrics
        self._references = {
            metric.name: metric.reference
            for metric in metrics
            if isinstance(metric, ImageMetric) and metric.reference is not None
        }
        self._supergraph = supergraph
        self._answers = answers
        self._guesses: dict[Genotype, Tensor] = {}

    def prepare(self) -> None:
        """Find out what the references answer, where that is not known yet."""
        for reference in set(self._references.values()) - self._guesses.keys():
            subnetwork = Subnetwork.of(self._supergraph, reference)
            guesses = [logits.argmax(dim=1) for _, (logits,) in self._answers([subnetwork])]
            self._guesses[reference] = torch.cat(guesses)

    def batch(self, targets: Tensor, positions: Sequence[int]) -> dict[str, Tensor]:
        """Labels of a batch, by metric.

        Args:
            targets: The split's labels of the batch, ``(N,)`` or ``(N, H, W)``.
            positions: Of the batch's images in the split.
        """
        self.prepare()
        return {
            metric.name: send(
                self._guesses[self._references[metric.name]][list(positions)], targets.device
            )
            if metric.name in self._references
            else targets
            for metric in self._metrics
        }
