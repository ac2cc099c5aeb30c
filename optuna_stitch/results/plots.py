"""The front as a picture: an interactive page and an image."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
import plotly.graph_objects as go

from optuna_stitch.results.front import Entry, Front

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Colour and marker (plotly's, matplotlib's) by kind of network; readable without colour too.
_STYLES = {
    "parent": ("#1f77b4", "square", "s"),
    "ensemble": ("#9467bd", "diamond", "D"),
    "stitched": ("#d62728", "circle", "o"),
}
_X_TITLE = "multiply-accumulates per image (millions)"


def draw_front(front: Front, title: str) -> go.Figure:
    """The front as an interactive figure: test accuracy against cost, with 95% intervals.

    Args:
        front: What to draw.
        title: Above the figure.
    """
    figure = go.Figure()
    background = _background(front)
    if background is not None:
        figure.add_scatter(
            x=background["macs"] / 1e6,
            y=100 * background[front.metric],
            mode="markers",
            name="all trials (validation)",
            marker={"color": "#999999", "size": 5, "opacity": 0.35},
            hoverinfo="skip",
        )
    line = _front_line(front)
    figure.add_scatter(
        x=[entry.test["macs"] / 1e6 for entry in line],
        y=[100 * entry.quality for entry in line],
        mode="lines",
        name="front (test)",
        line={"color": "#d62728", "width": 1, "shape": "hv"},
        hoverinfo="skip",
    )
    for kind, (colour, symbol, _) in _STYLES.items():
        entries = [entry for entry in front.entries if entry.kind == kind]
        if not entries:
            continue
        figure.add_scatter(
            x=[entry.test["macs"] / 1e6 for entry in entries],
            y=[100 * entry.quality for entry in entries],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (e.interval[1] - e.quality) for e in entries],
                "arrayminus": [100 * (e.quality - e.interval[0]) for e in entries],
                "thickness": 1,
            },
            mode="markers" if kind == "stitched" else "markers+text",
            text=[entry.name for entry in entries],
            textposition="top left",
            name=f"{kind} (test, 95% interval)",
            marker={"color": colour, "symbol": symbol, "size": 10},
            customdata=[[e.genotype.output, len(e.genotype.on), e.parameters] for e in entries],
            hovertemplate=(
                "<b>%{text}</b><br>%{y:.2f}%<br>%{x:.3f} M multiply-accumulates<br>"
                "output %{customdata[0]}, %{customdata[1]} stitches<br>"
                "%{customdata[2]:,} parameters<extra></extra>"
            ),
        )
    figure.update_layout(
        title=title,
        template="plotly_white",
        xaxis_title=_X_TITLE,
        yaxis={"title": f"{front.metric} (%)", "range": _frame(front)},
        legend={"yanchor": "bottom", "y": 0.02, "xanchor": "right", "x": 0.98},
    )
    return figure


def write_html(front: Front, title: str, path: Path) -> None:
    """Write the interactive figure as one page that needs no network."""
    draw_front(front, title).write_html(path, include_plotlyjs=True)


def write_png(front: Front, title: str, path: Path) -> None:
    """Write the figure as an image."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150)
    background = _background(front)
    if background is not None:
        axes.scatter(
            background["macs"] / 1e6,
            100 * background[front.metric],
            s=8,
            color="#999999",
            alpha=0.35,
            linewidths=0,
            label="all trials (validation)",
        )
    line = _front_line(front)
    axes.step(
        [entry.test["macs"] / 1e6 for entry in line],
        [100 * entry.quality for entry in line],
        where="post",
        color="#d62728",
        linewidth=1,
        label="front (test)",
    )
    low, high = _frame(front)
    for kind, (colour, _, marker) in _STYLES.items():
        entries = [entry for entry in front.entries if entry.kind == kind]
        for index, entry in enumerate(entries):
            accuracy = 100 * entry.quality
            interval = [100 * bound for bound in entry.interval]
            axes.errorbar(
                entry.test["macs"] / 1e6,
                accuracy,
                yerr=[[accuracy - interval[0]], [interval[1] - accuracy]],
                fmt=marker,
                color=colour,
                markersize=6,
                elinewidth=0.8,
                alpha=1.0 if entry.on_front or kind != "stitched" else 0.5,
                label=f"{kind} (test, 95% interval)" if index == 0 else None,
            )
            if kind != "stitched" and low <= accuracy <= high:
                axes.annotate(
                    entry.name,
                    (entry.test["macs"] / 1e6, accuracy),
                    xytext=(-7, 5),
                    textcoords="offset points",
                    horizontalalignment="right",
                    fontsize=9,
                )
    axes.set_ylim(low, high)
    axes.set_xlabel(_X_TITLE)
    axes.set_ylabel(f"{front.metric} (%)")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _background(front: Front) -> pd.DataFrame | None:
    """Validation figures of all trials, where the study has both axes as objectives."""
    if {front.metric, "macs"} <= set(front.trials.columns):
        return front.trials
    return None


def _front_line(front: Front) -> list[Entry]:
    on_front = [entry for entry in front.entries if entry.on_front]
    return sorted(on_front, key=lambda entry: entry.test["macs"])


def _frame(front: Front) -> tuple[float, float]:
    """Limits of the accuracy axis, in percent: around the networks that anyone would use."""
    worst = min(entry.interval[0] for entry in front.baselines or front.entries)
    best = max(entry.interval[1] for entry in front.entries)
    margin = 0.1 * (best - worst) + 0.005
    return 100 * max(0.0, worst - (best - worst) - margin), 100 * min(1.0 + margin, best + margin)
