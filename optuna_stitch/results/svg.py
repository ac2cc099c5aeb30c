"""The marks that drawings are made of, as SVG that suits light and dark backgrounds."""

from __future__ import annotations

import xml.etree.ElementTree as ET

# Sizes of the two fonts, in pixels, and the widths of their characters, rounded up.
LABEL_SIZE, TEXT_SIZE = 11, 12
LABEL_CHARACTER = 0.62 * LABEL_SIZE  # monospaced
_TEXT_CHARACTER = 0.58

# Colours on a light and on a dark background; parents and stitches as in the plots of a front.
_COLOURS = {
    "background": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "unmatched": ("#c2c8cf", "#4b535d"),
    "spine": ("#8c959f", "#6e7681"),
    "parent": ("#1f77b4", "#58a6dd"),
    "stitch": ("#d62728", "#ff7b72"),
}
_SHAPES = f"""
text {{ font: {TEXT_SIZE}px system-ui, sans-serif; }}
.title {{ font-size: 18px; font-weight: 600; }}
.parent {{ font-weight: 600; }}
.label {{ font: {LABEL_SIZE}px ui-monospace, Menlo, Consolas, monospace; }}
.block .name {{ font-weight: 700; }}
.stitch {{ stroke-width: 1.4; stroke-opacity: 0.8; }}
.resampled {{ stroke-dasharray: 5 3; }}
.spine {{ stroke-width: 2; }}
.leader {{ stroke-width: 0.6; stroke-dasharray: 1 3; }}
"""


def document(width: float, height: float, title: str) -> ET.Element:
    """An empty SVG document with a background.

    Args:
        width: In pixels.
        height: In pixels.
        title: What a screen reader says.
    """
    root = ET.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=number(width),
        height=number(height),
        role="img",
    )
    tooltip(root, title)
    ET.SubElement(
        root, "style"
    ).text = f"{_SHAPES}{_colours(0)}\n@media (prefers-color-scheme: dark) {{\n{_colours(1)}\n}}\n"
    ET.SubElement(root, "rect", {"class": "background", "width": "100%", "height": "100%"})
    return root


def line(
    parent: ET.Element, kind: str, start: tuple[float, float], end: tuple[float, float]
) -> ET.Element:
    """A straight line of a kind that the style knows."""
    (x1, y1), (x2, y2) = start, end
    ends = {"x1": number(x1), "y1": number(y1), "x2": number(x2), "y2": number(y2)}
    return ET.SubElement(parent, "line", {"class": kind, **ends})


def bar(
    parent: ET.Element, kind: str, start: tuple[float, float], width: float, thickness: float
) -> ET.Element:
    """A horizontal bar from the middle of one end; a negative width goes to the left."""
    place = {
        "x": number(min(start[0], start[0] + width)),
        "y": number(start[1] - thickness / 2),
        "width": number(abs(width)),
        "height": number(thickness),
    }
    return ET.SubElement(parent, "rect", {"class": f"bar {kind}", **place})


def text(
    parent: ET.Element, kind: str, place: tuple[float, float], content: str, anchor: str
) -> ET.Element:
    """A line of text.

    Args:
        parent: What it is put into.
        kind: Its class.
        place: x and y, of its base line.
        content: What it says.
        anchor: Which part of it is at x: ``start``, ``middle`` or ``end``.
    """
    where = {"x": number(place[0]), "y": number(place[1]), "text-anchor": anchor}
    element = ET.SubElement(parent, "text", {"class": kind, **where})
    element.text = content or None
    return element


def tooltip(element: ET.Element, content: str) -> None:
    """What is shown while the pointer rests on an element."""
    ET.SubElement(element, "title").text = content


def text_width(content: str, size: int = TEXT_SIZE) -> float:
    """An upper estimate of how wide a text is in the proportional font."""
    return _TEXT_CHARACTER * size * len(content)


def number(value: float) -> str:
    """A length with the digits that matter on a screen."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _colours(scheme: int) -> str:
    colour = {name: pair[scheme] for name, pair in _COLOURS.items()}
    return (
        f".background {{ fill: {colour['background']}; }}\n"
        f"text, .bar.end {{ fill: {colour['text']}; }}\n"
        f".note, .detail, .label.unmatched {{ fill: {colour['faint']}; }}\n"
        f".bar.matched {{ fill: {colour['parent']}; }}\n"
        f".bar.unmatched {{ fill: {colour['unmatched']}; }}\n"
        f".spine, .leader {{ stroke: {colour['spine']}; }}\n"
        f".stitch {{ stroke: {colour['stitch']}; }}"
    )
