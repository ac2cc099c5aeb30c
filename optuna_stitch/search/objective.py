"""The objective of a study: figures of the subnetwork that a trial's switches make."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import AnyMetric
from optuna_stitch.search.space import join_population, suggest
from optuna_stitch.splits import Split
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork


class Objective:
    """An objective for ``study.optimize``.

    Args:
        supernetwork: Whose subnetworks are searched.
        split: Images to judge them on: the validation split.
        metrics: One objective each; names of known metrics, or metrics of your own.
        batch_size: Images per batch; if None, as the supernetwork says.

    Attributes:
        directions: For ``optuna.create_study(directions=...)``.
        metric_names: For ``study.set_metric_names``.

    Example:
        >>> objective = Objective(supernetwork, data.val, metrics=["accuracy", "macs"])
        >>> study = optuna.create_study(directions=objective.directions)
        >>> study.optimize(objective, n_trials=100)
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
        self.evaluator = Evaluator(supernetwork, split, metrics, batch_size=batch_size)
        self.directions = [metric.direction for metric in self.evaluator.metrics]
        self.metric_names = [metric.name for metric in self.evaluator.metrics]

    def __call__(self, trial: optuna.trial.BaseTrial) -> float | tuple[float, ...]:
        """Judge one trial; a number where there is one objective, else a tuple."""
        genotype = suggest(trial, self.supernetwork)
        if isinstance(trial, optuna.Trial):
            join_population(trial.study, trial.number)
        values = self.evaluate([genotype])[0]
        return values if len(values) > 1 else values[0]

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[tuple[float, ...]]:
        """Judge several genotypes together: one tuple of objective values each."""
        return [tuple(e.figures.values()) for e in self.evaluator.evaluate(genotypes)]
