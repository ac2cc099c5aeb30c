"""Read drawings back, and deep networks to be drawn."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import torch
from torch import nn

from optuna_stitch.diagram import svg

SVG = "{http://www.w3.org/2000/svg}"
STRANGE = "<a & \"b\"> ]]> 'c'"


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.act = nn.ReLU()

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x + self.act(self.conv(x))


class Deep(nn.Module):
    """Blocks of three points each, then a mean and a linear layer."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.a_container_with_a_very_long_name_indeed = nn.Sequential(
            *(_Block() for _ in range(blocks))
        )
        self.head = nn.Linear(3, 7)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.head(self.a_container_with_a_very_long_name_indeed(x).mean((2, 3)))


class Forked(nn.Module):
    """Two convolutions side by side; the second is three times as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.narrow = nn.Conv2d(4, 2, 1)
        self.wide = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self.stem(x)
        return self.head(torch.cat([self.narrow(x), self.wide(x)], dim=1).mean((2, 3)))


def of_kind(root: ET.Element, tag: str, kind: str) -> list[ET.Element]:
    """Elements with all these classes, ``"bar a"``."""
    kinds = set(kind.split())
    return [e for e in root.iter(SVG + tag) if kinds <= set(e.get("class", "").split())]


def tip(element: ET.Element) -> str:
    return element.findtext(f"{SVG}title") or ""


def lane_of(root: ET.Element, side: str) -> ET.Element:
    (lane,) = of_kind(root, "g", f"lane {side}")
    return lane


def coloured_stretches(lane: ET.Element, side: str) -> list[tuple[float, float]]:
    """Where a spine is coloured, from top to bottom, fully or lightly."""
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(_pieces(of_kind(lane, "path", f"path {side}"))):
        if joined and joined[-1][1] == begin:  # lightly below what every image needs
            begin = joined.pop()[0]
        joined.append((begin, end))
    return joined


def light_stretches(lane: ET.Element, side: str) -> list[tuple[float, float]]:
    """Where a spine is coloured lightly: what only unsure images need."""
    return _pieces(of_kind(lane, "path", f"path later {side}"))


def _pieces(paths: Sequence[ET.Element]) -> list[tuple[float, float]]:
    pieces = [piece.split() for path in paths for piece in path.attrib["d"].split("M")[1:]]
    return [(float(begin), float(end)) for _, begin, _, end in pieces]


def arrow_ends(root: ET.Element) -> list[tuple[str, str, float, float]]:
    """For every arrow where it comes from, where it goes, and the heights of both ends."""
    ends = []
    for arrow in of_kind(root, "g", "crossing"):
        source, into = tip(arrow)[0], tip(arrow).partition("-> ")[2][0]
        (path,) = of_kind(arrow, "path", "stitch")
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.attrib["d"])]
        assert (numbers[0] < numbers[-2]) == (source < into)  # a is on the left
        ends.append((source, into, numbers[1], numbers[-1]))
    return ends


def rows_of(lane: ET.Element) -> list[tuple[str, float, float, float]]:
    """For every bar its name, its height, and how much is drawn in the lane's colour and grey."""
    side = lane.attrib["class"].split()[1]
    rows = []
    for group in lane.findall(f"{SVG}g"):
        bars = of_kind(group, "rect", "bar")
        y = float(bars[0].attrib["y"]) + float(bars[0].attrib["height"]) / 2
        width = {
            kind: sum(float(bar.attrib["width"]) for bar in of_kind(group, "rect", f"bar {kind}"))
            for kind in (side, "unused")
        }
        rows.append((tip(group).split(", ")[0], y, width[side], width["unused"]))
    return rows


def moved(root: ET.Element) -> list[tuple[ET.Element, float, float]]:
    """Every element with how far the groups around it move it, in x and y."""
    found: list[tuple[ET.Element, float, float]] = []

    def walk(element: ET.Element, x: float, y: float) -> None:
        move = element.get("transform", "")
        if move:
            dx, dy = move.removeprefix("translate(").removesuffix(")").split()
            x, y = x + float(dx), y + float(dy)
        found.append((element, x, y))
        for child in element:
            walk(child, x, y)

    walk(root, 0.0, 0.0)
    return found


def text_boxes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    """Left, right, top and bottom of every text, its width estimated."""
    boxes = []
    for text, dx, dy in moved(root):
        if text.tag != f"{SVG}text":
            continue
        kinds = text.attrib["class"].split()
        spans = list(text)
        characters = sum(len(part.text or "") for part in (text, *spans))
        if "label" in kinds:
            size = svg.LABEL_SIZE
            width = characters * 0.6 * size + sum(float(part.get("dx", 0)) for part in spans)
        else:
            size = {"title": svg.TITLE_SIZE, "macs": 10}.get(kinds[0], svg.TEXT_SIZE)
            width = characters * 0.55 * size
        x, y = dx + float(text.attrib["x"]), dy + float(text.attrib["y"])
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attrib["text-anchor"]] * width
        boxes.append((left, left + width, y - 0.8 * size, y + 0.2 * size))
    return boxes


def overlaps(
    boxes: Sequence[tuple[float, float, float, float]],
) -> list[tuple[tuple[float, float, float, float], ...]]:
    """The pairs of boxes that overlap."""
    return [
        (p, q)
        for p, q in itertools.combinations(boxes, 2)
        if p[0] < q[1] and q[0] < p[1] and p[2] < q[3] and q[2] < p[3]
    ]


def assert_texts_have_room(root: ET.Element) -> None:
    """No text is cut off at an edge, and no two overlap."""
    boxes = text_boxes(root)
    assert boxes
    for left, right, top, bottom in boxes:
        assert left >= 0
        assert right <= float(root.attrib["width"])
        assert top >= 0
        assert bottom <= float(root.attrib["height"])
    assert not overlaps(boxes)


def assert_bars_are_apart(lane: ET.Element) -> None:
    """Bars of different rows do not touch, and can be seen."""
    bars = {
        (float(b.attrib["y"]), float(b.attrib["height"])) for b in of_kind(lane, "rect", "bar")
    }
    for (y, height), (following, _) in itertools.pairwise(sorted(bars)):
        assert height >= 4
        assert y + height <= following


def assert_suits_light_and_dark(root: ET.Element) -> None:
    style = root.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for rule in (".answer {", ".bar.a, ", ".bar.b, ", "line.stitch,", ".unused {"):
        colours = [part.split(rule)[-1].split("#")[1][:6] for part in (light, dark)]
        assert colours[0] != colours[1]
    (background,) = of_kind(root, "rect", "background")
    assert (background.attrib["width"], background.attrib["height"]) == ("100%", "100%")
    # the page around may have styles and classes of its own
    for line in style.splitlines():
        selectors = line.split("{")[0].split(",") if "{" in line and "@media" not in line else []
        assert all(selector.strip().startswith(".optuna-stitch ") for selector in selectors)
