"""Bounds on figures: ``max_macs: 1e9``, ``min_accuracy: 0.7``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optuna_stitch.errors import ConfigError
from optuna_stitch.evaluation.metrics import AnyMetric, resolve_metrics


@dataclass(frozen=True)
class Constraint:
    """A bound on one figure.

    Args:
        name: ``max_`` or ``min_`` and the metric's name.
        metric: What is bounded.
        bound: Its largest value, or its smallest.
    """

    name: str
    metric: AnyMetric
    bound: float

    def violation(self, value: float) -> float:
        """By how much a value is beyond the bound; zero or less where it is within."""
        return value - self.bound if self.name.startswith("max_") else self.bound - value


def resolve_constraints(bounds: Mapping[str, float]) -> tuple[Constraint, ...]:
    """Look up what is bounded.

    Args:
        bounds: By name; what follows ``max_`` or ``min_`` is a known metric.

    Raises:
        ConfigError: If a name is something else.
    """
    found: list[Constraint] = []
    for name, bound in bounds.items():
        kind, _, metric = name.partition("_")
        if kind not in ("max", "min") or not metric:
            raise ConfigError(
                f"A constraint is max_ or min_ and a metric, as in max_macs, not {name!r}."
            )
        found.append(Constraint(name, resolve_metrics([metric])[0], float(bound)))
    return tuple(found)
