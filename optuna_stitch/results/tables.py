"""Tables of a front: on the screen, in the report, in a notebook."""

from __future__ import annotations

from rich import box
from rich.table import Table

from optuna_stitch.results.judging.front import STITCHED, Claim, Entry, Front
from optuna_stitch.results.pictures.plots import axis_of

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
    claims = {_short(claim.baseline): claim for claim in entry.claims}
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
        **{f"vs {name}": _difference(claims.get(name)) for name in _rivals(front)},
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
    named = [claim.baseline for entry in front.stitched for claim in entry.claims]
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


def _difference(claim: Claim | None) -> str:
    if claim is None:
        return ""
    return f"{100 * claim.difference:+.2f}{'*' if claim.significant else ''}"
