"""What a front shows of itself in a notebook."""

from __future__ import annotations

import io
from html import escape

import pandas as pd

from optuna_stitch.results.judging.finding import headline
from optuna_stitch.results.judging.front import Front
from optuna_stitch.results.pictures.plots import draw_image
from optuna_stitch.results.tables import cells, worth_showing


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
