"""The front of a study, with what is to be said of it in one sentence."""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape

import pandas as pd

from optuna_stitch.report.entries import Entries, Entry, PairedComparison
from optuna_stitch.report.plots import front_figure
from optuna_stitch.report.tables import cells, worth_showing
from optuna_stitch.utils.text import listed_text, p_value_text, percent_text, points_text

# Networks whose qualities differ by no more than this are about as good.
_NEAR = 0.01

# A smaller share of the cost saved is not worth a headline.
_WORTH_SAYING = 0.05

# A network that loses more against the cheapest alternative is not worth any saving.
_LOSS = 0.05


@dataclass(frozen=True)
class Finding:
    """What a report opens with.

    Args:
        sentence: The finding.
        entry: The network that it is about; None where it is about none.
    """

    sentence: str
    entry: Entry | None


@dataclass(frozen=True)
class Front(Entries):
    """Baselines and the networks that a study found, with figures from the test split.

    `evaluate_front` makes it; notebooks show its headline, a plot and a table.

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
        """What was found, in one plain sentence."""
        return self.finding.sentence

    @property
    def finding(self) -> Finding:
        """What was found: the strongest of these that holds.

        A network that is better than a baseline and costs no more; one that is as good and
        cheaper; one that is cheaper than all baselines and loses little; or that there is none.
        """
        shown = self.stitched_front
        for kind in (_better, _cheaper, _cheapest):
            found = kind(self, shown)
            if found is not None:
                return found
        if shown:
            lie = "stitched networks lie" if len(shown) > 1 else "stitched network lies"
            return Finding(
                f"{len(shown) if len(shown) > 1 else 'A'} {lie} on the front, but none is cheaper "
                "than a parent or a combination of both of about the same "
                f"{self.unit(self.metric).words}.",
                max(shown, key=lambda entry: entry.quality),
            )
        several = len(self.front) > 1
        return Finding(
            f"No stitched network is worth its cost: {listed_text([_the(e) for e in self.front])} "
            f"{'are' if several else 'is'} at least as good and {'cost' if several else 'costs'} "
            "no more.",
            None,
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


def _better(front: Entries, shown: list[Entry]) -> Finding | None:
    """A network that is significantly better than a baseline that costs as much or more."""
    found = [
        (rival.on_front, comparison.difference, entry, comparison, rival)
        for entry in shown
        for comparison, rival in _rivals(front, entry)
        if comparison.significant
        and comparison.difference > 0
        and entry.test[front.cost] <= rival.test[front.cost]
    ]
    if not found:
        return None
    _, _, entry, comparison, rival = max(found, key=lambda each: each[:2])
    saving = 1 - entry.test[front.cost] / rival.test[front.cost]
    needs = (
        f"needs {percent_text(saving, 0)} fewer {front.unit(front.cost).words}"
        if saving >= _WORTH_SAYING
        else "costs no more"
    )
    return Finding(
        f"A stitched network ({entry.name}) has a higher {front.unit(front.metric).words} than "
        f"{_the(rival)} ({_percent(entry)} against {_percent(rival)}, "
        f"p = {p_value_text(comparison.p_value)} after correction) and {needs}.",
        entry,
    )


def _cheaper(front: Entries, shown: list[Entry]) -> Finding | None:
    """A network that is about as good as the cheapest such baseline, for less."""
    found: list[tuple[float, Entry, Entry]] = []
    for entry in shown:
        as_good = [other for other in front.baselines if other.quality >= entry.quality - _NEAR]
        for rival in sorted(as_good, key=lambda other: other.test[front.cost])[:1]:
            saving = 1 - entry.test[front.cost] / rival.test[front.cost]
            if rival.quality <= entry.quality + _NEAR and saving > _WORTH_SAYING:
                found.append((saving, entry, rival))
    if not found:
        return None
    saving, entry, rival = max(found, key=lambda each: each[0])
    comparison = entry.comparison(rival)
    chance = ""
    if comparison is not None:
        told = "can tell" if comparison.significant else "cannot tell"
        chance = (
            f", which {front.images} test images {told} from chance "
            f"(p = {p_value_text(comparison.p_value)})"
        )
    return Finding(
        f"A stitched network ({entry.name}) needs {percent_text(saving, 0)} fewer "
        f"{front.unit(front.cost).words} than {_the(rival)}; its "
        f"{front.unit(front.metric).words} of {_percent(entry)} differs from that one's "
        f"{_percent(rival)} by {points_text(entry.quality - rival.quality, 1)} points{chance}.",
        entry,
    )


def _cheapest(front: Entries, shown: list[Entry]) -> Finding | None:
    """A network that costs less than all baselines, and loses little against the cheapest."""
    rival = min(front.baselines, key=lambda other: other.test[front.cost])
    found = [
        entry
        for entry in shown
        if entry.test[front.cost] < (1 - _WORTH_SAYING) * rival.test[front.cost]
        and entry.quality >= rival.quality - _LOSS
    ]
    if not found:
        return None
    entry = max(found, key=lambda each: each.quality)
    saving = 1 - entry.test[front.cost] / rival.test[front.cost]
    comparison = entry.comparison(rival)
    chance = f", p = {p_value_text(comparison.p_value)}" if comparison is not None else ""
    less = rival.quality - entry.quality
    return Finding(
        f"A stitched network ({entry.name}) needs {percent_text(saving, 0)} fewer "
        f"{front.unit(front.cost).words} than {_the(rival)}, the cheapest alternative, and its "
        f"{front.unit(front.metric).words} is {percent_text(abs(less), 1, sign='')} points "
        f"{'lower' if less >= 0 else 'higher'} "
        f"({_percent(entry)} against {_percent(rival)}{chance}).",
        entry,
    )


def _rivals(front: Entries, entry: Entry) -> list[tuple[PairedComparison, Entry]]:
    by_name = {other.name: other for other in front.baselines}
    return [(comparison, by_name[comparison.baseline]) for comparison in entry.comparisons]


def _the(entry: Entry) -> str:
    if entry.kind == "cascade":
        return f"a cascade of the parents ({entry.name.removeprefix('cascade ')})"
    return f"the {entry.name}" if entry.kind in ("ensemble", "duo") else entry.name


def _percent(entry: Entry) -> str:
    return percent_text(entry.quality, 1)
