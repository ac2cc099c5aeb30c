"""Images that a stitched network gets right and both parents get wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from optuna_stitch.results.judging.front import Entry, Front
from optuna_stitch.splits import Split

_SHOWN, _ACROSS = 12, 6


@dataclass(frozen=True)
class Gained:
    """What a network says of images on which both parents agree in being right, or wrong.

    Args:
        gained: Places of the test images that it gets right and both parents get wrong.
        lost: Places of those that it gets wrong and both parents get right.
    """

    gained: list[int]
    lost: list[int]


def gained_by(front: Front, entry: Entry) -> Gained | None:
    """Compare a network with both parents, image by image; None where pixels are labelled."""
    a, b = (_guesses(front, name) for name in ("parent a", "parent b"))
    targets, own = front.targets, entry.guesses
    if targets is None or own is None or a is None or b is None:
        return None
    right, a_right, b_right = (guesses == targets for guesses in (own, a, b))
    gained = (right & ~a_right & ~b_right).nonzero().flatten().tolist()
    lost = (~right & a_right & b_right).nonzero().flatten().tolist()
    return Gained(gained, lost)


def draw_gained(
    front: Front,
    entry: Entry,
    gained: Sequence[int],
    split: Split,
    path: Path,
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draw some of the images that a network gets right and both parents get wrong.

    Args:
        front: With the parents' answers.
        entry: The network.
        gained: Places of images; at least one.
        split: The test split.
        path: Where to write the image.
        class_names: In the order of the labels; numbers, if None.
    """
    shown = gained[:_SHOWN]
    rows = math.ceil(len(shown) / _ACROSS)
    across = min(max(len(shown), 3), _ACROSS)
    figure = Figure(figsize=(1.7 * across, 2.3 * rows + 0.5), dpi=150, layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).flatten()
    a, b = _guesses(front, "parent a"), _guesses(front, "parent b")
    assert front.targets is not None
    assert a is not None
    assert b is not None

    def name(label: Tensor) -> str:
        words = class_names[int(label)] if class_names else str(int(label))
        return words if len(words) <= 16 else f"{words[:15]}…"

    for panel in panels:
        panel.set_axis_off()
    for panel, place in zip(panels, shown, strict=False):
        image, _ = split.read(place)
        panel.imshow(image, cmap="gray" if image.mode == "L" else None)
        panel.set_title(
            f"{name(front.targets[place])}\na: {name(a[place])}, b: {name(b[place])}", fontsize=8
        )
    more = f", {len(shown)} of {len(gained)} images" if len(gained) > len(shown) else ""
    figure.suptitle(f"right by {entry.name}, wrong by both parents{more}", fontsize=9)
    figure.savefig(path)


def _guesses(front: Front, name: str) -> Tensor | None:
    return next((entry.guesses for entry in front.entries if entry.name == name), None)
