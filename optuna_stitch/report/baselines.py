"""What one would use otherwise of trained networks, tuned on validation images.

- The **duo** adds all parents' logits with weights that act as temperatures (Zhou, Shelhamer and
  Pleiss, "Asymmetric duos: sidekicks improve uncertainty", 2025).
- The **cascade** asks the cheaper parent of two first, and both where the first is unsure: what
  the search's cascades are without a stitch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import moocore
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import VOID, quality_metric
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.search.space import threshold_values
from optuna_stitch.stitching.genotype import LETTERS, Genotype, Side, first_of, heads_of
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import DataError
from optuna_stitch.utils.text import listed_text

# The duo's weights are tuned on about so many labels: neighbouring pixels say the same.
_LABELS = 20_000

# Of the cascades that are worth their cost on validation images so many are kept for two parents,
# and as many more for each further one.
_CASCADES = 4


@dataclass(frozen=True)
class Duo:
    """All parents' logits, weighted.

    Args:
        weights: Of a, b and so on.
    """

    weights: tuple[float, ...]

    @property
    def recipe(self) -> str:
        """How it answers."""
        named = zip(LETTERS, self.weights, strict=False)
        parts = [f"{weight:.2f} × {side}'s" for side, weight in named]
        return f"the sum of {listed_text(parts)} logits"

    def answer(self, heads: Sequence[Tensor]) -> Tensor:
        """The weighted sum, ``(N, classes, ...)``.

        Args:
            heads: Logits of each parent, ``(N, classes, ...)``.
        """
        return _weighted(self.weights, heads)


def tune_duo(supernetwork: Supernetwork, split: Split, *, batch_size: int | None = None) -> Duo:
    """Tune the duo.

    Args:
        supernetwork: With the parents.
        split: The validation images.
        batch_size: Images per batch.
    """
    evaluator = Evaluator(supernetwork, split, (), batch_size=batch_size, kernels="plain")
    parents = [supernetwork.subnetwork(Genotype(side)) for side in supernetwork.sides]
    stride = _stride(supernetwork, split)
    thinned = [_thinned(heads, targets, stride) for targets, heads in evaluator.answers(parents)]
    *heads, labels = (torch.cat(column) for column in zip(*thinned, strict=True))
    return Duo(_fit_weights(heads, labels))


def tune_cascades(
    supernetwork: Supernetwork,
    split: Split,
    settings: CascadeSettings,
    *,
    batch_size: int | None = None,
) -> list[Subnetwork]:
    """Cascades of two whole parents, the cheaper one first.

    Of the thresholds (and of more than two parents, of the pairs) those are kept that are worth
    their cost on the validation images, at most four (four more for each parent beyond the
    second), and the best one in any case.

    Args:
        supernetwork: With the parents.
        split: The validation images.
        settings: How cascades decide and answer.
        batch_size: Images per batch.

    Returns:
        By rising cost, without an exit.

    Raises:
        DataError: If a parent's answers are no finite numbers.
    """
    quality = quality_metric(segments=supernetwork.segments)
    evaluator = Evaluator(
        supernetwork,
        split,
        [quality],
        batch_size=batch_size,
        kernels="plain",
        cascades=settings,
    )
    outputs = [
        output
        for output in supernetwork.supergraph.outputs
        if first_of(output) == cheapest(supernetwork, heads_of(output, supernetwork.sides))
    ]
    every = [
        supernetwork.subnetwork(Genotype(output, threshold=threshold))
        for output in outputs
        for threshold in threshold_values()
    ]
    evaluations = evaluator.evaluate(every)
    if any(evaluation.failed for evaluation in evaluations):
        raise DataError(
            "A parent gives answers that are no finite numbers on the validation images, so that "
            "no cascade of both can be tuned. Check its weights and how it sees images."
        )
    points = [
        (cascade.macs, evaluation[quality.name])
        for cascade, evaluation in zip(every, evaluations, strict=True)
    ]
    best = moocore.is_nondominated(np.array(points), maximise=[False, True])
    kept = [cascade for cascade, worth in zip(every, best, strict=True) if worth]
    most = _CASCADES * (len(supernetwork.sides) - 1)
    return _spread(sorted(kept, key=lambda cascade: cascade.macs), most)


def cheapest(supernetwork: Supernetwork, sides: Sequence[Side]) -> Side:
    """The parent with the fewest multiply-accumulates; of equal ones, the first.

    Args:
        supernetwork: With the parents.
        sides: Which of them.
    """
    return min(sides, key=lambda side: supernetwork.graphs[side].macs)


def _spread(kept: Sequence[Subnetwork], most: int) -> list[Subnetwork]:
    """A few of them, the best one last."""
    if len(kept) <= most:
        return list(kept)
    places = np.linspace(0, len(kept) - 1, most).round().astype(int)
    return [kept[place] for place in places]


def _stride(supernetwork: Supernetwork, split: Split) -> int:
    """One pixel in how many is read for the duo."""
    _, height, width = supernetwork.views[0].input_size
    return max(1, len(split) * height * width // _LABELS)


def _thinned(heads: Sequence[Tensor], targets: Tensor, stride: int) -> list[Tensor]:
    """Logits ``(n, classes)`` of each head and labels ``(n,)``, of pixels as of images."""
    if heads[0].dim() == 2:
        return [*heads, targets]
    labels = targets.flatten()[::stride]
    known = labels != VOID
    return [
        *(x.movedim(1, -1).flatten(0, -2)[::stride][known] for x in heads),
        labels[known],
    ]


def _weighted(weights: Sequence[Any], heads: Sequence[Tensor]) -> Tensor:
    parts: list[Tensor] = [weight * own for weight, own in zip(weights, heads, strict=True)]
    return reduce(operator.add, parts)


def _fit_weights(heads: Sequence[Tensor], labels: Tensor) -> tuple[float, ...]:
    """The weights of least cross-entropy, which is convex in them."""
    heads = [logits.double() for logits in heads]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        value = F.cross_entropy(_weighted(list(w), heads), labels)
        (slope,) = torch.autograd.grad(value, w)
        return float(value.detach()), slope.numpy()

    with torch.enable_grad():
        start = np.full(len(heads), 1 / len(heads))
        found = minimize(loss, start, jac=True, method="L-BFGS-B")
    return tuple(float(weight) for weight in found.x)
