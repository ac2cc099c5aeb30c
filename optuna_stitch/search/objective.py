"""The objective of a study: figures of the subnetwork that a trial's switches make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args
from weakref import WeakKeyDictionary

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Evaluation
from optuna_stitch.evaluation.deviation import Deviation
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.latency import Latencies
from optuna_stitch.evaluation.metrics import (
    RETAINED,
    Cost,
    StudyMetric,
    resolve_metrics,
)
from optuna_stitch.evaluation.settings import EvaluationSettings, LatencySettings
from optuna_stitch.evaluation.two_jobs import TwoJobEvaluator
from optuna_stitch.search.samplers.linkage.space import violations_of
from optuna_stitch.search.space import (
    Space,
    join_population,
    study_outputs,
    suggest,
    threshold_values,
)
from optuna_stitch.stitching.genotype import BOTH, OUTPUTS, Genotype, Output
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import ConfigError


@dataclass(frozen=True)
class Constraint:
    """A bound on one figure.

    Args:
        name: ``max_`` or ``min_`` and the metric's name.
        metric: What is bounded.
        bound: Its largest value, or its smallest.
    """

    name: str
    metric: StudyMetric
    bound: float

    def violation(self, value: float) -> float:
        """By how much a value is beyond the bound; zero or less where it is within.

        Args:
            value: Of the metric.
        """
        return value - self.bound if self.name.startswith("max_") else self.bound - value


def resolve_constraints(bounds: Mapping[str, float]) -> tuple[Constraint, ...]:
    """Look up what is bounded.

    Args:
        bounds: By name; what follows ``max_`` or ``min_`` is a known metric.

    Raises:
        ConfigError: If a name is something else, or a bound no number.
    """
    found: list[Constraint] = []
    for name, bound in bounds.items():
        kind, _, metric = name.partition("_")
        if kind not in ("max", "min") or not metric:
            raise ConfigError(
                f"A constraint is max_ or min_ and a metric, as in max_macs, not {name!r}."
            )
        try:
            value = float(bound)
        except (TypeError, ValueError):
            raise ConfigError(f"The constraint {name} needs a number, not {bound!r}.") from None
        found.append(Constraint(name, resolve_metrics([metric])[0], value))
    return tuple(found)


def check_outputs(
    outputs: Sequence[str], allowed: Sequence[Output] = OUTPUTS
) -> tuple[Output, ...]:
    """Look up what networks may answer with.

    Args:
        outputs: Their names.
        allowed: What networks of the supernetwork can answer with.

    Raises:
        ConfigError: If one is none of these, or there is none.
    """
    wrong = [output for output in outputs if output not in allowed]
    if wrong or not outputs:
        said = f"{wrong[0]!r} is none" if wrong else "none is named"
        jobs = "" if BOTH in allowed else f"; {BOTH!r} is said to `stitch`"
        raise ConfigError(f"Networks may answer with {', '.join(allowed)}; {said} of these{jobs}.")
    return tuple(output for output in allowed if output in outputs)


def evaluator_of(
    supernetwork: Supernetwork,
    split: Split | SplitPair,
    metrics: Sequence[str | StudyMetric],
    settings: EvaluationSettings | None = None,
    **options: Any,
) -> Evaluator | TwoJobEvaluator:
    """What judges subnetworks of parents with one job, or with two.

    Args:
        supernetwork: Whose subnetworks.
        split: Images to judge them on.
        metrics: As for `Evaluator` or `TwoJobEvaluator`.
        settings: How to compute.
        **options: Further arguments of these.

    Raises:
        ConfigError: If there is one split for two jobs, or there are two for one.
    """
    if isinstance(split, SplitPair):
        return TwoJobEvaluator(supernetwork, split, metrics, settings, **options)
    if supernetwork.two_jobs:
        raise ConfigError(
            f"{supernetwork.a.name} and {supernetwork.b.name} have two jobs, but there is one "
            f"{split.name} split: give that of `DataPair(a, b)`, with data for each job."
        )
    return Evaluator(supernetwork, split, metrics, settings, **options)


# Trials' attributes: after how many images a race stopped, on how many figures rest where
# trials are raced, and what failed.
STOPPED_AFTER = "stopped_after"

IMAGES = "images"

FAILED_AT = "failed_at"

# A study's attribute: how far its figures are from float32, where they are computed in 16 bits.
DEVIATION = "deviation"


class Objective:
    """An objective for ``study.optimize``.

    Args:
        supernetwork: Whose subnetworks are searched.
        split: Images to judge them on: the validation split; of parents with two jobs, that of
            a `DataPair`.
        metrics: One objective each; names of known metrics, or metrics of your own. If None,
            accuracy and ``macs``; of two jobs ``retained``, see `TwoJobEvaluator`, and ``macs``.
        space: What trials are asked: ``flat``, every switch; ``reachable``, those that matter.
        outputs: What networks may answer with; ``("a", "b", "ensemble")`` leaves cascades out.
            All that the supernetwork has, if None.
            Trials of a study that has others already are asked for those.
        constraints: Bounds by name, ``max_`` or ``min_`` and a metric: ``{"max_macs": 1e9}``.
            A network with stitches whose cost alone is out of bounds is not run on images; its
            trial is pruned.
        settings: How to compute; see `EvaluationSettings`. With ``racing``, trials that cannot
            join the front are judged on fewer images; their attribute ``stopped_after`` says on
            how many.
        result_cache: Database in which figures are remembered; see `Evaluator`.
        latency: What ``latency_ms`` counts with; see `Evaluator`.
        **options: Fields of `EvaluationSettings`, in place of ``settings``.

    Attributes:
        directions: For ``optuna.create_study(directions=...)``.
        metric_names: For ``study.set_metric_names``.

    Example:
        >>> objective = st.Objective(supernetwork, data.val, metrics=["accuracy", "macs"])
        >>> study = optuna.create_study(directions=objective.directions)
        >>> study.optimize(objective, n_trials=2)
        >>> len(study.trials)
        2
    """

    def __init__(
        self,
        supernetwork: Supernetwork,
        split: Split | SplitPair,
        metrics: Sequence[str | StudyMetric] | None = None,
        *,
        space: Space = "flat",
        outputs: Sequence[Output] | None = None,
        constraints: Mapping[str, float] | None = None,
        settings: EvaluationSettings | None = None,
        result_cache: str | sqlalchemy.Engine | None = None,
        latency: LatencySettings | Latencies | None = None,
        **options: Any,
    ) -> None:
        if space not in get_args(Space):
            raise ConfigError(f"The space is {' or '.join(get_args(Space))}, not {space!r}.")
        self.supernetwork = supernetwork
        self.space = space
        allowed = supernetwork.supergraph.outputs
        self.outputs = check_outputs(allowed if outputs is None else outputs, allowed)
        self._outputs_of: WeakKeyDictionary[optuna.Study, Sequence[Output]] = WeakKeyDictionary()
        quality = RETAINED.name if supernetwork.two_jobs else "accuracy"
        self.metrics = resolve_metrics((quality, "macs") if metrics is None else metrics)
        self.constraints = resolve_constraints(constraints or {})
        self.directions = [metric.direction for metric in self.metrics]
        self.metric_names = [metric.name for metric in self.metrics]
        bounded = {
            constraint.metric.name: constraint.metric
            for constraint in self.constraints
            if constraint.metric.name not in self.metric_names
        }
        self.evaluator = evaluator_of(
            supernetwork,
            split,
            [*self.metrics, *bounded.values()],
            settings,
            result_cache=result_cache,
            latency=latency,
            **options,
        )

    def __call__(self, trial: optuna.trial.BaseTrial) -> float | tuple[float, ...]:
        """Judge one trial; a number where there is one objective, else a tuple.

        Of a subnetwork whose answers are no numbers the values are NaN, which Optuna takes for a
        failed trial.

        Raises:
            optuna.TrialPruned: If the subnetwork's cost alone breaks a constraint.
        """
        own = self.outputs_for(trial.study) if isinstance(trial, optuna.Trial) else self.outputs
        subnetwork = suggest(trial, self.supernetwork, self.space, own)
        if isinstance(trial, optuna.Trial):
            join_population(trial)
            self.mark_cost(trial, subnetwork)
        evaluation = self.evaluate([subnetwork])[0]
        self.mark(trial, evaluation)
        if evaluation.ruled_out:
            raise optuna.TrialPruned
        values = self.values(evaluation)
        return values if len(values) > 1 else values[0]

    def settle(self, study: optuna.Study) -> None:
        """Let all workers of a study compute by the same kernels, and note how exact these are.

        Args:
            study: The study.
        """
        known = study.user_attrs.get(DEVIATION)
        found = self.evaluator.settle(None if known is None else Deviation(**known))
        if found is not None and known is None:
            study.set_user_attr(DEVIATION, asdict(found))

    def subnetwork(self, params: Mapping[str, Any]) -> Subnetwork:
        """The network that a trial's parameters stand for, ready to answer.

        A cascade gets its exit from the objective's images; other networks are those of
        ``supernetwork.subnetwork(params)``.

        Args:
            params: A trial's.

        Raises:
            StudyError: If a parameter is no switch of the supernetwork, or has no such value.
        """
        (found,) = self.evaluator.tune_exits([self.supernetwork.subnetwork(params)])
        return found

    def outputs_for(self, study: optuna.Study) -> Sequence[Output]:
        """What trials of a study may answer with: what its earlier ones could, else `outputs`.

        Args:
            study: The study.
        """
        if study not in self._outputs_of:
            self._outputs_of[study] = study_outputs(study) or self.outputs
        return self._outputs_of[study]

    def evaluate(self, subnetworks: Sequence[Subnetwork]) -> list[Evaluation]:
        """Judge several subnetworks together.

        Those with stitches that break a constraint by their cost are not run on images.

        Args:
            subnetworks: Of the objective's supernetwork.

        Returns:
            One entry per subnetwork.
        """
        allowed = [subnetwork for subnetwork in subnetworks if not self._ruled_out(subnetwork)]
        evaluations = dict(zip(allowed, self.evaluator.evaluate(allowed), strict=True))
        nothing = {metric.name: math.nan for metric in self.evaluator.metrics}
        return [
            evaluations[subnetwork]
            if subnetwork in evaluations
            else Evaluation(nothing | self.evaluator.costs(subnetwork), 0, ruled_out=True)
            for subnetwork in subnetworks
        ]

    def key(self, params: Mapping[str, Any]) -> Genotype:
        """Which network a trial's parameters make: equal keys, the same network.

        For samplers that ask, such as ``LinkageSampler(key=objective.key)``.

        Args:
            params: A trial's.

        Raises:
            StudyError: If a parameter is no switch of the supernetwork.
        """
        return self.supernetwork.subnetwork(params).genotype

    def values(self, evaluation: Evaluation) -> tuple[float, ...]:
        """The objectives' values.

        Args:
            evaluation: Of a subnetwork.
        """
        return tuple(evaluation[name] for name in self.metric_names)

    def mark_cost(self, trial: optuna.Trial, subnetwork: Subnetwork) -> None:
        """Write at a trial what its constraints are, as far as its cost tells.

        Args:
            trial: The trial.
            subnetwork: What its parameters make.
        """
        if not self._on_cost:
            return
        known = self._violations(self.evaluator.costs(subnetwork), self._on_cost)
        _set_constraints(trial, known, whole=len(known) == len(self.constraints))

    def mark(self, trial: optuna.trial.BaseTrial, evaluation: Evaluation) -> None:
        """Write at a trial what its values do not say: constraints, a lost race, a failure.

        Constraints on cost are left to `mark_cost`.

        Args:
            trial: The trial.
            evaluation: What was found of its subnetwork.
        """
        if evaluation.failed:
            trial.set_user_attr(FAILED_AT, evaluation.failed)
            return
        if evaluation.stopped:
            trial.set_user_attr(STOPPED_AFTER, evaluation.images)
        if self.evaluator.settings.racing is not None:
            trial.set_user_attr(IMAGES, evaluation.images)
        if not isinstance(trial, optuna.Trial) or evaluation.ruled_out:
            return
        learned = [c for c in self.constraints if c not in self._on_cost]
        if learned:
            _set_constraints(trial, self._violations(evaluation.figures, learned), whole=False)
            every = self._violations(evaluation.figures, self.constraints)
            _set_old_constraints(trial, every)

    def thresholds(self, subnetwork: Subnetwork) -> list[tuple[Subnetwork, Evaluation]]:
        """What other thresholds of a cascade give that was judged: this needs no images.

        Args:
            subnetwork: A subnetwork that was judged.

        Returns:
            The cascade with every threshold that trials may have and that is within the
            constraints; nothing of subnetworks that are no cascades, failed or lost a race.
        """
        if not self.evaluator.knows_curve(subnetwork):
            return []
        cascades = [subnetwork.with_threshold(threshold) for threshold in threshold_values()]
        judged = zip(cascades, self.evaluator.evaluate(cascades), strict=True)
        return [
            (cascade, evaluation)
            for cascade, evaluation in judged
            if not evaluation.failed and self._is_feasible(evaluation)
        ]

    def _is_feasible(self, evaluation: Evaluation) -> bool:
        violations = self._violations(evaluation.figures, self.constraints)
        return all(violation <= 0 for violation in violations.values())

    @property
    def _on_cost(self) -> list[Constraint]:
        return [c for c in self.constraints if isinstance(c.metric, Cost)]

    def _ruled_out(self, subnetwork: Subnetwork) -> bool:
        """Whether a network need not be run; parents and ensemble are what others are held to."""
        if not self._on_cost or not subnetwork.on:
            return False
        costs = self.evaluator.costs(subnetwork)
        return any(violation > 0 for violation in self._violations(costs, self._on_cost).values())

    @staticmethod
    def _violations(
        figures: Mapping[str, float], constraints: Sequence[Constraint]
    ) -> dict[str, float]:
        return {c.name: c.violation(figures[c.metric.name]) for c in constraints}


def violation(trial: FrozenTrial) -> float:
    """By how much constraints are broken, where Optuna 5 or else Optuna 4 keeps them.

    Args:
        trial: A finished trial.
    """
    known = getattr(trial, "constraints", None) or trial.system_attrs.get("constraints")
    return violations_of(known)


def _set_constraints(trial: optuna.Trial, violations: Mapping[str, float], *, whole: bool) -> None:
    """Write constraints where Optuna 5 looks for them and, if they are all, where others do."""
    if hasattr(trial, "set_constraint"):
        for name, violation in violations.items():
            trial.set_constraint(name, violation)
    if whole and violations:
        _set_old_constraints(trial, violations)


def _set_old_constraints(trial: optuna.Trial, violations: Mapping[str, float]) -> None:
    """Write constraints where Optuna 4 and optuna-dashboard look for them."""
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", list(violations.values()))
