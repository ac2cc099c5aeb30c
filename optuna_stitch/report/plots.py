"""Plots of a front: an interactive page and an image, from the same marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import cast

import matplotlib
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots
from torch import Tensor

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.metrics import axis_of, words_of
from optuna_stitch.report.front import STITCHED, Entry, Front
from optuna_stitch.stitching.supernetwork import Supernetwork

# Losses beyond this share look alike: such a stitch is of no use anyway.
_WORST = 0.2

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


_HISTORY_COLOUR = "#1f77b4"

_HISTORY_TITLE = "Hypervolume of the validation front over the trials"

_HISTORY_AXIS = "share of the last"


def draw_history(history: pd.DataFrame) -> go.Figure:
    """The hypervolume as an interactive figure.

    Args:
        history: What `hypervolume_over_trials` returns.
    """
    steps = _history_steps(history)
    figure = go.Figure()
    figure.add_scatter(
        x=steps["trial"],
        y=steps["share"].round(4),
        mode="lines",
        line={"color": _HISTORY_COLOUR, "shape": "hv"},
        hovertemplate="after trial %{x}: %{y:.1%}<extra></extra>",
    )
    figure.update_layout(
        title=_HISTORY_TITLE,
        template="plotly_white",
        xaxis_title="trial",
        yaxis={"title": _HISTORY_AXIS, "tickformat": ".0%"},
    )
    return figure


def write_history(history: pd.DataFrame, path: Path) -> None:
    """Write the figure as an image; the ending of its path says which kind."""
    figure = Figure(figsize=(8, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.step(history["trial"], history["share"], where="post", color=_HISTORY_COLOUR)
    axes.set_xlabel("trial")
    axes.set_ylabel(_HISTORY_AXIS)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    axes.set_title(_HISTORY_TITLE, fontsize=11)
    axes.grid(alpha=0.25)
    figure.savefig(path)


def _history_steps(history: pd.DataFrame) -> pd.DataFrame:
    """Only the trials at which it rises, and the last: a figure that is kept with a study."""
    rises = history["share"].diff().fillna(1.0) > 0
    rises.iloc[-1] = True
    return history[rises]


_DIRECTIONS = {"b": "a → b", "a": "b → a"}

# Suits light and dark pages: what is never on is nearly transparent.
_SWITCHES_SCALE = [[0.0, "rgba(128, 128, 128, 0.15)"], [1.0, "rgba(214, 39, 40, 1)"]]

_SWITCHES_TITLE = "how often each stitch is on along the front"


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
        title=_SWITCHES_TITLE.capitalize(),
        template="plotly_white",
        coloraxis={
            "colorscale": _SWITCHES_SCALE,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"tickformat": ".0%"},
        },
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
    figure.suptitle(_SWITCHES_TITLE.capitalize(), fontsize=11)
    bar = figure.colorbar(cast("matplotlib.cm.ScalarMappable", drawn), ax=panels)
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    figure.savefig(path)


_GALLERY_SHOWN, _GALLERY_ACROSS = 12, 6


@dataclass(frozen=True)
class Gained:
    """What a network says of images on which both parents agree in being right, or wrong.

    Args:
        gained: Places of the test images that it gets right and both parents get wrong.
        lost: Places of those that it gets wrong and both parents get right.
    """

    gained: list[int]
    lost: list[int]


def gained_by(front: Front, entry: Entry) -> Gained | None:
    """Compare a network with both parents, image by image; None where pixels are labelled."""
    a, b = (_guesses_of(front, name) for name in ("parent a", "parent b"))
    targets, own = front.targets, entry.guesses
    if targets is None or own is None or a is None or b is None:
        return None
    right, a_right, b_right = (guesses == targets for guesses in (own, a, b))
    gained = (right & ~a_right & ~b_right).nonzero().flatten().tolist()
    lost = (~right & a_right & b_right).nonzero().flatten().tolist()
    return Gained(gained, lost)


def draw_gained(
    front: Front,
    entry: Entry,
    gained: Sequence[int],
    split: Split,
    path: Path,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draw some of the images that a network gets right and both parents get wrong.

    Args:
        front: With the parents' answers.
        entry: The network.
        gained: Places of images; at least one.
        split: The test split.
        path: Where to write the image.
        class_names: In the order of the labels; numbers, if None.
    """
    shown = gained[:_GALLERY_SHOWN]
    rows = math.ceil(len(shown) / _GALLERY_ACROSS)
    across = min(max(len(shown), 3), _GALLERY_ACROSS)
    figure = Figure(figsize=(1.7 * across, 2.3 * rows + 0.5), dpi=150, layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).flatten()
    a, b = _guesses_of(front, "parent a"), _guesses_of(front, "parent b")
    assert front.targets is not None
    assert a is not None
    assert b is not None

    def name(label: Tensor) -> str:
        words = class_names[int(label)] if class_names else str(int(label))
        return words if len(words) <= 16 else f"{words[:15]}…"

    for panel in panels:
        panel.set_axis_off()
    for panel, place in zip(panels, shown, strict=False):
        image, _ = split.read(place)
        panel.imshow(image, cmap="gray" if image.mode == "L" else None)
        panel.set_title(
            f"{name(front.targets[place])}\na: {name(a[place])}, b: {name(b[place])}", fontsize=8
        )
    more = f", {len(shown)} of {len(gained)} images" if len(gained) > len(shown) else ""
    figure.suptitle(f"right by {entry.name}, wrong by both parents{more}", fontsize=9)
    figure.savefig(path)


def _guesses_of(front: Front, name: str) -> Tensor | None:
    return next((entry.guesses for entry in front.entries if entry.name == name), None)
