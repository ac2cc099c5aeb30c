"""Judge subnetworks on a split: run many at once, compute their figures, remember them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_stitch.data import Split
from optuna_stitch.errors import DataError
from optuna_stitch.evaluation.metrics import Cost, Metric, resolve_metrics
from optuna_stitch.evaluation.plan import plan
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork


class Evaluator:
    """Figures of subnetworks on one split, each subnetwork computed once.

    Args:
        supernetwork: Whose subnetworks.
        split: Images to judge them on.
        metrics: Names of known metrics, or metrics of your own.
        batch_size: Images per batch.

    Raises:
        ConfigError: If a metric is unknown.
        DataError: If the split has labels that the parents have no class for.
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: Split,
        metrics: Sequence[str | Metric | Cost] = ("accuracy", "macs"),
        *,
        batch_size: int = 100,
    ) -> None:
        self.supernetwork = supernetwork
        self.split = split
        self.metrics = resolve_metrics(metrics)
        self.batch_size = batch_size
        self._known: dict[Genotype, dict[str, float]] = {}
        largest = int(split.targets.max())
        if largest >= supernetwork.classes:
            raise DataError(
                f"The {split.name} split has label {largest}, but {supernetwork.a.name} and "
                f"{supernetwork.b.name} tell only {supernetwork.classes} classes apart."
            )

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Figures by metric name, one entry per genotype.

        Genotypes that are the same subnetwork, now or in an earlier call, are computed once.
        """
        canonical = [self.supernetwork.canonical(genotype) for genotype in genotypes]
        new = [g for g in dict.fromkeys(canonical) if g not in self._known]
        learned = [metric for metric in self.metrics if isinstance(metric, Metric)]
        answers = self.logits(new) if learned and new else [torch.empty(0)] * len(new)
        for genotype, logits in zip(new, answers, strict=True):
            figures: dict[str, float] = {}
            for metric in self.metrics:
                if isinstance(metric, Metric):
                    figures[metric.name] = float(metric.compute(logits, self.split.targets))
                else:
                    figures[metric.name] = float(metric.compute(self.supernetwork, genotype))
            self._known[genotype] = figures
        return [dict(self._known[genotype]) for genotype in canonical]

    def logits(self, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """What subnetworks answer on the whole split, ``(len(split), classes)`` each."""
        program = plan(self.supernetwork.supergraph, genotypes)
        answers: list[list[Tensor]] = [[] for _ in genotypes]
        with torch.inference_mode():
            for batch in self.split.batches(self.supernetwork.views, self.batch_size):
                for answer, logits in zip(answers, program.run(batch.images), strict=True):
                    answer.append(logits)
        return [torch.cat(answer) for answer in answers]
