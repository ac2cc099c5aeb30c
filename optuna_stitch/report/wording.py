"""What reports say of a network in words: who answers, and what an image costs."""

from __future__ import annotations

from optuna_stitch.diagram.output import confidence_text
from optuna_stitch.report.entries import Entries, Entry
from optuna_stitch.stitching.genotype import BOTH
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.text import listed_text, percent_text


def answer_text(subnetwork: Subnetwork) -> str:
    """Who answers: ``the head of a answers, and the mean of both heads where …``.

    Args:
        subnetwork: The network.
    """
    first = subnetwork.genotype.first
    if subnetwork.output == BOTH:
        return "the heads of a and of b answer, each its own question"
    several = len(subnetwork.supergraph.sides) > 2
    mean = "the mean of both heads"
    if several:
        mean = f"the mean of the heads of {listed_text(subnetwork.sides)}"
    if first is None:
        alone = len(subnetwork.sides) == 1
        return f"the head of {subnetwork.output} answers" if alone else f"{mean} answers"
    when = "it is unsure"
    if subnetwork.exit is not None:
        when = f"its {confidence_text(subnetwork.exit, 'is below')}"
    return f"the head of {first} answers, and {mean} where {when}"


def export_of(entry: Entry, command: str) -> str:
    """The command that exports a network of a trial.

    Args:
        entry: The network.
        command: Of any, with ``{trial}`` for its number.
    """
    finished = "-finished --finished" if entry.finished else ""
    return f"{command.replace('{trial}', str(entry.trial))}{finished}"


def cost_text(entry: Entry, front: Entries) -> str:
    """What an image costs: ``4.099 M MACs``, or of a cascade on average and at worst.

    Args:
        entry: The network.
        front: What it is of.
    """
    unit = front.unit(front.cost)
    cost = unit(entry.test[front.cost])
    if entry.share is None or front.cost not in entry.worst:
        return cost
    return (
        f"{cost} on average, {unit.text(entry.worst[front.cost])} at worst, "
        f"{percent_text(entry.share, 0)} of the images go on"
    )
