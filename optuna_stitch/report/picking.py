"""Pick one network of a front: the best within a budget, the cheapest that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from optuna_stitch.evaluation.metrics import Unit, unit_of
from optuna_stitch.utils.errors import ConfigError, StudyError
from optuna_stitch.utils.text import listed_text, percent_interval_text, percent_text

# Columns that are no figure, of those that `Entries.table` has without a prefix.
_PLAIN = ("parameters", "share")


@dataclass(frozen=True)
class Bound:
    """What a picked network must keep to.

    Args:
        name: As it was given, ``max_macs`` or ``min_accuracy``.
        figure: Which figure it is about.
        value: The bound.
    """

    name: str
    figure: str
    value: float

    def excess(self, value: float) -> float:
        """By what share of the bound a value is beyond it; none is 0 or less.

        Args:
            value: Of a network.
        """
        beyond = value - self.value if self.name.startswith("max_") else self.value - value
        return beyond / max(abs(self.value), 1e-12)


@dataclass(frozen=True)
class Pick:
    """A network of a front, and why it was picked.

    Args:
        name: As in the report: ``trial 117``, ``parent a``, ``cascade 25%``.
        trial: Its number, where it is a trial of the study.
        row: All that the report's table says of it.
        reason: Why it was picked, in a sentence.
        description: Its figures, and what it is.
        neighbours: What the next networks of the front would give, a line each.

    Example:
        >>> front = st.evaluate_front(study, objective, data.test)
        >>> picked = front.pick(min_accuracy=0.5)
        >>> bool(picked.row["test_accuracy"] >= 0.5)
        True
    """

    name: str
    trial: int | None
    row: pd.Series
    reason: str
    description: str
    neighbours: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.reason, self.description, *self.neighbours])


def pick(
    table: pd.DataFrame,
    bounds: Mapping[str, float],
    *,
    metric: str = "accuracy",
    cost: str = "macs",
    knee: bool = False,
    fixed_cost: bool = False,
    unit: Callable[[str], Unit] = unit_of,
) -> Pick:
    """Pick a network of a front by what it must keep to.

    It is the best within the bounds; the cheapest, where all bounds are on how good it is; or the
    knee: the one farthest above the straight line from the cheapest to the best, on axes that
    both run from 0 to 1 (Das, 1999).

    Args:
        table: What `Entries.table` returns, also as it was written to ``front.csv``.
        bounds: By ``max_`` or ``min_`` and the name of a figure: ``{"max_macs": 5e7}``. Figures
            are those on the test split; ``worst_macs`` is what the most expensive image costs.
        metric: What tells how good a network is.
        cost: What tells how cheap it is.
        knee: Whether to pick the knee of what keeps to the bounds.
        fixed_cost: Whether networks of which some images cost more are left out.
        unit: What people read a figure in.

    Raises:
        ConfigError: If a bound is about no figure of the report, or beyond all of its values.
        StudyError: If no network keeps to the bounds; names the one that comes nearest.
    """
    checked = [_bound(table, name, value, unit) for name, value in bounds.items()]
    on_front = (
        table["on_fixed_front"] if fixed_cost else table["on_front"] | table["on_fixed_front"]
    )
    front = table[on_front.astype(bool)].sort_values(f"test_{cost}", kind="stable")
    excess = pd.DataFrame(
        {bound.name: _values(front, bound.figure).map(bound.excess) for bound in checked},
        index=front.index,
    ).clip(lower=0)
    # what was not measured of a network keeps to no bound
    worst = excess.fillna(np.inf).max(axis=1) if checked else pd.Series(0.0, front.index)
    fitting = front[worst <= 0]
    if fitting.empty:
        nearest = front.iloc[int(worst.argmin())]
        raise StudyError(
            f"None of the {len(front)} networks on the front has {_wanted(checked, unit)}. "
            f"Nearest comes {nearest['name']}, with "
            f"{listed_text([_text(nearest, bound.figure, unit) for bound in checked])}."
        )
    quality = fitting[f"test_{metric}"]
    floors_only = all(bound.name.startswith("min_") for bound in checked)
    if knee:
        chosen, why = (
            _knee(fitting, metric, cost),
            "is the knee, where more cost begins to pay less,",
        )
    elif checked and floors_only:
        chosen, why = fitting.iloc[0], f"has the fewest {unit(cost).words}"
    else:  # of equals the cheapest, which comes first
        chosen, why = fitting.iloc[int(quality.argmax())], f"has the highest {unit(metric).words}"
    within = f"on the front{f' with {_wanted(checked, unit)}' if checked else ''}"
    if len(fitting) == 1:
        reason = f"{chosen['name']} is the only network {within}."
    else:
        reason = f"{chosen['name']} {why} of the {len(fitting)} networks {within}."
    trial = chosen["trial"]
    return Pick(
        name=str(chosen["name"]),
        trial=None if pd.isna(trial) else int(trial),
        row=chosen,
        reason=reason,
        description=_description(chosen, metric, cost, unit),
        neighbours=tuple(_neighbours(front, fitting, chosen, metric, cost, unit)),
    )


def _bound(table: pd.DataFrame, name: str, value: float, unit: Callable[[str], Unit]) -> Bound:
    side, _, figure = name.partition("_")
    columns = [str(column) for column in table.columns]
    known = [column.removeprefix("test_") for column in columns if column.startswith("test_")]
    known = [some for some in known if not some.endswith(("_low", "_high"))]
    known += [column for column in columns if column.startswith("worst_") or column in _PLAIN]
    if side not in ("max", "min") or figure not in known:
        raise ConfigError(
            f"There is no bound {name!r}: it is max_ or min_ and a figure of the report, which "
            f"has {', '.join(dict.fromkeys(known))}."
        )
    if unit(figure).share and value > 1:
        raise ConfigError(f"{name} is a share of 1, not {value:g}: 0.98 is 98%.")
    return Bound(name, figure, value)


def _values(rows: pd.DataFrame, figure: str) -> pd.Series:
    values: pd.Series = rows[f"test_{figure}" if f"test_{figure}" in rows else figure]
    return values.astype(float)


def _text(row: pd.Series, figure: str, unit: Callable[[str], Unit]) -> str:
    value = float(row[f"test_{figure}" if f"test_{figure}" in row else figure])
    shown = unit(figure)
    if np.isnan(value):
        return f"no {shown.words} measured"
    return f"{shown(value)} {shown.words}" if shown.share else shown(value)


def _wanted(bounds: list[Bound], unit: Callable[[str], Unit]) -> str:
    """The bounds in words: ``at most 50 M MACs and at least 93.00% accuracy``."""
    words = []
    for bound in bounds:
        shown = unit(bound.figure)
        limit = "at most" if bound.name.startswith("max_") else "at least"
        value = shown(bound.value)
        words.append(f"{limit} {value}{f' {shown.words}' if shown.share else ''}")
    return listed_text(words)


def _knee(rows: pd.DataFrame, metric: str, cost: str) -> pd.Series:
    """The row farthest above the line from the cheapest to the best."""
    scaled = []
    for name in (cost, metric):
        values = rows[f"test_{name}"].to_numpy(dtype=float)
        span = values.max() - values.min()
        scaled.append((values - values.min()) / span if span > 0 else np.zeros_like(values))
    return rows.iloc[int(np.argmax(scaled[1] - scaled[0]))]


def _description(row: pd.Series, metric: str, cost: str, unit: Callable[[str], Unit]) -> str:
    quality = _text(row, metric, unit)
    low, high = (float(row.get(f"test_{metric}_{end}", np.nan)) for end in ("low", "high"))
    if not np.isnan(low):
        quality += f" ({percent_interval_text((low, high), 2, between=' to ')})"
    parts = [quality, _text(row, cost, unit)]
    worst, share = row.get(f"worst_{cost}"), row.get("share")
    if not pd.isna(share):
        parts[-1] += " on average"
        if not pd.isna(worst):
            parts.append(f"{unit(cost)(float(worst))} at worst")
        parts.append(f"{percent_text(float(share), 0)} of the images go on")
    parts.append(f"{int(row['parameters']):,} parameters")
    stitches = row.get("stitches")
    on = "" if pd.isna(stitches) or not stitches else f", {stitches}"
    return f"On the test images: {', '.join(parts)}.\nOutput {row['output']}{on}."


def _neighbours(
    front: pd.DataFrame,
    fitting: pd.DataFrame,
    chosen: pd.Series,
    metric: str,
    cost: str,
    unit: Callable[[str], Unit],
) -> list[str]:
    """The best of the cheaper networks, and the cheapest of the better ones."""
    price, quality = chosen[f"test_{cost}"], chosen[f"test_{metric}"]
    cheaper = front[(front[f"test_{cost}"] < price) & (front[f"test_{metric}"] < quality)]
    dearer = front[(front[f"test_{cost}"] > price) & (front[f"test_{metric}"] > quality)]
    best = cheaper[f"test_{metric}"] == cheaper[f"test_{metric}"].max()
    said = []
    for word, rows in (("cheaper", cheaper[best].head(1)), ("better", dearer.head(1))):
        for index, row in rows.iterrows():
            points = abs(row[f"test_{metric}"] - quality)
            paid = unit(cost)(float(row[f"test_{cost}"]))
            if price > 0:
                change = float(row[f"test_{cost}"] / price - 1)
                more = "more" if change > 0 else "fewer"
                paid = f"{percent_text(abs(change), 0)} {more} {unit(cost).words}"
            beyond = "" if index in fitting.index else ", beyond the bounds"
            said.append(
                f"Next {word}: {row['name']}, {percent_text(float(points), 1, sign='')} points "
                f"{'more' if word == 'better' else 'less'} {unit(metric).words} for {paid}"
                f"{beyond}."
            )
    return said
