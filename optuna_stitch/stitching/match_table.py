"""The matches of a supernetwork as a table, for programs and for notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import pandas as pd

from optuna_stitch.stitching.layers import Stitch
from optuna_stitch.stitching.matching import Match

_MACS = ["macs_into_b", "macs_into_a"]
_HEADS = {
    "point_a": "point in a",
    "layout_a": "layout in a",
    "point_b": "point in b",
    "layout_b": "layout in b",
    "macs_into_b": "a → b, M MACs",
    "macs_into_a": "b → a, M MACs",
}


def match_table(matches: Sequence[Match], stitches: Mapping[int, Stitch]) -> pd.DataFrame:
    """A row for each match.

    Args:
        matches: In topological order of both networks.
        stitches: By number, ``2 m`` for ``a -> b`` at match m and ``2 m + 1`` for ``b -> a``.

    Returns:
        By ``match``, from 1: ``point_a``, ``layout_a``, ``point_b``, ``layout_b``,
        ``macs_into_b`` and ``macs_into_a`` (multiply-accumulates per image of the stitch
        ``a -> b`` and of ``b -> a``; missing where there is no such stitch).
    """
    rows = []
    for place, match in enumerate(matches):
        ways = [stitches.get(2 * place + way) for way in range(2)]
        macs = [stitch.macs if stitch else None for stitch in ways]
        points = [str(part) for end in (match.a, match.b) for part in (end.name, end.layout)]
        rows.append([*points, *macs])
    index = pd.RangeIndex(1, len(rows) + 1, name="match")
    table = pd.DataFrame(rows, index=index, columns=list(_HEADS))
    return table.astype(dict.fromkeys(_MACS, "Int64"))


def as_html(a: str, b: str, table: pd.DataFrame) -> str:
    """What notebooks show of a supernetwork: its parents, and its table of matches.

    Args:
        a: Name of parent a.
        b: Name of parent b.
        table: See `match_table`.

    Returns:
        HTML without colours of its own, since notebooks style tables.
    """
    stitches = int(table[_MACS].count().sum())
    shown = table.reset_index()
    for column in _MACS:
        shown[column] = [f"{macs / 1e6:,.3f}" if pd.notna(macs) else "–" for macs in table[column]]
    with pd.option_context("display.max_colwidth", None):
        rows = shown.rename(columns=_HEADS).to_html(index=False, border=0)
    return (
        f"<div><b>{html.escape(a)} × {html.escape(b)}</b></div>\n"
        f"<div>{len(table)} matches, {stitches} stitches</div>\n"
        f'<div style="max-height: 30em; overflow: auto">\n{rows}\n</div>'
    )
