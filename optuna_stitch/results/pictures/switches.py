"""Which stitches the front uses, over the depth of both parents."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import matplotlib
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from optuna_stitch.results.judging.front import STITCHED, Front
from optuna_stitch.stitching.supernetwork import Supernetwork

_DIRECTIONS = {"b": "a → b", "a": "b → a"}
# Suits light and dark pages: what is never on is nearly transparent.
_SCALE = [[0.0, "rgba(128, 128, 128, 0.15)"], [1.0, "rgba(214, 39, 40, 1)"]]
_TITLE = "how often each stitch is on along the front"


def switch_shares(front: Front, supernetwork: Supernetwork) -> pd.DataFrame:
    """How often each switch is on among the stitched networks of the front.

    Args:
        front: What was found.
        supernetwork: Whose switches.

    Returns:
        One row per switch: its name, ``into`` (the parent whose point it replaces), ``depth_a``
        and ``depth_b`` (of its match, 0 to 1), and ``share`` of the networks, 0 to 1.
    """
    networks = [
        entry.genotype.on
        for entry in front.front
        if entry.kind == STITCHED and entry.genotype is not None
    ]
    rows = []
    for index, (switch, kept) in enumerate(
        zip(supernetwork.switches, supernetwork.kept, strict=True)
    ):
        match = supernetwork.matches[kept // 2]
        share = sum(index in on for on in networks) / len(networks) if networks else 0.0
        rows.append((switch.name, switch.into, match.a.depth, match.b.depth, share))
    return pd.DataFrame(rows, columns=["switch", "into", "depth_a", "depth_b", "share"])


def draw_switches(shares: pd.DataFrame) -> go.Figure:
    """The shares as an interactive heat map, a panel for each direction."""
    figure = make_subplots(1, 2, subplot_titles=list(_DIRECTIONS.values()), shared_yaxes=True)
    for column, into in enumerate(_DIRECTIONS, start=1):
        own = shares[shares["into"] == into]
        figure.add_scatter(
            x=own["depth_a"].round(3),
            y=own["depth_b"].round(3),
            mode="markers",
            marker={
                "symbol": "square",
                "size": 14,
                "color": own["share"].round(3),
                "coloraxis": "coloraxis",
                "line": {"width": 0.5, "color": "#888888"},
            },
            text=own["switch"],
            hovertemplate="%{text}<br>on in %{marker.color:.0%} of the front<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.update_xaxes(title_text="depth in a", row=1, col=column)
    figure.update_yaxes(title_text="depth in b", row=1, col=1)
    figure.update_layout(
        title=_TITLE.capitalize(),
        template="plotly_white",
        coloraxis={"colorscale": _SCALE, "cmin": 0, "cmax": 1, "colorbar": {"tickformat": ".0%"}},
    )
    return figure


def write_switches(shares: pd.DataFrame, path: Path) -> None:
    """Write the heat map as an image; the ending of its path says which kind."""
    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    drawn = None
    for axes, (into, title) in zip(panels, _DIRECTIONS.items(), strict=True):
        own = shares[shares["into"] == into]
        drawn = axes.scatter(
            own["depth_a"],
            own["depth_b"],
            c=own["share"],
            vmin=0,
            vmax=1,
            cmap="Reds",
            marker="s",
            s=70,
            edgecolors="#888888",
            linewidths=0.5,
        )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("depth in a")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("depth in b")
    figure.suptitle(_TITLE.capitalize(), fontsize=11)
    bar = figure.colorbar(cast("matplotlib.cm.ScalarMappable", drawn), ax=panels)
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    figure.savefig(path)
