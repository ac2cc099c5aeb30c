"""What a card and ``config.json`` say of a cascade: when its first answer is enough, and costs."""

from __future__ import annotations

from typing import Any

from optuna_stitch.stitching.cascade import MEASURES, Exit
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.errors import ExportError
from optuna_stitch.utils.text import markdown_table, millions_text, number_text, percent_text


def exit_of(subnetwork: Subnetwork) -> Exit:
    """The exit of a cascade.

    Args:
        subnetwork: The cascade.

    Raises:
        ExportError: If it has none.
    """
    if subnetwork.exit is None:
        raise ExportError(
            "This cascade has no exit yet, so that it has no answers. "
            "`objective.subnetwork(params)`, or `Evaluator.tune_exits` on validation images, "
            "finds when its first answer is enough; export what it returns."
        )
    return subnetwork.exit


def cascade_sentence(subnetwork: Subnetwork) -> str:
    """Say what a cascade returns.

    Args:
        subnetwork: The cascade.
    """
    found = exit_of(subnetwork)
    first, second = found.sides[found.first], found.sides[1 - found.first]
    mean = "the mean" if found.weight == 0.5 else "the weighted mean"
    return (
        f"It is a cascade, which returns the output of {first} where that is sure enough. "
        f"Elsewhere it computes the output of {second} too, from what is there already, and "
        f"returns {mean} of the class probabilities of both, as logits."
    )


def cascade_config(subnetwork: Subnetwork) -> dict[str, Any]:
    """What ``config.json`` says of a cascade.

    Args:
        subnetwork: The cascade.

    Returns:
        The numbers of its `Exit`; ``macs`` per image at the ``share`` of images that go on, of
        the most expensive image (``worst_macs``), and of images that do not go on
        (``first_macs``).
    """
    found = exit_of(subnetwork)
    coefficients = {"coefficients": list(found.coefficients)} if found.coefficients else {}
    return {
        "first": found.sides[found.first],
        "confidence": found.confidence,
        "threshold": found.threshold,
        "share": found.share,
        "weight": found.weight,
        "temperatures": list(found.temperatures),
        **coefficients,
        "macs": subnetwork.macs,
        "worst_macs": subnetwork.worst_macs,
        "first_macs": subnetwork.first.worst_macs,
    }


def cascade_table(subnetwork: Subnetwork, test_share: float | None) -> str:
    """When a cascade's first answer is enough, and what images cost, as a table.

    Args:
        subnetwork: The cascade.
        test_share: Of the test images that go on, where that is known.
    """
    found = exit_of(subnetwork)
    share = f"{percent_text(found.share, 1)} of those that the threshold was set on"
    if test_share is not None:
        share += f", {percent_text(test_share, 1)} of the test images"
    rows = [
        ["asked first", found.sides[found.first]],
        ["measure of confidence", f"{found.confidence}: {MEASURES[found.confidence]}"],
        ["an image goes on", f"where that is below {found.threshold!r}"],
        ["images that go on", share],
    ]
    if found.weight != 0.5:
        weights = zip(found.sides, (found.weight, 1 - found.weight), strict=True)
        text = ", ".join(f"{side} {number_text(weight)}" for side, weight in weights)
        rows.append(["weights in the mean", text])
    if found.temperatures != (1, 1):
        temperatures = zip(found.sides, found.temperatures, strict=True)
        text = ", ".join(f"{side} {number_text(value)}" for side, value in temperatures)
        rows.append(["temperatures of the logits", text])
    rows += [
        ["MACs on average", f"{millions_text(subnetwork.macs, 3)}, where as many go on"],
        ["MACs at most", f"{millions_text(subnetwork.worst_macs, 3)}, of an image that goes on"],
        ["MACs at least", f"{millions_text(subnetwork.first.worst_macs, 3)}, of the others"],
    ]
    return markdown_table(["", ""], rows)
