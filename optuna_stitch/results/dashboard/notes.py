"""What the dashboard's notes say of a front and of its networks, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna_stitch.results.judging.front import STITCHED, Claim, Entry, Front
from optuna_stitch.results.pictures.plots import SHARES, axis_of, words_of

# Stitches that a note names; the drawing has them all.
_STITCHES = 8
# The dashboard leaves no room between columns.
_ROOM = "\u2003"


def study_note(front: Front, summary: str, link: Callable[[int], str]) -> str:
    """What was found, a table of the front and the baselines, and how to read it.

    Args:
        front: What was found.
        summary: In one sentence.
        link: The address of a trial's page, by its number.
    """
    figures = list(dict.fromkeys([front.metric, *front.objectives, front.cost]))
    rows = []
    for entry in front.entries:
        if entry.on_front or entry.kind != STITCHED:
            name = f"**{_escaped(entry.name)}**" if entry.on_front else _escaped(entry.name)
            # an arrow beside the name: on dark pages the dashboard's links are hard to read
            arrow = f" [↗]({link(entry.trial)})" if entry.trial is not None else ""
            rows.append([name + arrow, *(_with_interval(entry, figure) for figure in figures)])
    parts = [
        # short, since the dashboard has a button beside the first line
        "**What was found**",
        _escaped(summary),
        _table([f"{front.images:,} test images", *map(_heading, figures)], rows),
        "Bold: on the front, where no other network here is at least as good in every objective "
        "and better in one. In brackets: 95% intervals. The test images were seen neither by the "
        "fit of the stitches nor by the search; the values of trials, in the dashboard's own "
        "plots, are from the validation images.",
        "An arrow opens the trial. Stitched networks on the front have a note there: paired "
        "comparisons with the baselines, the command that exports the network, and a drawing.",
    ]
    return "\n\n".join(parts)


def trial_note(entry: Entry, front: Front, *, drawing: str, command: str) -> str:
    """What one network of the front is, and how good.

    Args:
        entry: The network.
        front: What it is on.
        drawing: The address of its drawing.
        command: Shell command that exports it.
    """
    stitches = front.stitches(entry)
    named = [f"`{name}`" for name in stitches[:_STITCHES]]
    if len(stitches) > _STITCHES:
        named.append(f"and {len(stitches) - _STITCHES} more, see below")
    output = entry.genotype.output if entry.genotype else ""
    test = {**entry.test, "parameters": float(entry.parameters)}
    figures = [
        [_heading(name), _value(name, value), _interval(entry, name), _validation(entry, name)]
        for name, value in test.items()
    ]
    claims = [
        [
            _escaped(claim.baseline),
            f"{100 * claim.difference:+.2f}",
            _p_value(claim),
        ]
        for claim in entry.claims
    ]
    parts = [
        f"**On the front, with output {output}**",
        f"Stitches that are on: {', '.join(named)}.",
        _table([f"{front.images:,} test images", "", "95% interval", "validation"], figures),
        "Paired comparisons on the same images, corrected for all of the report; ★ differences "
        "that are told from chance at the 5% level:",
        _table([f"{words_of(front.metric)} against", "points", "p"], claims),
        f"```sh\n{command}\n```",
        f"![What {_escaped(entry.name)} computes of both parents]({drawing})",
    ]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    align = [":---", *["---:"] * (len(head) - 1)]
    roomy = [[first, *(_ROOM + cell for cell in rest)] for first, *rest in [head, *rows]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [roomy[0], align, *roomy[1:]])


def _heading(name: str) -> str:
    """A figure's name, with the unit that `_value` leaves out."""
    return f"{words_of(name)} (%)" if name in SHARES else words_of(axis_of(name).symbol)


def _value(name: str, value: float) -> str:
    if name in SHARES:
        return f"{100 * value:.2f}"
    value /= axis_of(name).unit
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _interval(entry: Entry, name: str) -> str:
    return "–".join(_value(name, bound) for bound in entry.intervals.get(name, ()))


def _p_value(claim: Claim) -> str:
    shown = f"{claim.p_value:.2g}" if claim.p_value >= 1e-4 else "< 0.0001"
    return f"{shown}{' ★' if claim.significant else ''}"


def _with_interval(entry: Entry, name: str) -> str:
    interval = _interval(entry, name)
    return _value(name, entry.test[name]) + (f" ({interval})" if interval else "")


def _validation(entry: Entry, name: str) -> str:
    return _value(name, entry.values[name]) if name in entry.values else ""


def _escaped(name: str) -> str:
    """A text without what Markdown takes for more than letters."""
    return "".join(f"\\{letter}" if letter in r"\|*_[]`<" else letter for letter in name)
