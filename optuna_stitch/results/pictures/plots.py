"""Plots of a front: an interactive page and an image, from the same marks."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from optuna_stitch.results.judging.front import STITCHED, Entry, Front

# Figures that are shares of one, and read better in percent.
SHARES = {"accuracy", "top5", "agreement", "mean_iou", "pixel_accuracy", "calibration_error"}
# Stitches that the pointer shows; a network with more of them says how many.
_STITCHES = 8


@dataclass(frozen=True)
class _Mark:
    """How networks of one kind look; to be told apart without colour too."""

    label: str
    colour: str
    symbol: str  # plotly's
    marker: str  # matplotlib's


_MARKS = {
    "parent": _Mark("parents", "#1f77b4", "square", "s"),
    "ensemble": _Mark("plain ensemble", "#9467bd", "diamond", "D"),
    "duo": _Mark("duo: weighted ensemble", "#9467bd", "diamond-open", "d"),
    "cascade": _Mark("cascades", "#2ca02c", "triangle-up", "^"),
    "other": _Mark("other networks", "#8c564b", "x", "X"),
    STITCHED: _Mark("stitched", "#d62728", "circle", "o"),
}
# Stitched networks that something else dominates.
_FADED = 0.35
# Kinds whose every network has its name beside it.
_NAMED = ("parent", "ensemble", "duo", "other")


@dataclass(frozen=True)
class Axis:
    """What a cost is called, and in which unit it is shown.

    Args:
        title: Of the axis.
        words: What a sentence calls it, in the plural.
        unit: What the values are divided by.
        symbol: Of that unit.
    """

    title: str
    words: str
    unit: float = 1.0
    symbol: str = ""


_AXES = {
    "macs": Axis(
        "multiply-accumulates per image (millions)", "multiply-accumulates", 1e6, "M MACs"
    ),
    "parameters": Axis("parameters (millions)", "parameters", 1e6, "M parameters"),
    "weight_bytes": Axis("weights (MB)", "bytes of weights", 1e6, "MB"),
    "activation_bytes": Axis("activations per image (MB)", "bytes of activations", 1e6, "MB"),
    "latency_ms": Axis("latency (ms)", "milliseconds", 1.0, "ms"),
}


def axis_of(cost: str) -> Axis:
    """How a cost is shown."""
    return _AXES.get(cost, Axis(cost, cost, 1.0, cost))


def words_of(metric: str) -> str:
    """A figure's name in a sentence."""
    return metric.replace("_", " ").replace("iou", "IoU")


def draw_front(front: Front, title: str) -> go.Figure:
    """The front as an interactive figure: test quality against cost, with 95% intervals.

    Args:
        front: What to draw.
        title: Above the figure.
    """
    axis = axis_of(front.cost)
    figure = go.Figure()
    background = _background(front)
    if background is not None:
        figure.add_scatter(
            x=background[front.cost] / axis.unit,
            y=100 * background[front.metric],
            mode="markers",
            name="all trials (validation)",
            marker={"color": "#999999", "size": 5, "opacity": 0.35},
            hoverinfo="skip",
        )
    line = _front_line(front)
    figure.add_scatter(
        x=[entry.test[front.cost] / axis.unit for entry in line],
        y=[100 * entry.quality for entry in line],
        mode="lines",
        name="front (test)",
        line={"color": "#7f7f7f", "width": 1, "shape": "hv", "dash": "dot"},
        hoverinfo="skip",
    )
    for kind, label, entries in _groups(front):
        mark = _MARKS[kind]
        figure.add_scatter(
            x=[entry.test[front.cost] / axis.unit for entry in entries],
            y=[100 * entry.quality for entry in entries],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (e.interval[1] - e.quality) for e in entries],
                "arrayminus": [100 * (e.quality - e.interval[0]) for e in entries],
                "thickness": 1,
            },
            mode="markers+text" if kind in _NAMED else "markers",
            text=[escape(entry.name) for entry in entries],
            # the duo costs what the ensemble does, and lies close to it
            textposition="bottom left" if kind == "duo" else "top left",
            cliponaxis=kind not in _NAMED,  # a name may reach out of the frame
            name=label,
            opacity=_opacity(entries[0]),
            marker={"color": mark.colour, "symbol": mark.symbol, "size": 10},
            customdata=[_hover(entry, front) for entry in entries],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(
        title=title,
        template="plotly_white",
        xaxis_title=axis.title,
        yaxis={"title": f"{words_of(front.metric)} (%)", "range": _frame(front)},
        legend={"yanchor": "bottom", "y": 0.02, "xanchor": "right", "x": 0.98},
    )
    return figure


