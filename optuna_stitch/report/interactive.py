"""Interactive plots for the front page and the dashboard (Plotly)."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optuna_stitch.report.entries import STITCHED, Entries, Entry
from optuna_stitch.report.picking import pick
from optuna_stitch.report.plots import (
    ALL_TRIALS,
    HISTORY_AXIS,
    HISTORY_COLOUR,
    HISTORY_TITLE,
    NAMED,
    SWITCHES_TITLE,
    FrontPlot,
    directions,
    is_way,
    way_text,
)
from optuna_stitch.report.wording import answer_text, cost_text
from optuna_stitch.utils.text import percent_interval_text, percent_text

# Stitches that the pointer shows; a network with more of them says how many.
_STITCHES = 8

_TEMPLATE = "plotly_white"

# Height of a row of panels, in pixels, where there are several.
_PANEL = 380

# Where a pick is pointed at, and where it is explained.
_ARROW = {"showarrow": True, "ax": 40, "ay": 40, "bgcolor": "rgba(255, 255, 255, 0.9)"}
_BELOW = {
    "xref": "paper",
    "yref": "paper",
    "x": 0,
    "y": 0,
    "yshift": -60,  # pixels, below the axis and its title
    "xanchor": "left",
    "yanchor": "top",
    "align": "left",
    "showarrow": False,
}

# Suits light and dark pages: what is never on is nearly transparent.
_SWITCHES_SCALE = [[0.0, "rgba(128, 128, 128, 0.15)"], [1.0, "rgba(214, 39, 40, 1)"]]


def draw_front(front: Entries, title: str) -> go.Figure:
    """Plot a front: test quality against cost, with 95% intervals.

    Args:
        front: What to plot.
        title: Above the plot.
    """
    plot = FrontPlot(front)
    figure = go.Figure()
    if plot.background is not None:
        figure.add_scatter(
            x=plot.background[0],
            y=plot.background[1],
            mode="markers",
            name=ALL_TRIALS,
            marker={"color": "#999999", "size": 5, "opacity": 0.35},
            hoverinfo="skip",
        )
    for line in plot.lines:
        figure.add_scatter(
            x=line.costs,
            y=line.qualities,
            mode="lines",
            name=line.label,
            line={"color": line.colour, "width": 1.2, "shape": "hv", "dash": line.dash},
            hoverinfo="skip",
        )
    for group in plot.groups:
        entries = group.entries
        figure.add_scatter(
            x=[plot.cost(entry) for entry in entries],
            y=[100 * entry.quality for entry in entries],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (e.interval[1] - e.quality) for e in entries],
                "arrayminus": [100 * (e.quality - e.interval[0]) for e in entries],
                "thickness": 1,
            },
            mode="markers+text" if group.kind in NAMED else "markers",
            text=[escape(entry.name) for entry in entries],
            # the duo costs what the ensemble does, and lies close to it
            textposition="bottom left" if group.kind == "duo" else "top left",
            cliponaxis=group.kind not in NAMED,  # a name may reach out of the frame
            name=group.label,
            opacity=group.opacity,
            marker={"color": group.mark.colour, "symbol": group.mark.symbol, "size": 10},
            customdata=[_hover(entry, front) for entry in entries],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_layout(
        title=title,
        template=_TEMPLATE,
        xaxis_title=plot.axes[0],
        yaxis={"title": plot.axes[1], "range": plot.frame},
        legend={"yanchor": "bottom", "y": 0.02, "xanchor": "right", "x": 0.98},
        height=620,
        margin={"b": 170},  # room to explain a pick
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": _pick_buttons(front, plot),
                "showactive": True,
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
            }
        ],
    )
    return figure


def _pick_buttons(front: Entries, plot: FrontPlot) -> list[dict[str, object]]:
    """Buttons that point at networks one may want, and say below the plot why."""
    wanted: dict[str, tuple[dict[str, float], bool]] = {"knee": ({}, True)}
    for parent in (entry for entry in front.baselines if entry.kind == "parent"):
        cost, quality = parent.test[front.cost], parent.quality
        wanted[f"best at the cost of {parent.name}"] = {f"max_{front.cost}": cost}, False
        wanted[f"cheapest as good as {parent.name}"] = {f"min_{front.metric}": quality}, False
    table, by_name = front.table(), {entry.name: entry for entry in front.entries}
    buttons = [_button("no pick", [])]
    for label, (bounds, knee) in wanted.items():
        picked = pick(
            table, bounds, metric=front.metric, cost=front.cost, knee=knee, unit=front.unit
        )
        entry = by_name[picked.name]
        place = {"x": plot.cost(entry), "y": 100 * entry.quality, "text": escape(entry.name)}
        text = "<br>".join(escape(line) for line in str(picked).splitlines())
        buttons.append(_button(label, [place | _ARROW, _BELOW | {"text": text}]))
    return buttons


def _button(label: str, annotations: list[dict[str, object]]) -> dict[str, object]:
    return {"label": label, "method": "relayout", "args": [{"annotations": annotations}]}


def _hover(entry: Entry, front: Entries) -> str:
    """What the pointer shows of a network."""
    interval = percent_interval_text(entry.interval, 2, between=" to ")
    lines = [
        f"<b>{escape(entry.name)}</b>{'' if entry.on_a_front else ' (on no front)'}",
        f"{percent_text(entry.quality)} ({interval})",
        f"{cost_text(entry, front)}, {entry.parameters:,} parameters",
    ]
    if entry.recipe:
        lines.append(escape(entry.recipe))
    if entry.kind == STITCHED and entry.subnetwork:
        lines += [f"{answer_text(entry.subnetwork)}, {len(entry.stitches)} stitches on:"]
        lines += [escape(name) for name in entry.stitches[:_STITCHES]]
        if len(entry.stitches) > _STITCHES:
            lines.append(f"and {len(entry.stitches) - _STITCHES} more")
    return "<br>".join(lines)


def draw_history(history: pd.DataFrame) -> go.Figure:
    """Plot a search's hypervolume over its trials.

    Args:
        history: What `hypervolume_over_trials` returns.
    """
    # the trials at which it rises, and the last: the dashboard keeps the plot with the study
    rises = history["share"].diff().fillna(1.0) > 0
    rises.iloc[-1] = True
    steps = history[rises]
    figure = go.Figure()
    figure.add_scatter(
        x=steps["trial"],
        y=steps["share"].round(4),
        mode="lines",
        line={"color": HISTORY_COLOUR, "shape": "hv"},
        hovertemplate="after trial %{x}: %{y:.1%}<extra></extra>",
    )
    figure.update_layout(
        title=HISTORY_TITLE,
        template=_TEMPLATE,
        xaxis_title="trial",
        yaxis={"title": HISTORY_AXIS, "tickformat": ".0%"},
    )
    return figure


def draw_switches(shares: pd.DataFrame) -> go.Figure:
    """Plot how often each switch is on, as a heat map with a panel for each direction.

    Args:
        shares: What `switch_shares` returns.
    """
    ways = directions(shares["switch"], shares["into"])
    rows = len(ways) // 2
    figure = make_subplots(
        rows, 2, subplot_titles=[way_text(way) for way in ways], shared_yaxes=True
    )
    for place, way in enumerate(ways):
        own = shares[is_way(shares, way)]
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
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
            **at,
        )
        figure.update_xaxes(title_text=f"depth in {min(way)}", **at)
        if at["col"] == 1:
            figure.update_yaxes(title_text=f"depth in {max(way)}", **at)
    if rows > 1:
        figure.update_layout(height=_PANEL * rows)
    figure.update_layout(
        title=SWITCHES_TITLE,
        template=_TEMPLATE,
        coloraxis={
            "colorscale": _SWITCHES_SCALE,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"tickformat": ".0%"},
        },
    )
    return figure
