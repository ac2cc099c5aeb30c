"""Tables of a front and of stitches: for the terminal, the report and notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.table import Table

from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.report.entries import (
    STITCHED,
    Entries,
    Entry,
    PairedComparison,
    short_of_found,
)
from optuna_stitch.utils.text import (
    markdown_table,
    number_text,
    percent_interval_text,
    percent_text,
    points_text,
)

# Stitches that the table of the best ones shows.
_BEST = 12

# Networks that lose more than this much quality against the weakest parent are left to the CSV.
WORTH_SHOWING = 0.10

# What baselines are called at the head of a column.
_PARENT, _ENSEMBLE, _FINISHED, _SHORT_FINISHED = "parent ", "ensemble", " finished", " fin."

_QUALITY = {"accuracy": "acc. %", "mean_iou": "mIoU %", "retained": "kept %"}

_CASCADE = "casc."

_RANGE = "95% range"

# What does not fit a terminal of 80 columns; of two jobs or many parents, neither does the range.
_LEFT_OUT = ("front", "go on", "parameters", "output", "on", "vs duo")

# What an image of a cascade costs that goes on, and the share of test images that does.
_WORST, _GO_ON = "worst", "go on"

_CAPTION = "bold: on a front. vs: difference in points; * p < 0.05, corrected for all"

_CASCADES_CAPTION = "worst: cost of images that go on. underlined: on the front at fixed cost"


def stitch_quality_sentence(stitch_qualities: Sequence[StitchQuality]) -> str:
    """One sentence about all single-stitch networks.

    Args:
        stitch_qualities: At least one.
    """
    drops = pd.Series([stitch_quality.drop for stitch_quality in stitch_qualities])
    kept = sum(stitch_quality.kept for stitch_quality in stitch_qualities)
    return (
        f"{int((drops <= 0.02).sum())} of {len(drops)} single-stitch networks are within 2 points "
        "of their parent (of one job, the weaker one) on validation images; median loss "
        f"{percent_text(drops.median(), 1, sign='')} points; {kept} stitches are kept."
    )


def figures_table(*heads: str, words: int = 1) -> Table:
    """A table for the terminal, of names and figures, without rows yet.

    Args:
        heads: Of its columns.
        words: How many of these, the first ones, are words and no figures.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.caption_justify = "left"
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < words else "right", overflow="fold")
    return table


def stitch_quality_table(stitch_qualities: Sequence[StitchQuality]) -> Table:
    """The best single-stitch networks as a table for the terminal.

    Args:
        stitch_qualities: Of all stitches.
    """
    best = sorted(stitch_qualities, key=lambda stitch_quality: stitch_quality.drop)[:_BEST]
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
            percent_text(stitch_quality.quality, 1, sign=""),
            points_text(stitch_quality.drop, 1),
        )
    return table


def worth_showing(front: Entries) -> list[Entry]:
    """Entries for a table that people read: not the cheap networks that are far too inaccurate.

    Args:
        front: With the entries.
    """
    parents = [entry.quality for entry in front.entries if entry.kind == "parent"]
    floor = min(parents, default=0.0) - WORTH_SHOWING
    return [e for e in front.entries if e.quality >= floor or e.kind == "probe"]


def columns(front: Entries) -> dict[str, bool]:
    """Heads of the columns, and whether they are numbers.

    Args:
        front: What the table shows.
    """
    return {
        "network": False,
        "front": False,
        _quality(front): True,
        _RANGE: True,
        front.unit(front.cost).head: True,
        **dict.fromkeys(_of_sides(front), True),
        **dict.fromkeys(_of_cascades(front), True),
        **dict.fromkeys(_other_objectives(front), True),
        "parameters": True,
        "output": False,
        "on": True,
        **{f"vs {name}": True for name in _rivals(front)},
    }


def cells(entry: Entry, front: Entries) -> dict[str, str]:
    """What a row says, by column.

    Args:
        entry: Of which network.
        front: What the table shows.
    """
    cost = front.unit(front.cost)
    comparisons = {_short(some.baseline): some for some in entry.comparisons}
    return {
        "network": entry.name,
        "front": _front(entry, front),
        _quality(front): percent_text(entry.quality, sign=""),
        _RANGE: percent_interval_text(entry.interval),
        cost.head: cost.text(entry.test[front.cost]),
        **{name: _share_of(entry, figure) for name, figure in _of_sides(front).items()},
        **_cells_of_cascade(entry, front),
        **{name: _figure(entry, name) for name in _other_objectives(front)},
        "parameters": f"{entry.parameters:,}",
        "output": entry.subnetwork.output if entry.subnetwork else "",
        "on": str(len(entry.stitches)) if entry.subnetwork else "",
        **{f"vs {name}": _difference(comparisons.get(name)) for name in _rivals(front)},
    }


