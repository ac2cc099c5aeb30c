"""What one would use otherwise of two trained networks, tuned on validation images.

- The **duo** adds both parents' logits with weights that act as temperatures (Zhou, Shelhamer and
  Pleiss, "Asymmetric duos: sidekicks improve uncertainty", 2025).
- The **cascade** asks the cheaper parent first, and the other one where the first is unsure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import moocore
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import (
    Accumulator,
    Confusions,
    Hits,
    PairedResult,
    PerImageResult,
)
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import VOID, LearnedMetric, quality_metric
from optuna_stitch.stitching.genotype import SIDES, Genotype, Side
from optuna_stitch.stitching.supergraph import mean_of_probabilities
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import DataError
from optuna_stitch.utils.text import percent_text

# The duo's weights are tuned on about so many labels: neighbouring pixels say the same.
_LABELS = 20_000

# Shares of the validation images for which a cascade asks its second network.
_SHARES = np.arange(1, 20) / 20

# Of the cascades that are worth their cost on validation images so many are kept.
_CASCADES = 4

Answer = Callable[[Tensor, Tensor], Tensor]

# Labels, and the logits of a and of b.
_Batch = tuple[Tensor, list[Tensor]]


class Combination(Protocol):
    """An answer made of both parents' answers."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def kind(self) -> str:
        """``duo`` or ``cascade``."""
        ...

    @property
    def recipe(self) -> str:
        """How it answers, for people."""
        ...

    def answer(self, a: Tensor, b: Tensor) -> Tensor:
        """Logits from the parents' logits.

        Args:
            a: Logits of parent a, ``(N, classes, ...)``.
            b: Logits of parent b, likewise.

        Returns:
            ``(N, classes, ...)``.
        """
        ...

    def asks_second(self, a: Tensor, b: Tensor) -> Tensor:
        """For which images both parents run.

        Args:
            a: Logits of parent a, ``(N, classes, ...)``.
            b: Logits of parent b, likewise.

        Returns:
            ``(N,)`` bool.
        """
        ...


@dataclass(frozen=True)
class Duo:
    """Both parents' logits, weighted.

    Args:
        weights: Of a and of b.
        name: What it is called.
        kind: Of the entry.
    """

    weights: tuple[float, float]
    name: str = "duo"
    kind: str = "duo"

    @property
    def recipe(self) -> str:
        """How it answers."""
        return f"the sum of {self.weights[0]:.2f} × a's and {self.weights[1]:.2f} × b's logits"

    def answer(self, a: Tensor, b: Tensor) -> Tensor:
        """The weighted sum; see `Combination`.

        Args:
            a: Logits of parent a, ``(N, classes, ...)``.
            b: Logits of parent b, of the same shape.
        """
        return self.weights[0] * a + self.weights[1] * b

    def asks_second(self, a: Tensor, b: Tensor) -> Tensor:
        """Always; see `Combination`.

        Args:
            a: Logits of parent a, ``(N, classes, ...)``.
            b: Logits of parent b, of the same shape.
        """
        return torch.ones(len(a), dtype=torch.bool)


@dataclass(frozen=True)
class Cascade:
    """The cheaper parent alone where it is sure, an answer that takes both where it is not.

    Args:
        first: The cheaper parent.
        threshold: Of its confidence, the largest class probability (averaged over pixels), below
            which it is unsure.
        share: For how many of the validation images it is.
        then: What answers then.
        answer_then: The same, from both parents' logits.
        kind: Of the entry.
    """

    first: Side
    threshold: float
    share: float
    then: str
    answer_then: Answer
    kind: str = "cascade"

    @property
    def name(self) -> str:
        """With the share of the validation images that go on."""
        return f"cascade {percent_text(self.share, 0)}"

    @property
    def recipe(self) -> str:
        """How it answers."""
        return (
            f"parent {self.first} where its largest class probability is {self.threshold:.3f} or "
            f"more, else {self.then}"
        )

    def answer(self, a: Tensor, b: Tensor) -> Tensor:
        """The answer of the first, or of both where it is unsure; see `Combination`.

        Args:
            a: Logits of parent a, ``(N, classes, ...)``.
            b: Logits of parent b, of the same shape.
        """
        unsure = self.asks_second(a, b).reshape(-1, *(1,) * (a.dim() - 1))
        return torch.where(unsure, self.answer_then(a, b), a if self.first == "a" else b)

    def asks_second(self, a: Tensor, b: Tensor) -> Tensor:
        """Where the first one is unsure; see `Combination`.

        Args:
            a: Logits of parent a, ``(N, classes, ...)``.
            b: Logits of parent b, of the same shape.
        """
        return confidence(a if self.first == "a" else b) < self.threshold


def confidence(logits: Tensor) -> Tensor:
    """The largest class probability per image, averaged over pixels.

    Args:
        logits: ``(N, classes, ...)``.

    Returns:
        ``(N,)``.
    """
    largest = logits.softmax(dim=1).amax(dim=1)
    return largest.flatten(1).mean(dim=1) if largest.dim() > 1 else largest