def write_image(front: Front, title: str, path: Path) -> None:
    """Write the figure as an image; the ending of its path says which kind (PNG, SVG)."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        draw_image(front, title).savefig(path)


def draw_image(front: Front, title: str) -> Figure:
    """The figure as an image, to be saved."""
    axis = axis_of(front.cost)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    background = _background(front)
    if background is not None:
        axes.scatter(
            background[front.cost] / axis.unit,
            100 * background[front.metric],
            s=8,
            color="#999999",
            alpha=0.35,
            linewidths=0,
            label="all trials (validation)",
        )
    line = _front_line(front)
    axes.step(
        [entry.test[front.cost] / axis.unit for entry in line],
        [100 * entry.quality for entry in line],
        where="post",
        color="#7f7f7f",
        linewidth=0.8,
        linestyle=":",
        label="front (test)",
    )
    low, high = _frame(front)
    for kind, label, entries in _groups(front):
        mark = _MARKS[kind]
        for index, entry in enumerate(entries):
            quality = 100 * entry.quality
            place = entry.test[front.cost] / axis.unit
            interval = [100 * bound for bound in entry.interval]
            axes.errorbar(
                place,
                quality,
                yerr=[[quality - interval[0]], [interval[1] - quality]],
                fmt=mark.marker,
                color=mark.colour,
                markerfacecolor="none" if kind == "duo" else None,
                markersize=6,
                elinewidth=0.8,
                alpha=_opacity(entry),
                label=label if index == 0 else None,
            )
            if kind in _NAMED and low <= quality <= high:
                axes.annotate(
                    entry.name,
                    (place, quality),
                    xytext=(-7, -11 if kind == "duo" else 5),
                    textcoords="offset points",
                    horizontalalignment="right",
                    fontsize=9,
                )
    axes.set_ylim(low, high)
    axes.set_xlabel(axis.title)
    axes.set_ylabel(f"{words_of(front.metric)} (%)")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(
        loc="lower right", fontsize=8, title="test split, bars: 95% intervals", title_fontsize=8
    )
    return figure


def _groups(front: Front) -> list[tuple[str, str, list[Entry]]]:
    """Entries that look alike, with their kind and what the legend says."""
    groups = []
    for kind, mark in _MARKS.items():
        entries = [entry for entry in front.entries if entry.kind == kind]
        if kind != STITCHED:
            groups.append((kind, mark.label, entries))
            continue
        groups.append((kind, mark.label, [entry for entry in entries if entry.on_front]))
        off = [entry for entry in entries if not entry.on_front]
        groups.append((kind, f"{mark.label}, not on the front", off))
    return [group for group in groups if group[2]]


def _opacity(entry: Entry) -> float:
    return 1.0 if entry.on_front or entry.kind != STITCHED else _FADED


def _hover(entry: Entry, front: Front) -> str:
    """What the pointer shows of a network."""
    axis = axis_of(front.cost)
    low, high = entry.interval
    lines = [
        f"<b>{escape(entry.name)}</b>{'' if entry.on_front else ' (not on the front)'}",
        f"{100 * entry.quality:.2f}% ({100 * low:.2f} to {100 * high:.2f})",
        f"{entry.test[front.cost] / axis.unit:.4g} {axis.symbol}, {entry.parameters:,} parameters",
    ]
    if entry.recipe:
        lines.append(escape(entry.recipe))
    if entry.kind == STITCHED and entry.genotype is not None:
        stitches = front.stitches(entry)
        lines += [f"output {entry.genotype.output}, {len(stitches)} stitches on:"]
        lines += [escape(name) for name in stitches[:_STITCHES]]
        if len(stitches) > _STITCHES:
            lines.append(f"and {len(stitches) - _STITCHES} more")
    return "<br>".join(lines)


def _background(front: Front) -> pd.DataFrame | None:
    """Validation figures of all trials, where the study has both axes as objectives."""
    if {front.metric, front.cost} <= set(front.trials.columns):
        return front.trials
    return None


def _front_line(front: Front) -> list[Entry]:
    """What no other entry dominates on the two axes of the plot, by rising cost."""
    line: list[Entry] = []
    for entry in sorted(front.entries, key=lambda e: (e.test[front.cost], -e.quality)):
        if not line or entry.quality > line[-1].quality:
            line.append(entry)
    return line


def _frame(front: Front) -> tuple[float, float]:
    """Limits of the quality axis, in percent: around the networks that anyone would use."""
    worst = min(entry.interval[0] for entry in front.baselines or front.entries)
    best = max(entry.interval[1] for entry in front.entries)
    margin = 0.1 * (best - worst) + 0.005
    return 100 * max(0.0, worst - (best - worst) - margin), 100 * min(1.0 + margin, best + margin)
