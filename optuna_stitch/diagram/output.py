"""What stands below the lanes of a drawing: who answers, and where a first answer leaves."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping

from optuna_stitch.diagram import svg
from optuna_stitch.diagram.lanes import Lane
from optuna_stitch.stitching.cascade import Exit
from optuna_stitch.stitching.genotype import BOTH, ENSEMBLE, Side
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.text import listed_text, number_text, percent_text


def output_text(subnetwork: Subnetwork) -> str:
    """Who answers: ``output of a``, ``ensemble of a and b``, ``output of a, both where unsure``.

    Args:
        subnetwork: Whose output.
    """
    first, sides = subnetwork.genotype.first, subnetwork.sides
    if subnetwork.output == BOTH:
        return "outputs of a and of b"
    if first is None:
        alone = len(sides) == 1
        return f"output of {sides[0]}" if alone else f"ensemble of {listed_text(sides)}"
    together = "both" if len(subnetwork.supergraph.sides) == 2 else listed_text(sides)
    return f"output of {first}, {together} where unsure"


# In pixels: heights of the first and of the second answer, and of a turn.
_FIRST, _SECOND, _TURN = 36.0, 108.0, 10.0

_BOX, _ARROW = 26.0, 9.0


def footer(subnetwork: Subnetwork) -> float:
    """Height of what stands below the lanes, in pixels.

    Args:
        subnetwork: What is drawn.
    """
    return (_SECOND if subnetwork.is_cascade else _FIRST) + 20


def confidence_text(exit: Exit, relation: str = "below") -> str:
    """When an image goes on: ``confidence (margin) below 0.512``.

    Args:
        exit: Of a cascade.
        relation: What stands before the threshold.
    """
    return f"confidence ({exit.confidence}) {relation} {number_text(exit.threshold, 3)}"


def draw_output(parent: ET.Element, subnetwork: Subnetwork, lanes: Mapping[Side, Lane]) -> None:
    """Draw the output, and the lanes that lead to it.

    Args:
        parent: What it is put into; at y = 0 the lanes end.
        subnetwork: Whose output.
        lanes: All parents.
    """
    first = subnetwork.genotype.first
    if first is not None:
        _draw_cascade(parent, subnetwork, lanes, first)
        return
    told, sides = output_text(subnetwork), subnetwork.sides
    for side in sides:
        _draw_way(parent, f"path {side}", lanes[side], _FIRST, _half(told))
    kind = sides[0] if len(sides) == 1 else ENSEMBLE
    _draw_box(parent, f"answer {kind}", _FIRST, told)


def _draw_cascade(
    parent: ET.Element, subnetwork: Subnetwork, lanes: Mapping[Side, Lane], first: Side
) -> None:
    """Draw the exit, and below it what unsure images get."""
    share = subnetwork.threshold or 0.0
    (other,) = [side for side in subnetwork.sides if side != first]
    leaves = f"exit: {first} answers {percent_text(1 - share, 0)}"
    goes_on = f"both answer the other {percent_text(share, 0)}"
    when = (
        "where it is least sure" if subnetwork.exit is None else confidence_text(subnetwork.exit)
    )
    _draw_way(parent, f"path {first}", lanes[first], _FIRST, _half(leaves))
    _draw_way(parent, f"path later {other}", lanes[other], _SECOND, _half(goes_on))
    # the condition interrupts the way from one answer to the other
    top, bottom = _FIRST + _BOX / 2, _SECOND - _BOX / 2
    svg.path(parent, f"path later {first}", "M", 0.0, top, "V", top + 9)
    svg.text(parent, "note", (0, top + 22), when, "middle")
    svg.path(parent, f"path later {first}", "M", 0.0, top + 27, "V", bottom - _ARROW)
    tip = [(0.0, bottom - 1), (-_ARROW / 2, bottom - _ARROW), (_ARROW / 2, bottom - _ARROW)]
    svg.polygon(parent, f"later {first}", tip)
    _draw_box(parent, f"answer {first}", _FIRST, leaves)
    _draw_box(parent, "answer later ensemble", _SECOND, goes_on)


def _draw_way(parent: ET.Element, kind: str, lane: Lane, y: float, half: float) -> None:
    """Draw the way from the end of a lane to a box."""
    corner = lane.x - lane.direction * _TURN
    way = ("M", lane.x, 0.0, "V", y - _TURN, "Q", lane.x, y, corner)
    svg.path(parent, kind, *way, y, "H", lane.direction * half)


def _draw_box(parent: ET.Element, kind: str, y: float, text: str) -> None:
    half = _half(text)
    place = {"x": -half, "y": y - _BOX / 2, "width": 2 * half, "height": _BOX, "rx": _BOX / 2}
    box = {"class": kind, **{k: svg.number(v) for k, v in place.items()}}
    ET.SubElement(parent, "rect", box)
    svg.text(parent, "figures", (0, y + 4), text, "middle")


def _half(text: str) -> float:
    """Half the width of a box around a text."""
    return svg.text_width(text) / 2 + 10
