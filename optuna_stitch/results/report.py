"""The report: what was found, in one sentence, one picture and one table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from optuna_stitch.results.front import Claim, Entry, Front

# Networks that lose more than this much accuracy against the weaker parent are left to the CSV.
_WORTH_SHOWING = 0.10
# Networks whose accuracies differ by no more than this are about as accurate.
_NEAR = 0.01
# A smaller share of multiply-accumulates saved is not worth a headline.
_WORTH_SAYING = 0.05
# How intervals are made and differences tested.
_METHODS = {
    "accuracy": ("Wilson", "McNemar"),
    "mean_iou": ("bootstrap over images", "paired bootstrap"),
}


def headline(front: Front) -> str:
    """What was found, in one plain sentence that the paired tests bear out."""
    parents = {entry.name: entry for entry in front.baselines}
    shown = [entry for entry in front.stitched if entry.on_front]
    better = [
        (claim.difference, entry, claim)
        for entry in shown
        for claim in entry.claims
        if claim.significant
        and claim.difference > 0
        and entry.test["macs"] <= parents[claim.baseline].test["macs"]
    ]
    if better:
        _, entry, claim = max(better, key=lambda found: found[0])
        rival = parents[claim.baseline]
        saving = 1 - entry.test["macs"] / rival.test["macs"]
        return (
            f"{_capital(entry.name)} has a higher {_what(front)} than {_the(claim.baseline)} "
            f"({_percent(entry)} against {_percent(rival)}, p = {claim.p_value:.3g} after "
            f"correction) and needs {100 * saving:.0f}% fewer multiply-accumulates."
        )
    savings = [
        (1 - entry.test["macs"] / rival.test["macs"], entry, rival)
        for entry in shown
        for rival in _rival(entry, front)
        if entry.test["macs"] < (1 - _WORTH_SAYING) * rival.test["macs"]
    ]
    if savings:
        saving, entry, rival = max(savings, key=lambda found: found[0])
        claim = next(claim for claim in entry.claims if claim.baseline == rival.name)
        chance = "can tell" if claim.significant else "cannot tell"
        return (
            f"{_capital(entry.name)} needs {100 * saving:.0f}% fewer multiply-accumulates than "
            f"{_the(rival.name)}; its {_what(front)} of {_percent(entry)} differs from that one's "
            f"{_percent(rival)} by {100 * claim.difference:+.1f} points, which {front.images} "
            f"test images {chance} from chance (p = {claim.p_value:.2g})."
        )
    if shown:
        return (
            f"{len(shown)} stitched networks lie on the front, but none is cheaper than a parent "
            f"or the ensemble of about the same {_what(front)}."
        )
    return "No stitched network is better than the parents and their ensemble."


def worth_showing(front: Front) -> list[Entry]:
    """Entries for a table that people read: not the cheap networks that are far too inaccurate."""
    floor = min(e.quality for e in front.baselines or front.entries) - _WORTH_SHOWING
    return [entry for entry in front.entries if entry.quality >= floor]


def rich_table(front: Front) -> Table:
    """Parents, ensemble and front, for the screen; networks off the front are dim."""
    table = Table(title=f"On {front.images} test images", caption=_CAPTION)
    for column in _SHOWN:
        table.add_column(column, justify="right" if _COLUMNS[column] else "left", no_wrap=True)
    for entry in worth_showing(front):
        cells = _cells(entry)
        style = "bold" if entry.kind != "stitched" else "" if entry.on_front else "dim"
        table.add_row(*(cells[column] for column in _SHOWN), style=style)
    return table


def write_report(
    front: Front, *, title: str, facts: Sequence[tuple[str, str]], commands: Sequence[str]
) -> str:
    """The report as Markdown.

    Args:
        front: What was found.
        title: Of the report.
        facts: What the figures come from, as (what, which).
        commands: What reproduces or continues this, in a shell.
    """
    shown = worth_showing(front)
    hidden = len(front.entries) - len(shown)
    interval, test = _METHODS[front.metric]
    lines = [
        f"# {title}",
        "",
        headline(front),
        "",
        f"![{_capital(_what(front))} against cost: parents, ensemble and front](front.png)",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "|".join("---:" if number else "---" for number in _COLUMNS.values()) + "|",
        *("| " + " | ".join(_cells(entry).values()) + " |" for entry in shown),
        "",
        f"{_capital(_what(front))} is measured on {front.images} test images that neither the fit "
        f"of the stitches nor the search has seen, with its 95% interval ({interval}). *front* "
        "means that no other network here is at least as good in every objective and better in "
        "one, on the test images; the networks were chosen by their validation figures. *on* "
        "counts the stitches that are switched on and matter. *vs* columns are differences in "
        f"{_what(front)}, in points, against parent a, parent b and their plain ensemble; a star "
        f"marks those that a paired test on the same images ({test}, corrected by Holm for all "
        "comparisons of this report) tells from chance at the 5% level.",
        "",
    ]
    if hidden:
        lines += [
            f"{hidden} more networks of the validation front are cheap but more than "
            f"{100 * _WORTH_SHOWING:.0f} points less accurate than the weaker parent; they are in "
            "`front.csv`.",
            "",
        ]
    lines += ["## Where this comes from", "", "| | |", "|---|---|"]
    lines += [f"| {what} | {which} |" for what, which in facts]
    lines += ["", "```sh", *commands, "```", ""]
    return "\n".join(lines)


# Columns of the report, and whether they are numbers.
_COLUMNS = {
    "network": False,
    "front": False,
    "result %": True,
    "95% range": True,
    "MACs, M": True,
    "parameters": True,
    "output": False,
    "on": True,
    "vs a": True,
    "vs b": True,
    "vs ens.": True,
}
# What of it fits a terminal of 80 columns.
_SHOWN = [name for name in _COLUMNS if name not in ("front", "parameters", "output")]
_CAPTION = "on: stitches. vs: difference to each, in points. * p < 0.05"


def _cells(entry: Entry) -> dict[str, str]:
    claims = {claim.baseline: claim for claim in entry.claims}
    low, high = entry.interval
    return {
        "network": entry.name,
        "front": "yes" if entry.on_front else "",
        "result %": f"{100 * entry.quality:.2f}",
        "95% range": f"{100 * low:.1f}–{100 * high:.1f}",
        "MACs, M": f"{entry.test['macs'] / 1e6:.3f}",
        "parameters": f"{entry.parameters:,}",
        "output": entry.genotype.output,
        "on": str(len(entry.genotype.on)),
        "vs a": _difference(claims.get("parent a")),
        "vs b": _difference(claims.get("parent b")),
        "vs ens.": _difference(claims.get("ensemble")),
    }


def _difference(claim: Claim | None) -> str:
    if claim is None:
        return ""
    return f"{100 * claim.difference:+.2f}{'*' if claim.significant else ''}"


def _rival(entry: Entry, front: Front) -> list[Entry]:
    """The cheapest baseline that one would take instead, if it is about as accurate."""
    as_good = [other for other in front.baselines if other.quality >= entry.quality - _NEAR]
    cheapest = sorted(as_good, key=lambda other: other.test["macs"])[:1]
    return [o for o in cheapest if o.quality <= entry.quality + _NEAR]


def _the(name: str) -> str:
    return f"the {name}" if name == "ensemble" else name


def _percent(entry: Entry) -> str:
    return f"{100 * entry.quality:.1f}%"


def _what(front: Front) -> str:
    return front.metric.replace("_", " ").replace("iou", "IoU")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