def rich_table(front: Entries) -> Table:
    """Baselines and stitched networks for the terminal; what is on no front is dim.

    Args:
        front: What the table shows.
    """
    table = Table(
        title=f"On {front.images} test images",
        caption=f"{_CAPTION}\n{_CASCADES_CAPTION}" if front.has_cascades else _CAPTION,
        box=box.SIMPLE,
        padding=(0, 0 if front.has_cascades else 1, 0, 0),  # to fit 80 columns
    )
    left_out = [*_LEFT_OUT, *([_RANGE] if front.sides or front.every == "all" else [])]
    if not front.sides and any(entry.finished for entry in front.entries):
        # what distillation gives, and what stitching gives beside it
        rivals = [n for n in _rivals(front) if n != "found" and not n.endswith(_SHORT_FINISHED)]
        left_out += [_RANGE, *(f"vs {name}" for name in rivals)]
    left_out += [f"vs {name}" for name in _rivals(front) if "+" in name]  # ensembles of pairs
    shown = {name: right for name, right in columns(front).items() if name not in left_out}
    for name, right in shown.items():
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for entry in worth_showing(front):
        row = cells(entry, front)
        table.add_row(*(row[name] for name in shown), style=_style(entry, front))
    return table


def front_table(front: Entries) -> str:
    """The same in Markdown, with every column.

    Args:
        front: What the table shows.
    """
    head = columns(front)
    rows = [cells(entry, front) for entry in worth_showing(front)]
    return markdown_table(
        list(head),
        [[row[name] for name in head] for row in rows],
        align="".join("r" if number else "l" for number in head.values()),
    )


def _quality(front: Entries) -> str:
    return _QUALITY[front.metric]


def _front(entry: Entry, front: Entries) -> str:
    """Which front a row is on; where there are no cascades, there is only one."""
    return entry.fronts if front.has_cascades else "yes" if entry.on_front else ""


def _of_sides(front: Entries) -> dict[str, str]:
    """Columns that only a table of two jobs has: how good each answer is, by its figure's name."""
    sides = front.sides.items()
    return {f"{side} {_QUALITY[own.metric]}": f"{own.metric}_{side}" for side, own in sides}


def _share_of(entry: Entry, figure: str) -> str:
    return percent_text(entry.test[figure], sign="")


def _of_cascades(front: Entries) -> list[str]:
    """Columns that only a table with cascades has."""
    cascades = [entry for entry in front.entries if entry.is_cascade]
    worst = [_WORST] if any(front.cost in entry.worst for entry in cascades) else []
    return [*worst, _GO_ON] if cascades else []


def _cells_of_cascade(entry: Entry, front: Entries) -> dict[str, str]:
    """The same columns of a row; empty where all images cost the same."""
    worst = entry.worst.get(front.cost) if entry.is_cascade else None
    found = {
        _WORST: "" if worst is None else front.unit(front.cost).text(worst),
        _GO_ON: "" if entry.share is None else percent_text(entry.share, 0, sign=""),
    }
    return {name: found[name] for name in _of_cascades(front)}


def _style(entry: Entry, front: Entries) -> str:
    if not entry.on_a_front:
        return "dim"
    underlined = " underline" if front.has_cascades and entry.on_fixed_front else ""
    return f"bold{' red' if entry.kind == STITCHED else ''}{underlined}"


def _other_objectives(front: Entries) -> list[str]:
    shown = (front.metric, front.cost, *_of_sides(front).values())
    return [name for name in front.objectives if name not in shown]


def _rivals(front: Entries) -> list[str]:
    """What stitched networks are compared with, by the short names of columns."""
    named = [some.baseline for entry in front.stitched for some in entry.comparisons]
    return list(dict.fromkeys(_short(name) for name in named))


def _short(baseline: str) -> str:
    if baseline.startswith("cascade "):
        return _CASCADE
    if baseline.startswith(_PARENT):
        return baseline.removeprefix(_PARENT).replace(_FINISHED, _SHORT_FINISHED)
    if baseline == _ENSEMBLE:
        return "ens."
    # of a pair
    return short_of_found(baseline).removeprefix(f"{_ENSEMBLE} ")


def _figure(entry: Entry, name: str) -> str:
    if name not in entry.intervals:
        return number_text(entry.test[name])
    low, high = (number_text(bound, 3) for bound in entry.intervals[name])
    return f"{number_text(entry.test[name], 3)} ({low}–{high})"


def _difference(comparison: PairedComparison | None) -> str:
    if comparison is None:
        return ""
    return f"{points_text(comparison.difference)}{'*' if comparison.significant else ''}"
