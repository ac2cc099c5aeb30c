"""The fronts of a study, with what is to be said of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape

import pandas as pd

from optuna_stitch.report.entries import Entries
from optuna_stitch.report.findings import Finding, find
from optuna_stitch.report.picking import Pick, pick
from optuna_stitch.report.plots import front_figure
from optuna_stitch.report.tables import cells, worth_showing


@dataclass(frozen=True)
class Front(Entries):
    """Baselines and the networks that a study found, with figures from the test split.

    There are two fronts: at average cost, where a cascade costs less for the images that leave
    early; and at fixed cost, of networks that cost the same for every image, for where nothing can
    be skipped. `evaluate_front` makes it; notebooks show its headline, a plot and a table.

    Its arguments are those of `Entries`.

    Example:
        >>> front = st.evaluate_front(study, objective, data.test)
        >>> [entry.name for entry in front.baselines[:3]]
        ['parent a', 'parent b', 'ensemble']
        >>> front.headline.endswith(".")
        True
        >>> int(front.table()["on_front"].sum()) == len(front.front)
        True
    """

    @property
    def headline(self) -> str:
        """What was found, in one plain sentence, or one for each front."""
        return self.finding.sentence

    @property
    def finding(self) -> Finding:
        """What was found, as `find` says."""
        return find(self)

    def pick(self, *, knee: bool = False, fixed_cost: bool = False, **bounds: float) -> Pick:
        """Pick a network by what it must keep to; see `optuna_stitch.report.picking.pick`.

        Args:
            knee: Whether to pick the one from which on more cost pays less.
            fixed_cost: Whether cascades, which cost less for some images, are left out.
            bounds: ``max_macs=5e7``, ``min_accuracy=0.93``; of any figure on the test split.

        Raises:
            ConfigError: If a bound is about no figure of the report.
            StudyError: If no network keeps to the bounds; names the one that comes nearest.
        """
        return pick(
            self.table(),
            bounds,
            metric=self.metric,
            cost=self.cost,
            knee=knee,
            fixed_cost=fixed_cost,
            unit=self.unit,
        )

    def _repr_html_(self) -> str:
        """The headline, the plot and the table, for notebooks."""
        drawn = io.StringIO()
        front_figure(self, "").savefig(drawn, format="svg")
        svg = drawn.getvalue()
        table = pd.DataFrame([cells(entry, self) for entry in worth_showing(self)])
        return (
            f"<p>{escape(self.headline)}</p>{svg[svg.index('<svg') :]}"
            f"{table.to_html(index=False, border=0)}"
        )
