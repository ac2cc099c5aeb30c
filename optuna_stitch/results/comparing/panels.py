"""What the panels of a comparison's plots show, in the units of their axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optuna_stitch.results.comparing.comparison import Comparison, Curve, Group
from optuna_stitch.results.pictures.plots import SHARES, Axis, axis_of, words_of

Values = NDArray[np.float64]
Limits = tuple[float, float]

# What is found with the first trials, which are much the same for all, would flatten the rest.
_FIRST_TRIALS, _FIRST_SHARE = 50, 0.2
# Of the shown range, on each side; names of landmarks need some of it.
_MARGIN = 0.12


@dataclass(frozen=True)
class Line:
    """The front of one run, from left to right.

    Args:
        group: Place of its group.
        run: Name of the run.
        across: ``(networks,)``.
        up: ``(networks,)``.
    """

    group: int
    run: str
    across: Values
    up: Values


@dataclass(frozen=True)
class FrontPanel:
    """The fronts of all runs, as two objectives see them.

    Args:
        title: Above it.
        across: The axis to the right.
        up: The axis upwards.
        lines: The fronts.
        step: Where a network's value holds: to the right of it or to its left. None where more
            than these two objectives make the front, which then is no line.
        landmarks: Parents and ensemble: name, across, up.
        across_limits: What to show: what counts, and the landmarks.
        up_limits: The same.
    """

    title: str
    across: Axis
    up: Axis
    lines: list[Line]
    step: Literal["right", "left"] | None
    landmarks: list[tuple[str, float, float]]
    across_limits: Limits
    up_limits: Limits


@dataclass(frozen=True)
class ProgressPanel:
    """What was found after so many trials.

    Args:
        title: Above it.
        up: The axis upwards.
        curves: Of every group.
        up_limits: What to show: from where the search itself begins.
        compared: After how many trials the groups are compared, if some of them go on.
    """

    title: str
    up: Axis
    curves: list[Curve]
    up_limits: Limits
    compared: int | None


def axis_for(metric: str) -> Axis:
    """How an objective is shown: quality in percent, cost as in other plots."""
    if metric in SHARES:
        return Axis(f"{words_of(metric)} (%)", words_of(metric), 0.01, "%")
    return axis_of(metric)


def progress_axis(comparison: Comparison) -> Axis:
    """How `Result.progress` is shown."""
    if len(comparison.objectives) > 1:
        return Axis("hypervolume (% of all runs' together)", "hypervolume", 0.01, "%")
    axis = axis_for(comparison.objectives[0])
    return Axis(f"best {axis.title}", f"best {axis.words}", axis.unit, axis.symbol)


def label(group: Group) -> str:
    """A group's name, and how many runs it has."""
    count = len(group.results)
    return f"{group.name} ({count} runs)" if count > 1 else group.name


def front_panels(comparison: Comparison) -> list[FrontPanel]:
    """A panel for the first objective, upwards, against each of the others."""
    return [_front_panel(comparison, k) for k in range(1, len(comparison.objectives))]


def _front_panel(comparison: Comparison, objective: int) -> FrontPanel:
    across, up = (axis_for(comparison.objectives[k]) for k in (objective, 0))

    def place(losses: Values) -> tuple[Values, Values]:
        values = losses * comparison.signs
        values = values[np.argsort(values[:, objective])]
        return values[:, objective] / across.unit, values[:, 0] / up.unit

    lines = [
        Line(index, result.run.name, *place(result.outcomes.front))
        for index, group in enumerate(comparison.groups)
        for result in group.results
    ]
    known = {
        name: losses
        for result in reversed(comparison.results)
        for name, losses in result.outcomes.baselines.items()
    }
    marks = {name: place(losses[None]) for name, losses in known.items()}
    reference = comparison.reference * comparison.signs
    counts = comparison.front[(comparison.front < reference).all(axis=1)]
    shown_across, shown_up = place(np.array([*counts, *known.values(), reference]))
    step: Literal["right", "left"] = "right" if comparison.signs[objective] > 0 else "left"
    return FrontPanel(
        "fronts on validation images",
        across,
        up,
        lines,
        step if len(comparison.objectives) == 2 else None,
        [(name, float(x[0]), float(y[0])) for name, (x, y) in marks.items()],
        _around(shown_across),
        _around(shown_up),
    )


def progress_panel(comparison: Comparison) -> ProgressPanel:
    """The panel for what was found after so many trials."""
    axis = progress_axis(comparison)
    first = min(_FIRST_TRIALS, int(_FIRST_SHARE * comparison.trials))
    later = np.concatenate([run.progress[first:] for run in comparison.results]) / axis.unit
    many = any(len(group.results) > 1 for group in comparison.groups)
    curves = [group.curve for group in comparison.groups]
    goes_on = any(curve.trials[-1] > comparison.trials for curve in curves)
    return ProgressPanel(
        f"found after so many trials{': median and range' if many else ''}",
        axis,
        [
            Curve(c.trials, c.low / axis.unit, c.median / axis.unit, c.high / axis.unit)
            for c in curves
        ],
        _around(later),
        comparison.trials if goes_on else None,
    )


def _around(values: Values) -> Limits:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = _MARGIN * (high - low) or _MARGIN * abs(high) or 1.0
    return low - margin, high + margin
