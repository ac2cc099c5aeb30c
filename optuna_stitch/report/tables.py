"""Tables of a front: on the screen, in the report, in a notebook."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import cast

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from optuna_stitch.evaluation.metrics import axis_of
from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.report.front import STITCHED, Entry, Front, PairedComparison, headline
from optuna_stitch.report.plots import _WORST, draw_image

_SHOWN = 12


def summary(stitch_qualities: Sequence[StitchQuality]) -> str:
    """One sentence about all single-stitch networks."""
    drops = pd.Series([stitch_quality.drop for stitch_quality in stitch_qualities])
    kept = sum(stitch_quality.kept for stitch_quality in stitch_qualities)
    return (
        f"{int((drops <= 0.02).sum())} of {len(drops)} single-stitch networks are within 2 points "
        f"of the weaker parent on validation images; median loss {100 * drops.median():.1f} "
        f"points; {kept} stitches are kept."
    )


def stitch_quality_table(stitch_qualities: Sequence[StitchQuality]) -> Table:
    """The best single-stitch networks as a table for the terminal."""
    best = sorted(stitch_qualities, key=lambda stitch_quality: stitch_quality.drop)[:_SHOWN]
    table = Table(title=f"The best {len(best)} of {len(stitch_qualities)} single-stitch networks")
    table.add_column("stitch")
    for title in ("R²", "kernel", "rank", "M MACs", "result %", "loss"):
        table.add_column(title, justify="right")
    for stitch_quality in best:
        table.add_row(
            stitch_quality.switch,
            f"{stitch_quality.r2:.2f}",
            f"{stitch_quality.kernel} × {stitch_quality.kernel}",
            str(stitch_quality.rank),
            f"{stitch_quality.stitch_macs / 1e6:.2f}",
            f"{100 * stitch_quality.quality:.1f}",
            f"{100 * stitch_quality.drop:+.1f}",
        )
    return table


def draw_stitch_quality(stitch_qualities: Sequence[StitchQuality], title: str, path: Path) -> None:
    """Draw where crossing costs what, as an image.

    Two panels, one for each direction; a square lies at the depth of its match in a (across) and
    in b (up), and is coloured by the loss against the weaker parent.

    Args:
        stitch_qualities: All of them.
        title: Above the panels.
        path: Where to write the image; its ending says which kind.
    """
    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    scale = matplotlib.colors.TwoSlopeNorm(0, -_WORST / 4, _WORST)
    drawn = None
    for axes, into in zip(panels, ("b", "a"), strict=True):
        own = [
            stitch_quality for stitch_quality in stitch_qualities if stitch_quality.into == into
        ]
        for kept, edge in ((True, "black"), (False, "#bbbbbb")):
            some = [stitch_quality for stitch_quality in own if stitch_quality.kept == kept]
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
        axes.set_title(f"{'a' if into == 'b' else 'b'} → {into}", fontsize=10)
        axes.set_xlabel("depth in a")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("depth in b")
    figure.suptitle(f"{title}: what a single-stitch network costs", fontsize=11)
    bar = figure.colorbar(cast("matplotlib.cm.ScalarMappable", drawn), ax=panels)
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    bar.set_label("loss against the weaker parent (grey edge: not kept)")
    figure.savefig(path)


# Networks that lose more than this much quality against the weaker parent are left to the CSV.
WORTH_SHOWING = 0.10

# What baselines are called at the head of a column.
_SHORT = {"parent a": "a", "parent b": "b", "ensemble": "ens."}

_QUALITY = {"accuracy": "acc. %", "mean_iou": "mIoU %"}

_CASCADE = "casc."

# What does not fit a terminal of 80 columns.
_LEFT_OUT = ("front", "parameters", "output", "on", "vs duo")

_CAPTION = "bold: on the front. vs: difference in points; * p < 0.05, corrected for all"


def worth_showing(front: Front) -> list[Entry]:
    """Entries for a table that people read: not the cheap networks that are far too inaccurate."""
    parents = [entry.quality for entry in front.entries if entry.kind == "parent"]
    floor = min(parents, default=0.0) - WORTH_SHOWING
    return [entry for entry in front.entries if entry.quality >= floor]


def columns(front: Front) -> dict[str, bool]:
    """Heads of the columns, and whether they are numbers."""
    axis = axis_of(front.cost)
    objectives = [n for n in front.objectives if n not in (front.metric, front.cost)]
    return {
        "network": False,
        "front": False,
        _quality(front): True,
        "95% range": True,
        axis.symbol: True,
        **dict.fromkeys(objectives, True),
        "parameters": True,
        "output": False,
        "on": True,
        **{f"vs {name}": True for name in _rivals(front)},
    }


def cells(entry: Entry, front: Front) -> dict[str, str]:
    """What a row says, by column."""
    axis = axis_of(front.cost)
    low, high = entry.interval
    objectives = [n for n in front.objectives if n not in (front.metric, front.cost)]
    comparisons = {_short(claim.baseline): claim for claim in entry.comparisons}
    return {
        "network": entry.name,
        "front": "yes" if entry.on_front else "",
        _quality(front): f"{100 * entry.quality:.2f}",
        "95% range": f"{100 * low:.1f}–{100 * high:.1f}",
        axis.symbol: _number(entry.test[front.cost] / axis.unit),
        **{name: _figure(entry, name) for name in objectives},
        "parameters": f"{entry.parameters:,}",
        "output": entry.genotype.output if entry.genotype else "",
        "on": str(len(entry.genotype.on)) if entry.genotype else "",
        **{f"vs {name}": _difference(comparisons.get(name)) for name in _rivals(front)},
    }


def rich_table(front: Front) -> Table:
    """Baselines and front for the screen; networks off the front are dim."""
    table = Table(
        title=f"On {front.images} test images",
        caption=_CAPTION,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    shown = {name: right for name, right in columns(front).items() if name not in _LEFT_OUT}
    for name, right in shown.items():
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for entry in worth_showing(front):
        row = cells(entry, front)
        style = "dim" if not entry.on_front else "bold" if entry.kind != STITCHED else "bold red"
        table.add_row(*(row[name] for name in shown), style=style)
    return table


def markdown_table(front: Front) -> list[str]:
    """The same as lines of Markdown, with every column."""
    head = columns(front)
    rows = [cells(entry, front) for entry in worth_showing(front)]
    return [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if number else "---" for number in head.values()) + "|",
        *("| " + " | ".join(row[name] for name in head) + " |" for row in rows),
    ]


def _quality(front: Front) -> str:
    return _QUALITY[front.metric]


def _rivals(front: Front) -> list[str]:
    """What stitched networks are compared with, by the short names of columns."""
    named = [claim.baseline for entry in front.stitched for claim in entry.comparisons]
    return list(dict.fromkeys(_short(name) for name in named))


def _short(baseline: str) -> str:
    return _CASCADE if baseline.startswith("cascade ") else _SHORT.get(baseline, baseline)


def _figure(entry: Entry, name: str) -> str:
    if name not in entry.intervals:
        return _number(entry.test[name])
    low, high = entry.intervals[name]
    return f"{entry.test[name]:.3g} ({low:.3g}–{high:.3g})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _difference(claim: PairedComparison | None) -> str:
    if claim is None:
        return ""
    return f"{100 * claim.difference:+.2f}{'*' if claim.significant else ''}"


def front_html(front: Front) -> str:
    """The finding, the picture and the table of a front as HTML."""
    drawn = io.StringIO()
    draw_image(front, "").savefig(drawn, format="svg")
    svg = drawn.getvalue()
    table = pd.DataFrame([cells(entry, front) for entry in worth_showing(front)])
    return (
        f"<p>{escape(headline(front))}</p>{svg[svg.index('<svg') :]}"
        f"{table.to_html(index=False, border=0)}"
    )
