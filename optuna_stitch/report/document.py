"""Write the report: what was found, in a sentence or two, one plot, one table, and its origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna_stitch.report.entries import Entry
from optuna_stitch.report.front import Front
from optuna_stitch.report.plots import HISTORY_TITLE, SWITCHES_TITLE, gained_by
from optuna_stitch.report.tables import WORTH_SHOWING, front_table, worth_showing
from optuna_stitch.report.wording import answer_text, cost_text, export_of
from optuna_stitch.utils.text import (
    markdown_table,
    percent_interval_text,
    percent_text,
)

# How intervals are made and differences tested.
_METHODS = {
    "accuracy": ("Wilson", "McNemar"),
    "mean_iou": ("bootstrap over images", "paired bootstrap"),
}


@dataclass(frozen=True)
class Pictures:
    """Where a report's pictures are, relative to it.

    Args:
        front: The front.
        history: Hypervolume over the trials; None where no trial is within its constraints.
        switches: How often each stitch is on; None where no stitched network is on the front.
        gained: Images that a network gets right and all parents get wrong, where there are some.
        networks: Drawings of front networks, by trial.
    """

    front: str
    history: str | None
    switches: str | None
    gained: str | None
    networks: Mapping[int, str]


def write_report(
    front: Front,
    pictures: Pictures,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    commands: Sequence[str],
    export: str,
) -> str:
    """The report as Markdown.

    Args:
        front: What was found.
        pictures: What was drawn of it.
        title: Of the report.
        facts: What the figures come from, as (what, which).
        commands: What reproduces or continues this, in a shell.
        export: The command that exports a network, with ``{trial}`` for its number.
    """
    return "\n".join(
        [
            f"# {title}",
            "",
            front.headline,
            "",
            f"![{_capital(front.unit(front.metric).words)} against cost]({pictures.front})",
            "",
            front_table(front),
            "",
            *_how_to_read(front),
            *_networks(front, pictures, export),
            *_images(front, pictures),
            *_search(pictures),
            *_alternatives(front),
            "## Where this comes from",
            "",
            markdown_table(["", ""], facts),
            "",
            "```sh",
            *commands,
            "```",
            "",
        ]
    )


_OF_TWO = (
    "*Parent a* and *parent b* are the two trained networks that the title names. A *cascade* "
    "asks the cheaper one first and, for the share of validation images that its name says, "
    "goes on to the other. A *stitched* network begins in one parent and crosses into the "
    "other, once or more, by small linear layers (stitches); nothing of the parents was "
    "trained again. Where its output is *then both*, it is a stitched cascade: one head "
    "answers, and images of which it is unsure go on to the other head, whose rest runs on "
    "what is computed already; the answer is a mean of both."
)

_OF_MANY = (
    "*Parent a*, *parent b* and so on are the trained networks that the title names, in its "
    "order. *ensemble* is the mean of all of them, *ensemble a+b* that of a and b. A *cascade* "
    "asks the cheaper one of two first and, for the share of validation images that its name "
    "says, both. A *stitched* network begins in one parent or more and crosses into others by "
    "small linear layers (stitches); nothing of the parents was trained again. Its output says "
    "whose heads answer, as in *a+b*; where it is *a then a+b*, it is a stitched cascade: the "
    "head of a answers, and images of which it is unsure go on to that of b, whose rest runs on "
    "what is computed already; the answer is a mean of both."
)


def _how_to_read(front: Front) -> list[str]:
    if front.sides:
        return _how_to_read_two_jobs(front)
    interval, test = _METHODS[front.metric]
    words = front.unit(front.metric).words
    lines = [
        _OF_TWO if len(front.parents) == 2 else _OF_MANY,
        "",
        f"{_capital(words)} is measured on {front.images} test images that neither the fit of the "
        f"stitches nor the search has seen, with its 95% interval ({interval}). *front* means "
        "that no other row is at least as good in every objective and better in one, on the test "
        "images; networks were chosen, and baselines tuned, by validation images. *on* counts the "
        f"stitches that are switched on and matter. *vs* columns are differences in {words}, in "
        "points, against each baseline, of the cascades against the most expensive one that costs "
        f"no more; a star marks those that a paired test on the same images ({test}, corrected by "
        "Holm for all comparisons of this report) tells from chance at the 5% level. How good "
        "each network is at each class is in `classes.csv`.",
        "",
    ]
    if front.has_cascades:
        lines += [
            "There are two fronts, and some rows are on *both*. At *fixed* cost every image costs "
            "the same, as in a fixed graph or a batch on an accelerator, which cannot skip work: "
            "there cascades are no alternative. At *average* cost they are: a cascade's cost is "
            "the average over the test images, *worst* is what an image costs that goes on, and "
            "*go on* is the share of test images that does, in percent.",
            "",
        ]
    if any(entry.finished for entry in front.entries):
        lines += [_FINISHED, ""]
    if front.optimism is not None:
        way = "higher" if front.optimism > 0 else "lower"
        lines += [
            "A search picks networks by validation images, and with them lucky ones: there, "
            f"{words} of the stitched networks above was {way} than on the test images by "
            f"{percent_text(abs(front.optimism), 1, sign='')} points, in the median.",
            "",
        ]
    hidden = len(front.entries) - len(worth_showing(front))
    if hidden:
        lines += [
            f"{hidden} more networks of the validation front are cheap but more than "
            f"{percent_text(WORTH_SHOWING, 0, sign='')} points less accurate than the weaker "
            "parent; they are in `front.csv`.",
            "",
        ]
    return lines


_FINISHED = (
    "A *finished* network is one of the study's whose weights were trained further, to answer as "
    "the parents do. *vs found* compares it with the network as it was found; parents and other "
    "networks that are finished were trained likewise (same images, teachers, steps), so that "
    "*vs a fin.* and *vs b fin.* say what stitching is worth beside distillation."
)


def _how_to_read_two_jobs(front: Front) -> list[str]:
    methods = {side: _METHODS[own.metric] for side, own in front.sides.items()}
    counts = " and ".join(f"{own.images} for {side}" for side, own in front.sides.items())
    tests = " and ".join(f"{test} for {side}" for side, (_, test) in methods.items())
    return [
        "Parents a and b answer different questions; all networks here answer both. *Both "
        "parents* compute everything twice. A *probe* has one parent whole, and the other's "
        "answers by ridge regression from its last feature, or from the layer that is best on "
        "held-out train images, fitted to the other's logits on unlabelled train images. A "
        "*stitched* network computes once what both answers need, and crosses from one parent "
        "into the other by small linear layers (stitches); nothing of the parents was trained "
        "again.",
        "",
        f"Each answer is measured on test images that neither the fit nor the search has seen "
        f"({counts}). *kept* is the smaller of two shares: of what parent a reaches alone at its "
        "question, and parent b at its own, on the same images; with its 95% interval (bootstrap "
        "over images). *front* means that no other row is at least as good in every objective "
        "and better in one. *on* counts the stitches that are switched on and matter. *vs* "
        "columns are differences in points against that parent at its question; a star marks "
        f"those that a paired test on the same images ({tests}, corrected by Holm for all "
        "comparisons of this report) tells from chance at the 5% level. `classes_a.csv` and "
        "`classes_b.csv` say how "
        "good each network is at each class.",
        "",
        *([_FINISHED.split(" *vs")[0], ""] if any(e.finished for e in front.entries) else []),
    ]


def _networks(front: Front, pictures: Pictures, export: str) -> list[str]:
    drawn = [entry for entry in front.stitched if entry.trial in pictures.networks]
    if not drawn:
        return []
    lines = [f"## The stitched networks of the {_fronts(front)}", ""]
    for entry in drawn:
        assert entry.trial is not None
        listed = ", ".join(f"`{name}`" for name in entry.stitches)
        lines += [
            f"### {_capital(entry.name)}",
            "",
            f"{_capital(front.unit(front.metric).words)} {_with_interval(entry)} at "
            f"{cost_text(entry, front)}{_answer(entry)}. Stitches on: {listed}."
            f"{_how_finished(entry)}",
            "",
            f"![{entry.name}: its path through {front.every} parents]"
            f"({pictures.networks[entry.trial]})",
            "",
            "```sh",
            export_of(entry, export),
            "```",
            "",
        ]
    return lines


def _images(front: Front, pictures: Pictures) -> list[str]:
    entry = front.finding.entry
    said = gained_by(front, entry) if entry is not None else None
    if entry is None or said is None:
        return []
    lines = [
        "## Which images change",
        "",
        f"Of {front.images} test images {entry.name} gets {len(said.gained)} right that "
        f"{front.every} parents get wrong, and {len(said.lost)} wrong that "
        f"{front.every} get right.",
        "",
    ]
    if pictures.gained:
        lines += [f"![Images that only {entry.name} gets right]({pictures.gained})", ""]
    return lines


def _search(pictures: Pictures) -> list[str]:
    drawn = [
        (pictures.history, HISTORY_TITLE),
        (pictures.switches, SWITCHES_TITLE),
    ]
    lines = [line for path, words in drawn if path for line in (f"![{words}]({path})", "")]
    if pictures.history is None:
        lines = ["No trial is complete and within the study's constraints.", "", *lines]
    return ["## The search", "", *lines]


def _alternatives(front: Front) -> list[str]:
    rows = [(entry.name, entry.recipe) for entry in front.baselines if entry.recipe]
    if not rows:
        return []
    return ["## How the baselines answer", "", markdown_table(["", ""], rows), ""]


def _fronts(front: Front) -> str:
    return "fronts" if front.has_cascades else "front"


def _how_finished(entry: Entry) -> str:
    finished = entry.subnetwork.finished if entry.subnetwork else None
    return f" {finished.text}" if finished else ""


def _answer(entry: Entry) -> str:
    return f": {answer_text(entry.subnetwork)}" if entry.subnetwork else ""


def _with_interval(entry: Entry) -> str:
    interval = percent_interval_text(entry.interval, 2, between=" to ")
    return f"{percent_text(entry.quality)} ({interval})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
