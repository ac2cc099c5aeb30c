"""The marks that drawings consist of, as SVG that suits light and dark backgrounds."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

# Sizes of the fonts, in pixels, and the widths of their characters, rounded up.
TITLE_SIZE, LABEL_SIZE, TEXT_SIZE = 18, 11, 12

LABEL_CHARACTER = 0.62 * LABEL_SIZE  # monospaced

_TEXT_CHARACTER = 0.58

_SCOPE = ".optuna-stitch"  # pages that hold a drawing may have styles of their own

# Colours on a light and on a dark background; stitches and the ensemble as in the plots of a
# front, and each parent its own.
_COLOURS = {
    "background": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "unused": ("#c9ced4", "#444c56"),
    "spine": ("#8c959f", "#6e7681"),
    "a": ("#1f77b4", "#58a6dd"),
    "b": ("#12867a", "#3fbfae"),
    "c": ("#b26a00", "#e3a23c"),
    "d": ("#8c4a6b", "#d38bb0"),
    "e": ("#5f7d1c", "#a5c75a"),
    "f": ("#7a5c3e", "#c2a384"),
    "g": ("#4b5fc0", "#98a6f0"),
    "h": ("#5d6b78", "#a3b1be"),
    "stitch": ("#d62728", "#ff7b72"),
    "ensemble": ("#9467bd", "#b392e0"),
}

_SHAPES = f"""
& text {{ font: {TEXT_SIZE}px system-ui, sans-serif; }}
& .title {{ font-size: {TITLE_SIZE}px; font-weight: 600; }}
& .parent, & .figures {{ font-weight: 600; }}
& .label {{ font: {LABEL_SIZE}px ui-monospace, Menlo, Consolas, monospace; }}
& .block .name {{ font-weight: 700; }}
& .macs {{ font-size: 10px; paint-order: stroke; stroke-width: 3px; }}
& path, & line {{ fill: none; }}
& .stitch {{ stroke-width: 1.4; stroke-opacity: 0.8; }}
& .resampled {{ stroke-dasharray: 5 3; }}
& .spine {{ stroke-width: 2; }}
& .path {{ stroke-width: 4; }}
& .crossing path {{ stroke-width: 2.2; stroke-opacity: 1; }}
& .idle {{ stroke-width: 1; stroke-opacity: 0.7; }}
& .leader {{ stroke-width: 0.6; stroke-dasharray: 1 3; }}
& .answer {{ stroke-width: 2; }}
& path.later, & line.later {{ stroke-dasharray: 6 4; stroke-opacity: 0.6; }}
& .crossing path.later {{ stroke-opacity: 0.7; }}
& .bar.later, & .dot.later {{ fill-opacity: 0.4; }}
& .answer.later {{ stroke-dasharray: 6 4; }}
"""


class Drawing:
    """A picture, as an SVG document; notebooks show it.

    Args:
        root: The document's root.

    Example:
        >>> drawing = supernetwork.subnetwork({"output": "a"}).draw(title="parent a")
        >>> drawing.write(tmp_path / "a.svg")
        >>> str(drawing)[:4]
        '<svg'
    """

    def __init__(self, root: ET.Element) -> None:
        self.root = root

    def __str__(self) -> str:
        return ET.tostring(self.root, encoding="unicode")

    def write(self, path: str | Path) -> None:
        """Write it as an SVG file.

        Args:
            path: The file; its folder must exist.
        """
        ET.ElementTree(self.root).write(path, encoding="utf-8", xml_declaration=True)

    def _repr_svg_(self) -> str:
        return str(self)


def document(width: float, height: float, title: str, sides: Iterable[str]) -> ET.Element:
    """An empty SVG document with a background.

    Args:
        width: In pixels.
        height: In pixels.
        title: What a screen reader says.
        sides: The parents that are drawn.

    Returns:
        The root, to put marks into.
    """
    root = ET.Element(
        "svg",
        {"class": _SCOPE.removeprefix(".")},
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=number(width),
        height=number(height),
        role="img",
    )
    tooltip(root, title)
    light, dark = (_colours(scheme, list(sides)) for scheme in range(2))
    style = f"{_SHAPES}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    ET.SubElement(root, "style").text = style.replace("&", _SCOPE)
    ET.SubElement(root, "rect", {"class": "background", "width": "100%", "height": "100%"})
    return root


def line(
    parent: ET.Element, kind: str, start: tuple[float, float], end: tuple[float, float]
) -> ET.Element:
    """Draw a straight line.

    Args:
        parent: What it is put into.
        kind: Its class, which the style knows.
        start: x and y of one end, in pixels.
        end: x and y of the other end, in pixels.
    """
    (x1, y1), (x2, y2) = start, end
    ends = {"x1": number(x1), "y1": number(y1), "x2": number(x2), "y2": number(y2)}
    return ET.SubElement(parent, "line", {"class": kind, **ends})


def path(parent: ET.Element, kind: str, *parts: str | float) -> ET.Element:
    """Draw a path.

    Args:
        parent: What it is put into.
        kind: Its class, which the style knows.
        *parts: SVG's commands and their coordinates in pixels: ``"M", 0.0, 5.0, "V", 20.0``.
    """
    steps = [part if isinstance(part, str) else number(part) for part in parts]
    return ET.SubElement(parent, "path", {"class": kind, "d": " ".join(steps)})


def bar(
    parent: ET.Element, kind: str, start: tuple[float, float], width: float, thickness: float
) -> ET.Element:
    """Draw a horizontal bar.

    Args:
        parent: What it is put into.
        kind: Its class besides ``bar``, which the style knows.
        start: x and y of the middle of one end, in pixels.
        width: In pixels; a negative one goes to the left.
        thickness: In pixels.
    """
    place = {
        "x": number(min(start[0], start[0] + width)),
        "y": number(start[1] - thickness / 2),
        "width": number(abs(width)),
        "height": number(thickness),
    }
    return ET.SubElement(parent, "rect", {"class": f"bar {kind}", **place})


def polygon(parent: ET.Element, kind: str, corners: Sequence[tuple[float, float]]) -> ET.Element:
    """Draw a filled polygon.

    Args:
        parent: What it is put into.
        kind: Its class besides ``dot``, which the style knows.
        corners: x and y of each corner, in pixels.
    """
    points = " ".join(f"{number(x)},{number(y)}" for x, y in corners)
    return ET.SubElement(parent, "polygon", {"class": f"dot {kind}", "points": points})


def dot(parent: ET.Element, kind: str, middle: tuple[float, float]) -> ET.Element:
    """Draw a dot.

    Args:
        parent: What it is put into.
        kind: Its class besides ``dot``, which the style knows.
        middle: x and y of its middle, in pixels.
    """
    place = {"cx": number(middle[0]), "cy": number(middle[1]), "r": "4"}
    return ET.SubElement(parent, "circle", {"class": f"dot {kind}", **place})


def text(
    parent: ET.Element, kind: str, place: tuple[float, float], content: str, anchor: str
) -> ET.Element:
    """Draw a line of text.

    Args:
        parent: What it is put into.
        kind: Its class, which the style knows.
        place: x and y of its base line, in pixels.
        content: What it says.
        anchor: Which part of it is at x: ``start``, ``middle`` or ``end``.
    """
    where = {"x": number(place[0]), "y": number(place[1]), "text-anchor": anchor}
    element = ET.SubElement(parent, "text", {"class": kind, **where})
    element.text = content or None
    return element


def tooltip(element: ET.Element, content: str) -> None:
    """Show a text while the pointer rests on an element.

    Args:
        element: The element.
        content: The text; it may have several lines.
    """
    ET.SubElement(element, "title").text = content


def text_width(content: str, size: int = TEXT_SIZE) -> float:
    """An upper estimate of a text's width in the proportional font, in pixels.

    Args:
        content: The text.
        size: Of the font, in pixels.
    """
    return _TEXT_CHARACTER * size * len(content)


def number(value: float) -> str:
    """A length with the digits that matter on a screen: ``12.35``.

    Args:
        value: In pixels.
    """
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _colours(scheme: int, sides: Sequence[str]) -> str:
    colour = {name: pair[scheme] for name, pair in _COLOURS.items()}
    kinds = [
        f"& .bar.{kind}, & .dot.{kind} {{ fill: {colour[kind]}; }}\n"
        f"& line.{kind}, & path.{kind}, & .answer.{kind} {{ stroke: {colour[kind]}; }}"
        for kind in (*sides, "stitch", "ensemble")
    ]
    return "\n".join(
        [
            f"& .background, & .answer {{ fill: {colour['background']}; }}",
            f"& text {{ fill: {colour['text']}; }}",
            f"& .note, & .detail, & .label.unused {{ fill: {colour['faint']}; }}",
            f"& .bar.unused {{ fill: {colour['unused']}; }}",
            f"& .spine, & .leader {{ stroke: {colour['spine']}; }}",
            f"& .idle {{ stroke: {colour['unused']}; }}",
            *kinds,
            f"& .macs {{ fill: {colour['stitch']}; stroke: {colour['background']}; }}",
        ]
    )
