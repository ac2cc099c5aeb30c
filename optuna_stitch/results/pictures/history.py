"""How soon a study found what it found: the hypervolume over its trials."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

_COLOUR = "#1f77b4"
_TITLE = "Hypervolume of the validation front over the trials"
_Y = "share of the last"


def draw_history(history: pd.DataFrame) -> go.Figure:
    """The hypervolume as an interactive figure.

    Args:
        history: What `hypervolume_over_trials` returns.
    """
    steps = _steps(history)
    figure = go.Figure()
    figure.add_scatter(
        x=steps["trial"],
        y=steps["share"].round(4),
        mode="lines",
        line={"color": _COLOUR, "shape": "hv"},
        hovertemplate="after trial %{x}: %{y:.1%}<extra></extra>",
    )
    figure.update_layout(
        title=_TITLE,
        template="plotly_white",
        xaxis_title="trial",
        yaxis={"title": _Y, "tickformat": ".0%"},
    )
    return figure


def write_history(history: pd.DataFrame, path: Path) -> None:
    """Write the figure as an image; the ending of its path says which kind."""
    figure = Figure(figsize=(8, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.step(history["trial"], history["share"], where="post", color=_COLOUR)
    axes.set_xlabel("trial")
    axes.set_ylabel(_Y)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    axes.set_title(_TITLE, fontsize=11)
    axes.grid(alpha=0.25)
    figure.savefig(path)


def _steps(history: pd.DataFrame) -> pd.DataFrame:
    """Only the trials at which it rises, and the last: a figure that is kept with a study."""
    rises = history["share"].diff().fillna(1.0) > 0
    rises.iloc[-1] = True
    return history[rises]
