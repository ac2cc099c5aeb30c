"""Plots of a comparison: every study's front, and how soon it was found."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from optuna_stitch.evaluation.metrics import Unit, unit_of
from optuna_stitch.report.comparison import Comparison, Curve

Values = NDArray[np.float64]

Limits = tuple[float, float]

# What is found with the first trials, which are much the same for all, would flatten the rest.
_FIRST_TRIALS, _FIRST_SHARE = 50, 0.2

# Of the shown range, on each side; names of landmarks need some of it.
_MARGIN = 0.12


@dataclass(frozen=True)
class _Line:
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
class _FrontPanel:
    """The fronts of all runs, as two objectives see them.

    Args:
        title: Above it.
        across: What the axis to the right shows.
        up: What the axis upwards shows.
        lines: The fronts.
        step: Where a network's value holds: to the right of it or to its left. None where more
            than these two objectives make the front, which then is no line.
        landmarks: Parents and ensemble: name, across, up.
        across_limits: What to show: what counts, and the landmarks.
        up_limits: The same.
    """

    title: str
    across: Unit
    up: Unit
    lines: list[_Line]
    step: Literal["right", "left"] | None
    landmarks: list[tuple[str, float, float]]
    across_limits: Limits
    up_limits: Limits


@dataclass(frozen=True)
class _ProgressPanel:
    """What was found after so many trials.

    Args:
        title: Above it.
        up: What the axis upwards shows.
        curves: Of every group.
        up_limits: What to show: from where the search itself begins.
        compared: After how many trials the groups are compared, if some of them go on.
    """

    title: str
    up: Unit
    curves: list[Curve]
    up_limits: Limits
    compared: int | None


def _front_panels(comparison: Comparison) -> list[_FrontPanel]:
    """A panel for the first objective, upwards, against each of the others."""
    return [_front_panel(comparison, k) for k in range(1, len(comparison.objectives))]


def _front_panel(comparison: Comparison, objective: int) -> _FrontPanel:
    across, up = (unit_of(comparison.objectives[k]) for k in (objective, 0))

    def place(losses: Values) -> tuple[Values, Values]:
        values = losses * comparison.signs
        values = values[np.argsort(values[:, objective])]
        return values[:, objective] / across.scale, values[:, 0] / up.scale

    lines = [
        _Line(index, result.name, *place(result.outcomes.front))
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
    return _FrontPanel(
        "fronts on validation images",
        across,
        up,
        lines,
        step if len(comparison.objectives) == 2 else None,
        [(name, float(x[0]), float(y[0])) for name, (x, y) in marks.items()],
        _around(shown_across),
        _around(shown_up),
    )


def _progress_panel(comparison: Comparison) -> _ProgressPanel:
    """The panel for what was found after so many trials."""
    unit = comparison.unit
    first = min(_FIRST_TRIALS, int(_FIRST_SHARE * comparison.trials))
    later = np.concatenate([run.progress[first:] for run in comparison.results]) / unit.scale
    many = any(len(group.results) > 1 for group in comparison.groups)
    curves = [group.curve for group in comparison.groups]
    goes_on = any(curve.trials[-1] > comparison.trials for curve in curves)
    return _ProgressPanel(
        f"found after so many trials{': median and range' if many else ''}",
        unit,
        [
            Curve(c.trials, c.low / unit.scale, c.median / unit.scale, c.high / unit.scale)
            for c in curves
        ],
        _around(later),
        comparison.trials if goes_on else None,
    )


def _around(values: Values) -> Limits:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = _MARGIN * (high - low) or _MARGIN * abs(high) or 1.0
    return low - margin, high + margin


@dataclass(frozen=True)
class _Style:
    """How a group looks; to be told apart without colour too."""

    colour: str
    symbol: str  # plotly's
    marker: str  # matplotlib's
    dash: str  # plotly's
    line: str  # matplotlib's

    @property
    def faded(self) -> str:
        red, green, blue = (int(self.colour[at : at + 2], 16) for at in (1, 3, 5))
        return f"rgba({red},{green},{blue},{_FAINT})"


_STYLES = (
    _Style("#1f77b4", "circle-open", "o", "solid", "-"),
    _Style("#d62728", "square-open", "s", "dash", "--"),
    _Style("#2ca02c", "diamond-open", "D", "dashdot", "-."),
    _Style("#9467bd", "triangle-up-open", "^", "dot", ":"),
    _Style("#ff7f0e", "cross-open", "P", "solid", "-"),
    _Style("#17becf", "x-open", "X", "dash", "--"),
    _Style("#8c564b", "triangle-down-open", "v", "dashdot", "-."),
    _Style("#e377c2", "star-open", "*", "dot", ":"),
)

_GREY, _FAINT = "#555555", 0.12

# A panel's, in inches.
_WIDTH, _HEIGHT = 5.4, 4.9


def draw_comparison(comparison: Comparison) -> go.Figure:
    """The comparison as an interactive figure.

    Args:
        comparison: What to draw.
    """
    fronts, progress = _front_panels(comparison), _progress_panel(comparison)
    figure = make_subplots(cols=len(fronts) + 1, subplot_titles=_titles(fronts, progress))
    for column, panel in enumerate(fronts, start=1):
        _add_fronts(figure, column, panel, comparison)
    _add_progress(figure, len(fronts) + 1, progress, comparison)
    figure.update_layout(
        template="plotly_white",
        height=560,
        legend={"orientation": "h", "yanchor": "top", "y": -0.15, "xanchor": "left", "x": 0},
        margin={"t": 70},
    )
    return figure


def write_images(comparison: Comparison, *paths: Path) -> None:
    """Draw the same as an image, and write it.

    Args:
        comparison: What to draw.
        paths: Where to write it; their endings say which kind (PNG, SVG).
    """
    fronts, progress = _front_panels(comparison), _progress_panel(comparison)
    width = _WIDTH * (len(fronts) + 1)
    figure = Figure(figsize=(max(width, 1.4 * _WIDTH), _HEIGHT), dpi=150, layout="constrained")
    every = figure.subplots(1, len(fronts) + 1, squeeze=False)[0]
    for axes, title in zip(every, _titles(fronts, progress), strict=True):
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
    for axes, panel in zip(every, fronts, strict=False):
        _draw_fronts(axes, panel)
    _draw_progress(every[-1], progress, comparison)
    figure.legend(loc="outside lower left", fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        for path in paths:
            figure.savefig(path)


def _titles(fronts: list[_FrontPanel], progress: _ProgressPanel) -> list[str]:
    return [*(panel.title for panel in fronts), progress.title]


def _style(group: int) -> _Style:
    return _STYLES[group % len(_STYLES)]  # over again where there are more


def _side(panel: _FrontPanel, across: float) -> str:
    """On which side of a landmark there is room for its name."""
    low, high = panel.across_limits
    return "right" if across < low + 0.75 * (high - low) else "left"


def _add_fronts(
    figure: go.Figure, column: int, panel: _FrontPanel, comparison: Comparison
) -> None:
    shared = {"row": 1, "col": column, "showlegend": False}
    shape = {"right": "hv", "left": "vh", None: None}[panel.step]
    for line in panel.lines:
        style = _style(line.group)
        figure.add_scatter(
            x=line.across,
            y=line.up,
            mode="lines+markers" if panel.step else "markers",
            line={"color": style.colour, "width": 1, "shape": shape},
            marker={"color": style.colour, "symbol": style.symbol, "size": 7},
            opacity=0.7,
            legendgroup=comparison.groups[line.group].name,
            hovertemplate=f"<b>{escape(line.run)}</b><br>{panel.up.words} %{{y:.4g}}<br>"
            f"{panel.across.words} %{{x:.4g}}<extra></extra>",
            **shared,
        )
    for name, across, up in panel.landmarks:
        figure.add_scatter(
            x=[across],
            y=[up],
            mode="markers+text",
            text=[name],
            textposition=f"bottom {_side(panel, across)}",
            marker={"color": _GREY, "symbol": "star", "size": 9},
            hovertemplate=f"<b>{name}</b><br>%{{y:.4g}}<br>%{{x:.4g}}<extra></extra>",
            **shared,
        )
    place = {"row": 1, "col": column}
    figure.update_xaxes(title=panel.across.title, range=panel.across_limits, **place)
    figure.update_yaxes(title=panel.up.title, range=panel.up_limits, **place)


def _add_progress(
    figure: go.Figure, column: int, panel: _ProgressPanel, comparison: Comparison
) -> None:
    place = {"row": 1, "col": column}
    for index, (group, curve) in enumerate(zip(comparison.groups, panel.curves, strict=True)):
        style = _style(index)
        shared = {"x": curve.trials, "mode": "lines", "legendgroup": group.name, **place}
        edge = {
            "line": {"color": style.colour, "width": 0.5, "shape": "hv", "dash": style.dash},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        figure.add_scatter(y=curve.high, **shared, **edge)
        figure.add_scatter(y=curve.low, fill="tonexty", fillcolor=style.faded, **shared, **edge)
        figure.add_scatter(
            y=curve.median,
            name=escape(group.label),
            line={"color": style.colour, "shape": "hv", "dash": style.dash},
            hovertemplate=f"<b>{escape(group.name)}</b><br>%{{y:.4g}} after %{{x}} trials"
            "<extra></extra>",
            **shared,
        )
    if panel.compared is not None:
        figure.add_vline(x=panel.compared, line={"dash": "dot", "color": _GREY}, **place)
    figure.update_xaxes(title="trials", rangemode="tozero", **place)
    figure.update_yaxes(title=panel.up.title, range=panel.up_limits, **place)


def _draw_fronts(axes: Axes, panel: _FrontPanel) -> None:
    for line in panel.lines:
        style = _style(line.group)
        axes.plot(
            line.across,
            line.up,
            marker=style.marker,
            color=style.colour,
            alpha=0.7,
            markersize=5,
            markerfacecolor="none",
            linewidth=0.8,
            linestyle="-" if panel.step else "",
            drawstyle="steps-pre" if panel.step == "left" else "steps-post",
        )
    for name, across, up in panel.landmarks:
        right = _side(panel, across) == "right"
        axes.plot([across], [up], "*", color=_GREY, markersize=8)
        axes.annotate(
            name,
            (across, up),
            xytext=(4 if right else -4, -3),
            textcoords="offset points",
            horizontalalignment="left" if right else "right",
            verticalalignment="top",
            fontsize=8,
            color=_GREY,
        )
    axes.set(xlim=panel.across_limits, ylim=panel.up_limits)
    axes.set(xlabel=panel.across.title, ylabel=panel.up.title)


def _draw_progress(axes: Axes, panel: _ProgressPanel, comparison: Comparison) -> None:
    for index, (group, curve) in enumerate(zip(comparison.groups, panel.curves, strict=True)):
        style = _style(index)
        colour, line = style.colour, style.line
        axes.fill_between(
            curve.trials,
            curve.low,
            curve.high,
            step="post",
            color=colour,
            alpha=_FAINT,
            linewidth=0,
        )
        for values, width in ((curve.low, 0.5), (curve.high, 0.5), (curve.median, 1.5)):
            axes.step(curve.trials, values, line, where="post", color=colour, linewidth=width)
        axes.plot([], [], line, marker=style.marker, color=colour, label=group.label)
    if panel.compared is not None:
        axes.axvline(panel.compared, color=_GREY, linestyle=":", linewidth=0.8)
    axes.set(xlabel="trials", ylabel=panel.up.title, ylim=panel.up_limits)
    axes.set_xlim(left=0)
