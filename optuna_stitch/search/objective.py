"""The objective of a study: figures of the subnetwork that a trial's switches make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy

from optuna_stitch.evaluation.constraints import resolve_constraints
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.gathering import Evaluation
from optuna_stitch.evaluation.kernels import Kernels
from optuna_stitch.evaluation.metrics import AnyMetric, resolve_metrics
from optuna_stitch.evaluation.racing import Racing
from optuna_stitch.search.space import Space, join_population, suggest
from optuna_stitch.splits import Split
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork

# Trials' attributes: after how many images a race stopped, and what failed.
STOPPED_AFTER = "stopped_after"
FAILED_AT = "failed_at"


class Objective:
    """An objective for ``study.optimize``.

    Args:
        supernetwork: Whose subnetworks are searched.
        split: Images to judge them on: the validation split.
        metrics: One objective each; names of known metrics, or metrics of your own.
        space: What trials are asked: ``flat``, every switch; ``reachable``, those that matter.
        constraints: Bounds by name, ``max_`` or ``min_`` and a metric: ``{"max_macs": 1e9}``.
        batch_size: Images per batch; see `Evaluator`, as for all that follows.
        kernels: How operations are computed.
        memory: GiB for values that are alive at once.
        racing: If given, trials that cannot join the front are judged on fewer images; their
            attribute ``stopped_after`` says on how many.
        records: Database in which figures are remembered.

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
        space: Space = "flat",
        constraints: Mapping[str, float] | None = None,
        batch_size: int | None = None,
        kernels: Kernels = "fast",
        memory: float = 4.0,
        racing: Racing | None = None,
        records: str | sqlalchemy.Engine | None = None,
    ) -> None:
        self.supernetwork = supernetwork
        self.space = space
        self.metrics = resolve_metrics(metrics)
        self.constraints = resolve_constraints(constraints or {})
        self.directions = [metric.direction for metric in self.metrics]
        self.metric_names = [metric.name for metric in self.metrics]
        bounded = {
            constraint.metric.name: constraint.metric
            for constraint in self.constraints
            if constraint.metric.name not in self.metric_names
        }
        self.evaluator = Evaluator(
            supernetwork,
            split,
            [*self.metrics, *bounded.values()],
            batch_size=batch_size,
            kernels=kernels,
            memory=memory,
            racing=racing,
            records=records,
        )

    def __call__(self, trial: optuna.trial.BaseTrial) -> float | tuple[float, ...]:
        """Judge one trial; a number where there is one objective, else a tuple.

        Of a subnetwork whose answers are no numbers the values are NaN, which Optuna takes for a
        failed trial.
        """
        genotype = suggest(trial, self.supernetwork, self.space)
        if isinstance(trial, optuna.Trial):
            join_population(trial.study, trial.number)
        evaluation = self.evaluate([genotype])[0]
        self.mark(trial, evaluation)
        values = self.values(evaluation)
        return values if len(values) > 1 else values[0]

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[Evaluation]:
        """Judge several genotypes together."""
        return self.evaluator.evaluate(genotypes)

    def values(self, evaluation: Evaluation) -> tuple[float, ...]:
        """The objectives' values."""
        return tuple(evaluation[name] for name in self.metric_names)

    def mark(self, trial: optuna.trial.BaseTrial, evaluation: Evaluation) -> None:
        """Write at a trial what its values do not say: constraints, a lost race, a failure."""
        if evaluation.failed:
            trial.set_user_attr(FAILED_AT, evaluation.failed)
            return
        if evaluation.stopped:
            trial.set_user_attr(STOPPED_AFTER, evaluation.images)
        violations = {c.name: c.violation(evaluation[c.metric.name]) for c in self.constraints}
        if not isinstance(trial, optuna.Trial):
            return
        if hasattr(trial, "set_constraint"):
            for name, violation in violations.items():
                trial.set_constraint(name, violation)
        elif violations:  # before Optuna 5
            old: Any = trial
            old.set_system_attr("constraints", list(violations.values()))
