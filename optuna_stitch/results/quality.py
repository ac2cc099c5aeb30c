"""The quality report of a fit for people: a table and a heat map of all single crossovers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from optuna_stitch.evaluation.crossovers import Crossover

_SHOWN = 12
# Losses beyond this share look alike: such a stitch is of no use anyway.
_WORST = 0.2


def summary(crossovers: Sequence[Crossover]) -> str:
    """One sentence about all crossovers."""
    drops = pd.Series([crossover.drop for crossover in crossovers])
    return (
        f"{int((drops <= 0.02).sum())} of {len(drops)} single crossovers are within 2 points of "
        f"the weaker parent on validation images; median loss {100 * drops.median():.1f} "
        f"points; {sum(crossover.kept for crossover in crossovers)} stitches are kept."
    )


def rich_crossovers(crossovers: Sequence[Crossover]) -> Table:
    """The best crossovers as a table for the terminal."""
    best = sorted(crossovers, key=lambda crossover: crossover.drop)[:_SHOWN]
    table = Table(title=f"The best {len(best)} of {len(crossovers)} single crossovers")
    table.add_column("stitch")
    for title in ("R²", "kernel", "rank", "M MACs", "result %", "loss"):
        table.add_column(title, justify="right")
    for crossover in best:
        table.add_row(
            crossover.switch,
            f"{crossover.r2:.2f}",
            f"{crossover.kernel} × {crossover.kernel}",
            str(crossover.rank),
            f"{crossover.stitch_macs / 1e6:.2f}",
            f"{100 * crossover.quality:.1f}",
            f"{100 * crossover.drop:+.1f}",
        )
    return table


def draw_crossovers(crossovers: Sequence[Crossover], title: str, path: Path) -> None:
    """Draw where crossing costs what, as an image.

    Two panels, one for each direction; a square lies at the depth of its match in a (across) and
    in b (up), and is coloured by the loss against the weaker parent.

    Args:
        crossovers: All of them.
        title: Above the panels.
        path: Where to write the image; its ending says which kind.
    """
    figure = Figure(figsize=(9, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    scale = matplotlib.colors.TwoSlopeNorm(0, -_WORST / 4, _WORST)
    drawn = None
    for axes, into in zip(panels, ("b", "a"), strict=True):
        own = [crossover for crossover in crossovers if crossover.into == into]
        for kept, edge in ((True, "black"), (False, "#bbbbbb")):
            some = [crossover for crossover in own if crossover.kept == kept]
            drawn = axes.scatter(
                [crossover.depth_a for crossover in some],
                [crossover.depth_b for crossover in some],
                c=[crossover.drop for crossover in some],
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
    figure.suptitle(f"{title}: what a single crossover costs", fontsize=11)
    bar = figure.colorbar(cast("matplotlib.cm.ScalarMappable", drawn), ax=panels)
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, 0))
    bar.set_label("loss against the weaker parent (grey edge: not kept)")
    figure.savefig(path)