def tune_combinations(
    supernetwork: Supernetwork,
    split: Split,
    first: Side,
    *,
    batch_size: int | None = None,
) -> list[Combination]:
    """Tune the duo and the cascades.

    A cascade's second answer is the other parent's, the plain ensemble's or the duo's, whichever
    is best where it is asked. Of the thresholds those are kept that are worth their cost on the
    validation images, at most four, and the best one in any case.

    Args:
        supernetwork: With the parents.
        split: The validation images.
        first: The cheaper parent, which a cascade asks first.
        batch_size: Images per batch.

    Returns:
        The duo, then the cascades by rising cost.

    Raises:
        DataError: If a parent's answers are no finite numbers.
    """
    evaluator = Evaluator(supernetwork, split, (), batch_size=batch_size, kernels="plain")
    read = _reader(evaluator)
    stride = _stride(supernetwork, split)
    thinned = [_thinned(a, b, targets, stride) for targets, (a, b) in read()]
    a, b, labels = (torch.cat(column) for column in zip(*thinned, strict=True))
    duo = Duo(_fit_weights(a, b, labels))

    other: Side = "b" if first == "a" else "a"
    seconds: dict[str, Answer] = {
        f"parent {other}": (lambda a, b: b) if other == "b" else (lambda a, b: a),
        "the ensemble": mean_of_probabilities,
        "the duo": duo.answer,
    }
    quality = quality_metric(segments=supernetwork.segments)
    return [duo, *_tune_cascades(read, quality, supernetwork.classes, first, seconds)]


def _reader(evaluator: Evaluator) -> Callable[[], Iterable[_Batch]]:
    """What gives labels and both parents' logits, batch by batch, as often as it is called."""
    parents = [evaluator.supernetwork.subnetwork(Genotype(side)) for side in SIDES]
    if evaluator.supernetwork.segments:  # too much to keep
        return lambda: evaluator.answers(parents)
    kept = list(evaluator.answers(parents))
    return lambda: kept


def _stride(supernetwork: Supernetwork, split: Split) -> int:
    """One pixel in how many is read for the duo."""
    _, height, width = supernetwork.views[0].input_size
    return max(1, len(split) * height * width // _LABELS)


def _thinned(a: Tensor, b: Tensor, targets: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``(n, classes)`` and labels ``(n,)``, of pixels as of images."""
    if a.dim() == 2:
        return a, b, targets
    flat = [x.movedim(1, -1).flatten(0, -2)[::stride] for x in (a, b)]
    labels = targets.flatten()[::stride]
    known = labels != VOID
    return flat[0][known], flat[1][known], labels[known]


def _fit_weights(a: Tensor, b: Tensor, labels: Tensor) -> tuple[float, float]:
    """The weights of least cross-entropy, which is convex in them."""
    a, b = a.double(), b.double()

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        value = F.cross_entropy(w[0] * a + w[1] * b, labels)
        (slope,) = torch.autograd.grad(value, w)
        return float(value.detach()), slope.numpy()

    with torch.enable_grad():
        found = minimize(loss, np.array([0.5, 0.5]), jac=True, method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


def _tune_cascades(
    read: Callable[[], Iterable[_Batch]],
    quality: LearnedMetric,
    classes: int,
    first: Side,
    seconds: dict[str, Answer],
) -> list[Cascade]:
    """Cascades that are worth their cost on validation images, by rising cost."""
    answers: dict[str, Answer] = {
        "": (lambda a, b: a) if first == "a" else (lambda a, b: b),
        **seconds,
    }
    sure: list[Tensor] = []
    accumulators = {name: Accumulator([quality], classes, per_image=True) for name in answers}
    for targets, (a, b) in read():
        sure.append(confidence(answers[""](a, b)))
        for name, accumulator in accumulators.items():
            accumulator.update(answers[name](a, b), {quality.name: targets})
    if not all(accumulator.finite for accumulator in accumulators.values()):
        raise DataError(
            "A parent gives answers that are no finite numbers on the validation images, so that "
            "no cascade of both can be tuned. Check its weights and how it sees images."
        )
    certainty = torch.cat(sure)
    alone, *others = (accumulators[name].results()[quality.name] for name in answers)

    found: list[tuple[float, Cascade]] = []
    for threshold in np.unique(np.quantile(certainty.numpy(), _SHARES)):
        unsure = certainty < float(threshold)
        share = float(unsure.double().mean())
        if not 0 < share < 1:
            continue
        qualities = {
            name: _mixed(then, alone, unsure).figure
            for name, then in zip(seconds, others, strict=True)
        }
        best = max(qualities, key=lambda name: qualities[name])
        cascade = Cascade(first, float(threshold), share, best, seconds[best])
        found.append((qualities[best], cascade))
    return _worth_their_cost(found)


def _mixed(then: PerImageResult, alone: PerImageResult, unsure: Tensor) -> PairedResult:
    """What images say of a cascade that asks one network where another one is unsure."""
    if isinstance(then, Hits) and isinstance(alone, Hits):
        return then.where(unsure, alone)
    if isinstance(then, Confusions) and isinstance(alone, Confusions):
        return then.where(unsure, alone)
    raise TypeError(f"{type(then).__name__} and {type(alone).__name__} cannot be mixed.")


def _worth_their_cost(found: Sequence[tuple[float, Cascade]]) -> list[Cascade]:
    """Those better than all cheaper ones; a few of them, spread out, the best one last."""
    if not found:
        return []
    points = np.array([(cascade.share, quality) for quality, cascade in found])
    best = moocore.is_nondominated(points, maximise=[False, True])
    kept = [cascade for (_, cascade), worth in zip(found, best, strict=True) if worth]
    kept.sort(key=lambda cascade: cascade.share)
    if len(kept) <= _CASCADES:
        return kept
    places = np.linspace(0, len(kept) - 1, _CASCADES).round().astype(int)
    return [kept[place] for place in places]
