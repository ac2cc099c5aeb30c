"""What one would use otherwise of two trained networks, tuned on validation images.

- The **duo** adds both parents' logits with weights that act as temperatures (Zhou, Shelhamer and
  Pleiss, "Asymmetric duos: sidekicks improve uncertainty", 2025).
- The **cascade** asks the cheaper parent first, and both where the first is unsure: what the
  search's cascades are without a stitch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from optuna_stitch.stitching.genotype import FIRST, SIDES, Genotype
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import DataError

# The duo's weights are tuned on about so many labels: neighbouring pixels say the same.
_LABELS = 20_000

# Of the cascades that are worth their cost on validation images so many are kept.
_CASCADES = 4


@dataclass(frozen=True)
class Duo:
    """Both parents' logits, weighted.

    Args:
        weights: Of a and of b.
    """

    weights: tuple[float, float]

    @property
    def recipe(self) -> str:
        """How it answers."""
        return f"the sum of {self.weights[0]:.2f} × a's and {self.weights[1]:.2f} × b's logits"

    def answer(self, a: Tensor, b: Tensor) -> Tensor:
        """The weighted sum, ``(N, classes, ...)``.

        Args:
            a: Logits of parent a, ``(N, classes, ...)``.
            b: Logits of parent b, of the same shape.
        """
        return self.weights[0] * a + self.weights[1] * b


def tune_duo(supernetwork: Supernetwork, split: Split, *, batch_size: int | None = None) -> Duo:
    """Tune the duo.

    Args:
        supernetwork: With the parents.
        split: The validation images.
        batch_size: Images per batch.
    """
    evaluator = Evaluator(supernetwork, split, (), batch_size=batch_size, kernels="plain")
    parents = [supernetwork.subnetwork(Genotype(side)) for side in SIDES]
    stride = _stride(supernetwork, split)
    thinned = [_thinned(a, b, targets, stride) for targets, (a, b) in evaluator.answers(parents)]
    a, b, labels = (torch.cat(column) for column in zip(*thinned, strict=True))
    return Duo(_fit_weights(a, b, labels))


def tune_cascades(
    supernetwork: Supernetwork,
    split: Split,
    settings: CascadeSettings,
    *,
    batch_size: int | None = None,
) -> list[Subnetwork]:
    """Cascades of the whole parents, the cheaper one first.

    Of the thresholds those are kept that are worth their cost on the validation images, at most
    four, and the best one in any case.

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
    cheaper = min(SIDES, key=lambda side: supernetwork.graphs[side].macs)
    (output,) = [output for output, first in FIRST.items() if first == cheaper]
    every = [
        supernetwork.subnetwork(Genotype(output, threshold=threshold))
        for threshold in threshold_values()
    ]
    evaluations = evaluator.evaluate(every)
    if evaluations[0].failed:
        raise DataError(
            "A parent gives answers that are no finite numbers on the validation images, so that "
            "no cascade of both can be tuned. Check its weights and how it sees images."
        )
    points = [
        (cascade.macs, evaluation[quality.name])
        for cascade, evaluation in zip(every, evaluations, strict=True)
    ]
    best = moocore.is_nondominated(np.array(points), maximise=[False, True])
    return _spread([cascade for cascade, worth in zip(every, best, strict=True) if worth])


def _spread(kept: Sequence[Subnetwork]) -> list[Subnetwork]:
    """A few of them, the best one last."""
    if len(kept) <= _CASCADES:
        return list(kept)
    places = np.linspace(0, len(kept) - 1, _CASCADES).round().astype(int)
    return [kept[place] for place in places]


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
