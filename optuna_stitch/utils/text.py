"""Numbers and tables as people read them: one format for each kind of number."""

from __future__ import annotations

import re
from collections.abc import Sequence

# The dashboard leaves no room between columns of a Markdown table.
_EM_SPACE = "\u2003"


def shape_text(shape: Sequence[int]) -> str:
    """A shape: ``3×224×224``.

    Args:
        shape: Sizes by dimension.
    """
    return "×".join(map(str, shape))


def number_text(value: float, digits: int = 4) -> str:
    """A number without a unit: ``0.1235``, ``12.35``, and whole from 1,000 on: ``12,346``.

    Args:
        value: The number.
        digits: Significant digits of a number below 1,000.
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{digits}g}"


def millions_text(value: float, decimals: int = 1) -> str:
    """A count in millions: ``1,234.5 M``.

    Args:
        value: The count, in ones.
        decimals: Digits after the point.
    """
    return f"{value / 1e6:,.{decimals}f} M"


def percent_text(share: float, decimals: int = 2, *, sign: str = "%") -> str:
    """A share in percent: ``98.50%``.

    Args:
        share: The share, of 1.
        decimals: Digits after the point.
        sign: What follows; empty in a column whose head says percent.
    """
    return f"{100 * share:.{decimals}f}{sign}"


def percent_interval_text(
    bounds: tuple[float, float], decimals: int = 1, *, between: str = "–", sign: str = ""
) -> str:
    """An interval of shares in percent: ``97.1–99.2``.

    Args:
        bounds: Lower and upper bound, as shares of 1.
        decimals: Digits after the point.
        between: What stands between the bounds.
        sign: What follows the upper bound.
    """
    low, high = (percent_text(bound, decimals, sign="") for bound in bounds)
    return f"{low}{between}{high}{sign}"


def points_text(difference: float, decimals: int = 2) -> str:
    """A difference of shares in percentage points, with its sign: ``+1.25``.

    Args:
        difference: Of two shares of 1.
        decimals: Digits after the point.
    """
    return f"{100 * difference:+.{decimals}f}"


def p_value_text(p_value: float, *, least: float = 0.0) -> str:
    """A p-value: ``0.012``.

    Args:
        p_value: The value.
        least: Smaller ones are only said to be smaller: ``< 0.0001``.
    """
    return f"< {least:f}".rstrip("0") if p_value < least else f"{p_value:.2g}"


def listed_text(items: Sequence[str], last: str = "and") -> str:
    """Items in a sentence: ``a, b and c``.

    Args:
        items: At least one.
        last: The word before the last one.
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def escape_markdown(text: str) -> str:
    """A text without what Markdown takes for more than letters.

    Args:
        text: Any text.
    """
    return re.sub(r"[\\|*_\[\]`<]", r"\\\g<0>", text)


def markdown_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    align: str = "l",
    wide: bool = False,
) -> str:
    """A Markdown table.

    Cells may hold Markdown; a bar or a line break in a cell does not end it.

    Args:
        head: Names of the columns.
        rows: A cell per column each.
        align: ``l`` or ``r`` for each column; the last letter also holds for the columns that
            follow: ``lr`` is text, then numbers.
        wide: Whether to keep columns apart, for the dashboard, which does not.

    Returns:
        Lines without a line break at the end.
    """
    letters = align.ljust(len(head), align[-1])
    marks = ["---:" if letter == "r" else ":---" for letter in letters[: len(head)]]
    room = _EM_SPACE if wide else ""
    lines = [
        [cell if place == 0 else room + cell for place, cell in enumerate(map(_cell, cells))]
        for cells in (head, *rows)
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [lines[0], marks, *lines[1:]])


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.splitlines()))
