"""What a comparison says: a table, sentences, and files for people and programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from optuna_stitch.evaluation.metrics import unit_of
from optuna_stitch.report.comparison import FEWEST, GOALS, Comparison, Difference, Group, Result
from optuna_stitch.report.comparison_plots import draw_comparison, write_images
from optuna_stitch.search.study import CONTENT
from optuna_stitch.utils.errors import RunError
from optuna_stitch.utils.files import write_text, write_whole
from optuna_stitch.utils.text import number_text, p_value_text, percent_text

TITLE = "Searches compared on validation images"

# What is written; the table comes last, since by it our own files are known again.
FILES = ("compare.html", "compare.png", "compare.svg", "compare.csv")

# Differences of a smaller p-value are told as such.
_LEVEL = 0.05

_COLUMNS = ("run", "group", "seed", "supernetwork", "trials", "networks_on_front")


def rich_table(comparison: Comparison) -> Table:
    """Groups and their runs, for the screen.

    Args:
        comparison: What to show.
    """
    table = Table(title=TITLE)
    for place, column in enumerate(_head(comparison)):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for is_group, (name, *cells) in _rows(comparison):
        if is_group:
            table.add_section()
        table.add_row(name if is_group else f"  {name}", *cells, style="bold" if is_group else "")
    return table


def sentences(comparison: Comparison) -> list[str]:
    """What the runs tell, and what to keep in mind, most important first.

    Args:
        comparison: What to tell of.
    """
    repeats = [
        f"Some runs of {group.name} have all their seeds in common: they repeat a search more "
        "than they try another, and the group is not tested."
        for group in comparison.groups
        if group.repeats
    ]
    return [*_findings(comparison), *repeats, *comparison.notes, _method(comparison), _CAUTION]


def write_comparison(comparison: Comparison, folder: Path, *, force: bool = False) -> None:
    """Write the comparison as a page, images and a table; see `FILES`.

    Args:
        comparison: What to write.
        folder: Where to; it is made.
        force: Whether to write over files that are no earlier comparison.

    Raises:
        RunError: If such files are there.
    """
    paths = {name: folder / name for name in FILES}
    there = [path for path in paths.values() if path.exists()]
    if there and not force and not _is_ours(paths["compare.csv"]):
        raise RunError(
            f"{there[0]} is there already, and was not written by `compare`. Name another folder "
            "with `--to`, or write over it with `--force`."
        )
    write_text(paths["compare.html"], _page(comparison))
    write_images(comparison, paths["compare.png"], paths["compare.svg"])
    frame = data_frame(comparison)
    write_whole(paths["compare.csv"], lambda path: frame.to_csv(path, index=False))


def data_frame(comparison: Comparison) -> pd.DataFrame:
    """All figures in full.

    Args:
        comparison: What to show.

    Returns:
        One row per run. ``share`` is that of the hypervolume after as many trials as all runs
        have, from 0 to 1; values and reference are in the objectives' own units.
    """
    rows = []
    for group in comparison.groups:
        for result in group.results:
            losses = result.outcomes.losses
            row: dict[str, object] = {
                "run": result.name,
                "group": group.name,
                "seed": result.study.seeds.get("study"),
                "supernetwork": result.study.study.user_attrs.get(CONTENT),
                "trials": result.trials,
                "networks_on_front": len(result.outcomes.front),
                "compared_after": comparison.trials,
                "share": result.shares[comparison.trials - 1],
                "share_after_all_trials": result.shares[-1],
            }
            for goal in GOALS:
                needed = result.needed(goal)
                row[f"trials_to_{goal:.0%}"] = None if math.isinf(needed) else int(needed)
            for place, name in enumerate(comparison.objectives):
                row[f"best_{name}"] = comparison.signs[place] * np.nanmin(losses[:, place])
                row[f"reference_{name}"] = comparison.reference[place]
            rows.append(row)
    frame = pd.DataFrame(rows)
    assert tuple(frame.columns[: len(_COLUMNS)]) == _COLUMNS
    counts = [f"trials_to_{goal:.0%}" for goal in GOALS]
    return frame.astype(dict.fromkeys(counts, "Int64"))


_CAUTION = (
    "These are figures on validation images, by which the searches went: they tell searches "
    "apart, for these parents. What the networks found are worth, `optuna-stitch report` says."
)


def _findings(comparison: Comparison) -> list[str]:
    """What tests say of the groups."""
    if len(comparison.groups) == 1:
        return []
    differences = comparison.differences
    method = "Mann-Whitney U"
    if len(differences) > 1:
        method += f", corrected by Holm for {len(differences)} pairs"
    clear = [difference for difference in differences if difference.p_value < _LEVEL]
    unclear = [difference for difference in differences if difference not in clear]
    found = [f"{_said_of(difference, comparison)} ({method})." for difference in clear]
    if unclear:
        pairs = "; ".join(
            f"{pair.first.name} and {pair.second.name}: p = {p_value_text(pair.p_value)}"
            for pair in unclear
        )
        found.append(f"Seeds differ too much, or are too few, to tell apart ({method}): {pairs}.")
    hopeless = [difference.least for difference in unclear if difference.least >= _LEVEL]
    if hopeless:
        found.append(
            "With so few runs even the clearest difference would have "
            f"p = {p_value_text(max(hopeless))}."
        )
    tested = {id(group) for pair in differences for group in (pair.first, pair.second)}
    untested = [group.name for group in comparison.groups if id(group) not in tested]
    if untested:
        found.append(
            f"Not tested: {'; '.join(untested)}. A test is between groups of at least {FEWEST} "
            "runs, each with seeds of its own."
        )
    return found


def _said_of(difference: Difference, comparison: Comparison) -> str:
    groups = (difference.first, difference.second)
    medians = [float(np.median(group.shares(comparison.trials))) for group in groups]
    if medians[0] < medians[1]:
        groups, medians = groups[::-1], medians[::-1]
    return (
        f"After {comparison.trials} trials {groups[0].name} has found more than {groups[1].name}: "
        f"median {percent_text(medians[0])} against {percent_text(medians[1])}, "
        f"p = {p_value_text(difference.p_value)}"
    )


def _method(comparison: Comparison) -> str:
    reference = [
        _with_unit(name, value)
        for name, value in zip(comparison.objectives, comparison.reference, strict=True)
    ]
    counts = {result.trials for result in comparison.results}
    after = f"All are compared after {comparison.trials} trials"
    after += ", which the shortest run has" if len(counts) > 1 else ""
    several = any(len(group.results) > 1 for group in comparison.groups)
    spread = " Groups are told by the median of their runs, and the range." if several else ""
    if len(comparison.objectives) > 1:
        return (
            f"{after}. Hypervolumes are shares of that of the front which all runs here found "
            f"together ({len(comparison.front)} networks), over the reference point "
            f"{', '.join(reference)}: a tenth of that front's width beyond its worst, networks "
            f"left aside that are worse than parents and ensemble in an objective.{spread}"
        )
    best = _with_unit(comparison.objectives[0], comparison.front[0, 0] * comparison.signs[0])
    return (
        f"{after}. Trials to a share are those to that share of the way from {reference[0]}, the "
        f"worst of parents and ensemble, to the best that is known, {best}.{spread}"
    )


def _with_unit(metric: str, value: float) -> str:
    unit = unit_of(metric)
    return f"{unit.words} {number_text(value / unit.scale)}%" if unit.share else unit(value)


def _head(comparison: Comparison) -> list[str]:
    unit = comparison.unit
    symbol = f", {unit.symbol}" if unit.symbol else ""
    found = f"{unit.words}\nafter {comparison.trials}{symbol}"
    return ["run", "trials", found, *(f"trials\nto {goal:.0%}" for goal in GOALS)]


def _rows(comparison: Comparison) -> Iterator[tuple[bool, list[str]]]:
    """Whether a row of the table is a group, and its cells."""
    for group in comparison.groups:
        yield True, _group_cells(comparison, group)
        for result in group.results:
            yield False, _run_cells(comparison, result)


def _group_cells(comparison: Comparison, group: Group) -> list[str]:
    if len(group.results) == 1:
        return [group.name, *([""] * (len(GOALS) + 2))]
    found = [_progress(comparison, result) for result in group.results]
    return [
        group.label,
        "",
        f"{np.median(found):.2f}\n({min(found):.2f}–{max(found):.2f})",
        *(_counts(group.needed(goal, comparison.trials), comparison) for goal in GOALS),
    ]


def _run_cells(comparison: Comparison, result: Result) -> list[str]:
    return [
        result.name,
        str(result.trials),
        f"{_progress(comparison, result):.2f}",
        *(_count(result.needed(goal), result.trials) for goal in GOALS),
    ]


def _progress(comparison: Comparison, result: Result) -> float:
    """What a run found after as many trials as all have, in the unit of tables."""
    return float(result.progress[comparison.trials - 1]) / comparison.unit.scale


def _counts(needed: Sequence[float], comparison: Comparison) -> str:
    """The median of some numbers of trials, and their range."""
    low, median, high = (
        _count(float(function(needed)), comparison.trials) for function in (min, np.median, max)
    )
    return median if low == high else f"{median}\n({low}–{high})"


def _count(needed: float, trials: int) -> str:
    return f"{needed:g}" if math.isfinite(needed) else f">{trials}"


def _is_ours(table: Path) -> bool:
    """Whether a file is a table that was written here."""
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(",".join(_COLUMNS))


def _page(comparison: Comparison) -> str:
    """All of it as one page that needs no network."""
    rows = [_html_row(cells, "th" if is_group else "td") for is_group, cells in _rows(comparison)]
    return _PAGE.format(
        title=TITLE,
        figure=draw_comparison(comparison).to_html(full_html=False, include_plotlyjs=True),
        head=_html_row(_head(comparison), "th"),
        rows="\n".join(rows),
        sentences="\n".join(f"<p>{escape(said)}</p>" for said in sentences(comparison)),
    )


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 75em; margin: 1em auto; padding: 0 1em; }}
p {{ max-width: 50em; line-height: 1.4; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ padding: 0.2em 0.8em; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
td:first-child {{ padding-left: 2em; }}
thead {{ border-bottom: 1px solid; }}
</style>
</head>
<body>
<h1>{title}</h1>
{figure}
<table>
<thead>{head}</thead>
<tbody>
{rows}
</tbody>
</table>
{sentences}
</body>
</html>
"""
