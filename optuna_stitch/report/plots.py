"""Plots as files: the front, the search's history, switches, stitches, images (matplotlib).

What `interactive.py` shows in the same way is said here once: kinds of networks, what belongs to a
front's plot, titles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import matplotlib
import moocore
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.report.entries import FINISHED, STITCHED, Entries, Entry
from optuna_stitch.stitching.genotype import SIDES, Side
from optuna_stitch.stitching.supernetwork import Supernetwork

# Losses beyond this share look alike: such a stitch is of no use anyway.
_WORST = 0.2

# The opacity of stitched networks that something else dominates.
_FADED = 0.35

# Kinds whose every network has its name beside it.
NAMED = ("parent", "ensemble", "duo", "probe", "other")

ALL_TRIALS = "all trials (validation)"

# Lines of a plot: where some networks are cascades, there are two fronts.
FRONT_LINE = "front (test)"

FIXED_LINE = "front at fixed cost (test)"

AVERAGE_LINE = "front at average cost (test)"

HISTORY_TITLE = "Hypervolume of the validation front over the trials"

HISTORY_AXIS = "share of the last"

HISTORY_COLOUR = "#1f77b4"

SWITCHES_TITLE = "How often each stitch is on along the front"

_GALLERY_SHOWN, _GALLERY_ACROSS = 12, 6


@dataclass(frozen=True)
class Mark:
    """How networks of one kind look; to be told apart without colour too.

    Args:
        label: What the legend says.
        colour: Of the mark.
        symbol: The mark's name in Plotly.
        marker: The mark's name in matplotlib.
    """

    label: str
    colour: str
    symbol: str
    marker: str


# Stitched networks by whether all images cost the same.
_STITCHED_CASCADE = "stitched cascade"

# Those that were trained to their end.
_STITCHED_FINISHED = "stitched, finished"

MARKS = {
    "parent": Mark("parents", "#1f77b4", "square", "s"),
    "ensemble": Mark("plain ensemble", "#9467bd", "diamond", "D"),
    "duo": Mark("duo: weighted ensemble", "#9467bd", "diamond-open", "d"),
    "cascade": Mark("cascades of the parents", "#2ca02c", "triangle-up", "^"),
    "probe": Mark("linear probes", "#2ca02c", "triangle-up", "^"),
    "other": Mark("other networks", "#8c564b", "x", "X"),
    FINISHED: Mark("finished likewise, not stitched", "#7f7f7f", "cross", "P"),
    STITCHED: Mark("stitched", "#d62728", "circle", "o"),
    _STITCHED_CASCADE: Mark("stitched cascades", "#e08214", "star", "*"),
    _STITCHED_FINISHED: Mark("stitched, finished", "#b2182b", "hexagram", "h"),
}


@dataclass(frozen=True)
class Line:
    """A front as a line.

    Args:
        label: What the legend says.
        colour: Of the line.
        dash: Its pattern in Plotly.
        style: Its pattern in matplotlib.
        costs: Of its corners, rising, in the cost's unit.
        qualities: Of its corners, in percent.
    """

    label: str
    colour: str
    dash: str
    style: str
    costs: list[float]
    qualities: list[float]


@dataclass(frozen=True)
class Group:
    """Entries that look alike.

    Args:
        kind: Of all of them, a key of `MARKS`.
        label: What the legend says.
        entries: At least one.
        opacity: From 0 to 1.
    """

    kind: str
    label: str
    entries: list[Entry]
    opacity: float = 1.0

    @property
    def mark(self) -> Mark:
        """How they look."""
        return MARKS[self.kind]


@dataclass(frozen=True)
class FrontPlot:
    """What a plot of a front shows: test quality against cost.

    Args:
        front: What it is of.
    """

    front: Entries

    @property
    def axes(self) -> tuple[str, str]:
        """Titles of the horizontal axis and of the vertical one."""
        return self.front.unit(self.front.cost).title, self.front.unit(self.front.metric).title

    def cost(self, entry: Entry) -> float:
        """Where an entry lies on the horizontal axis, in the cost's unit.

        Args:
            entry: A network.
        """
        return entry.test[self.front.cost] / self.front.unit(self.front.cost).scale

    @property
    def groups(self) -> list[Group]:
        """The entries, by what they look like."""
        found = []
        for kind, mark in MARKS.items():
            own = [entry for entry in self.front.entries if _look(entry) == kind]
            if kind in (STITCHED, _STITCHED_CASCADE, _STITCHED_FINISHED):
                off = [entry for entry in own if not entry.on_a_front]
                own = [entry for entry in own if entry.on_a_front]
                found.append(Group(kind, mark.label, own))
                found.append(Group(kind, f"{mark.label}, on no front", off, _FADED))
            else:
                found.append(Group(kind, mark.label, own))
        return [group for group in found if group.entries]

    @property
    def lines(self) -> list[Line]:
        """The fronts: of what costs the same for every image, and of all at average cost."""
        entries = self.front.entries
        if not self.front.has_cascades:
            return [Line(FRONT_LINE, "#7f7f7f", "dot", ":", *self._corners(entries))]
        fixed = [entry for entry in entries if not entry.is_cascade]
        return [
            Line(FIXED_LINE, "#7f7f7f", "solid", "-", *self._corners(fixed)),
            Line(AVERAGE_LINE, "#17a2b8", "dash", "--", *self._corners(entries)),
        ]

    def _corners(self, entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
        """Cost and quality, in percent, of what no other one dominates in both; by cost."""
        points = np.array([(self.cost(entry), 100 * entry.quality) for entry in entries])
        best = moocore.filter_dominated(points, maximise=[False, True]).tolist()
        costs, qualities = zip(*sorted(best), strict=True)
        return list(costs), list(qualities)

    @property
    def background(self) -> tuple[pd.Series[float], pd.Series[float]] | None:
        """The same of all trials on validation images, where both are objectives of the study."""
        front, trials = self.front, self.front.trials
        if not {front.metric, front.cost} <= set(trials.columns):
            return None
        return trials[front.cost] / front.unit(front.cost).scale, 100 * trials[front.metric]

    @property
    def frame(self) -> tuple[float, float]:
        """Limits of the quality axis, in percent: around the networks that anyone would use."""
        front = self.front
        worst = min(entry.interval[0] for entry in front.baselines or front.entries)
        best = max(entry.interval[1] for entry in front.entries)
        margin = 0.1 * (best - worst) + 0.005
        # of a share of what others reach there may be more than all
        most = best if front.sides else 1.0
        low, high = max(0.0, worst - (best - worst) - margin), min(most + margin, best + margin)
        return 100 * low, 100 * high


def _look(entry: Entry) -> str:
    if entry.kind != STITCHED:
        return entry.kind
    if entry.finished:
        return _STITCHED_FINISHED
    return _STITCHED_CASCADE if entry.is_cascade else STITCHED


def write_front(front: Entries, title: str, path: Path) -> None:
    """Write the plot of a front as an image.

    Args:
        front: What to plot.
        title: Above the plot.
        path: Where to write the image; its ending says which kind (PNG, SVG).
    """
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        front_figure(front, title).savefig(path)


def front_figure(front: Entries, title: str) -> Figure:
    """Plot a front: test quality against cost, with 95% intervals.

    Args:
        front: What to plot.
        title: Above the plot.
    """
    plot = FrontPlot(front)
    figure = Figure(figsize=(8, 5.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    if plot.background is not None:
        axes.scatter(
            *plot.background, s=8, color="#999999", alpha=0.35, linewidths=0, label=ALL_TRIALS
        )
    for line in plot.lines:
        axes.step(
            line.costs,
            line.qualities,
            where="post",
            color=line.colour,
            linewidth=1.2,
            linestyle=line.style,
            label=line.label,
        )
    axes.set_ylim(*plot.frame)
    for group in plot.groups:
        for entry in group.entries:
            label = group.label if entry is group.entries[0] else None
            _draw_entry(axes, plot, group, entry, label)
    axes.set_xlabel(plot.axes[0])
    axes.set_ylabel(plot.axes[1])
    axes.set_title(title)
    axes.grid(alpha=0.25)
    figure.legend(
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        title="test split, bars: 95% intervals",
        title_fontsize=8,
    )
    return figure


def _draw_entry(
    axes: Axes, plot: FrontPlot, group: Group, entry: Entry, label: str | None
) -> None:
    quality = 100 * entry.quality
    low, high = (100 * bound for bound in entry.interval)
    axes.errorbar(
        plot.cost(entry),
        quality,
        yerr=[[quality - low], [high - quality]],
        fmt=group.mark.marker,
        color=group.mark.colour,
        markerfacecolor="none" if group.kind == "duo" else None,
        markersize=9 if group.mark.marker == "*" else 6,
        elinewidth=0.8,
        alpha=group.opacity,
        label=label,
    )
    bottom, top = plot.frame
    if group.kind in NAMED and bottom <= quality <= top:
        axes.annotate(
            entry.name,
            (plot.cost(entry), quality),
            # the duo costs what the ensemble does, and lies close to it
            xytext=(-7, -11 if group.kind == "duo" else 5),
            textcoords="offset points",
            horizontalalignment="right",
            fontsize=9,
        )


def write_history(history: pd.DataFrame, path: Path) -> None:
    """Write the plot of a search's hypervolume as an image.

    Args:
        history: What `hypervolume_over_trials` returns.
        path: Where to write the image; its ending says which kind.
    """
    figure = Figure(figsize=(8, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.step(history["trial"], history["share"], where="post", color=HISTORY_COLOUR)
    axes.set_xlabel("trial")
    axes.set_ylabel(HISTORY_AXIS)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    axes.set_title(HISTORY_TITLE, fontsize=11)
    axes.grid(alpha=0.25)
    figure.savefig(path)


def switch_shares(front: Entries, supernetwork: Supernetwork) -> pd.DataFrame:
    """How often each switch is on among the stitched networks of both fronts.

    Args:
        front: What was found.
        supernetwork: Whose switches.

    Returns:
        One row per switch: its name, ``into`` (the parent whose point it replaces), ``depth_a``
        and ``depth_b`` (of its match, 0 to 1; of more than two parents, in the first and in the
        second of the two that it lies between), and ``share`` of the networks, 0 to 1.
    """
    networks = [entry.subnetwork.on for entry in front.stitched_fronts if entry.subnetwork]
    rows = []
    for index, (switch, kept) in enumerate(
        zip(supernetwork.switches, supernetwork.kept, strict=True)
    ):
        match = supernetwork.matches[kept // 2]
        share = sum(index in on for on in networks) / len(networks) if networks else 0.0
        rows.append((switch.name, switch.into, match.a.depth, match.b.depth, share))
    return pd.DataFrame(rows, columns=["switch", "into", "depth_a", "depth_b", "share"])


def write_switches(shares: pd.DataFrame, path: Path) -> None:
    """Write the heat map of switches as an image.

    Args:
        shares: What `switch_shares` returns.
        path: Where to write the image; its ending says which kind.
    """
    ways = directions(shares["switch"], shares["into"])
    figure = Figure(figsize=(8, 2 * len(ways)), dpi=150, layout="constrained")
    panels = _depth_panels(figure, ways)
    drawn = None
    for way, axes in panels.items():
        own = shares[is_way(shares, way)]
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
    figure.suptitle(SWITCHES_TITLE, fontsize=11)
    bar = figure.colorbar(cast("matplotlib.cm.ScalarMappable", drawn), ax=list(panels.values()))
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    figure.savefig(path)


def write_stitch_quality(
    stitch_qualities: Sequence[StitchQuality], title: str, path: Path
) -> None:
    """Write a plot of what every single-stitch network loses, as an image.

    Two panels, one for each direction, for every two parents; a square lies at the depth of its
    match in a (across) and in b (up), and is coloured by the loss against the weakest parent.

    Args:
        stitch_qualities: Of all stitches.
        title: Above the panels.
        path: Where to write the image; its ending says which kind.
    """
    ways = directions([q.switch for q in stitch_qualities], [q.into for q in stitch_qualities])
    figure = Figure(figsize=(9, 2.3 * len(ways)), dpi=150, layout="constrained")
    panels = _depth_panels(figure, ways)
    scale = matplotlib.colors.TwoSlopeNorm(0, -_WORST / 4, _WORST)
    drawn = None
    for way, axes in panels.items():
        for kept, edge in ((True, "black"), (False, "#bbbbbb")):
            some = [q for q in stitch_qualities if (q.out_of, q.into) == way and q.kept == kept]
            drawn = axes.scatter(
                [stitch_quality.depth_a for stitch_quality in some],
                [stitch_quality.depth_b for stitch_quality in some],
                c=[stitch_quality.drop for stitch_quality in some],
                norm=scale,
                cmap="RdYlGn_r",
                marker="s",
                s=60,
                edgecolors=edge,
                linewidths=0.6,
            )
    figure.suptitle(f"{title}: what a single-stitch network costs", fontsize=11)
    bar = figure.colorbar(cast("matplotlib.cm.ScalarMappable", drawn), ax=list(panels.values()))
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    least = "weaker" if len(ways) == 2 else "weakest"
    bar.set_label(f"loss against the {least} parent (grey edge: not kept)")
    figure.savefig(path)


def directions(switches: Iterable[str], into: Iterable[Side]) -> list[tuple[Side, Side]]:
    """Out of which parent and into which one there are stitches, both ways of two beside another.

    Args:
        switches: Names of stitches.
        into: The parents that these lead into.
    """
    named = zip(switches, into, strict=True)
    pairs = {tuple(sorted((name.partition(".")[0], side))) for name, side in named}
    return [way for one, other in sorted(pairs or {SIDES}) for way in ((one, other), (other, one))]


def way_text(way: tuple[Side, Side]) -> str:
    """What a panel is called: ``a → b``.

    Args:
        way: Out of which parent, and into which one.
    """
    return " → ".join(way)


def is_way(shares: pd.DataFrame, way: tuple[Side, Side]) -> pd.Series:
    """Which switches lead one way.

    Args:
        shares: What `switch_shares` returns.
        way: Out of which parent, and into which one.
    """
    out_of = shares["switch"].str.partition(".")[0]
    found: pd.Series = (out_of == way[0]) & (shares["into"] == way[1])
    return found


def _depth_panels(
    figure: Figure, ways: Sequence[tuple[Side, Side]]
) -> dict[tuple[Side, Side], Axes]:
    """A panel for each direction: depth in the first parent by letter, and in the second."""
    panels = figure.subplots(len(ways) // 2, 2, sharex=True, sharey=True, squeeze=False)
    found = dict(zip(ways, panels.flatten(), strict=True))
    for way, axes in found.items():
        axes.set_title(way_text(way), fontsize=10)
        axes.set_xlabel(f"depth in {min(way)}")
        axes.grid(alpha=0.25)
        if way[0] == min(way):
            axes.set_ylabel(f"depth in {max(way)}")
    return found


@dataclass(frozen=True)
class Gained:
    """What a network says of images on which all parents agree in being right, or wrong.

    Args:
        gained: Places of the test images that it gets right and all parents get wrong.
        lost: Places of those that it gets wrong and all parents get right.
    """

    gained: list[int]
    lost: list[int]


def gained_by(front: Entries, entry: Entry) -> Gained | None:
    """Compare a network with all parents, image by image; None where pixels are labelled.

    Args:
        front: With the parents' answers.
        entry: The network.
    """
    parents = [parent.guesses for parent in front.parents if parent.guesses is not None]
    targets, own = front.targets, entry.guesses
    if targets is None or own is None or len(parents) < 2:
        return None
    right = own == targets
    by_parent = torch.stack([guesses == targets for guesses in parents])
    gained = (right & ~by_parent.any(dim=0)).nonzero().flatten().tolist()
    lost = (~right & by_parent.all(dim=0)).nonzero().flatten().tolist()
    return Gained(gained, lost)


def write_gained(
    front: Entries,
    entry: Entry,
    gained: Sequence[int],
    split: Split,
    path: Path,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a picture of some images that a network gets right and all parents get wrong.

    Args:
        front: With the parents' answers.
        entry: The network.
        gained: Places of images; at least one.
        split: The test split.
        path: Where to write the picture; its ending says which kind.
        class_names: In the order of the labels; numbers, if None.
    """
    shown = gained[:_GALLERY_SHOWN]
    rows = math.ceil(len(shown) / _GALLERY_ACROSS)
    across = min(max(len(shown), 3), _GALLERY_ACROSS)
    figure = Figure(figsize=(1.7 * across, 2.3 * rows + 0.5), dpi=150, layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).flatten()
    assert front.targets is not None

    def name(label: Tensor) -> str:
        words = class_names[int(label)] if class_names else str(int(label))
        return words if len(words) <= 16 else f"{words[:15]}…"

    for panel in panels:
        panel.set_axis_off()
    for panel, place in zip(panels, shown, strict=False):
        image, _ = split.read(place)
        panel.imshow(image, cmap="gray" if image.mode == "L" else None)
        said = [
            f"{parent.name.removeprefix('parent ')}: {name(parent.guesses[place])}"
            for parent in front.parents
            if parent.guesses is not None
        ]
        panel.set_title(f"{name(front.targets[place])}\n{', '.join(said)}", fontsize=8)
    more = f", {len(shown)} of {len(gained)} images" if len(gained) > len(shown) else ""
    figure.suptitle(f"right by {entry.name}, wrong by {front.every} parents{more}", fontsize=9)
    figure.savefig(path)
