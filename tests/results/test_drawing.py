from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import nn

import optuna_stitch as st
from optuna_stitch.networks.graph import NetworkGraph
from optuna_stitch.results import svg
from optuna_stitch.results.drawing import draw_pair, write_svg
from optuna_stitch.stitching.matching import Match, PointKind, match, select_points

SVG = "{http://www.w3.org/2000/svg}"
STRANGE = "<a & \"b\"> ]]> 'c'"


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x + self.norm(self.conv(x))


class _Deep(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.a_container_with_a_very_long_name_indeed = nn.Sequential(
            *(_Block() for _ in range(blocks))
        )
        self.head = nn.Linear(3, 7)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.head(self.a_container_with_a_very_long_name_indeed(x).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> tuple[NetworkGraph, NetworkGraph]:
    return st.load_parent("test_resnet").graph(), st.load_parent("test_vit").graph()


@pytest.fixture(scope="module")
def deep() -> NetworkGraph:
    """400 points and a name that XML does not take as it is."""
    graph = st.load_parent(_Deep(133), view=st.View((3, 8, 8)), name=STRANGE).graph()
    assert len(graph.points) == 400
    return graph


def _drawn(
    a: NetworkGraph, b: NetworkGraph, matches: Sequence[Match], points: PointKind, path: Path
) -> ET.Element:
    write_svg(draw_pair(a, b, matches, points=points), path)
    return ET.parse(path).getroot()


def _of_kind(root: ET.Element, tag: str, kind: str) -> list[ET.Element]:
    return [e for e in root.iter(SVG + tag) if kind in e.get("class", "").split()]


def _tip(element: ET.Element) -> str:
    return element.findtext(f"{SVG}title") or ""


@pytest.mark.parametrize("points", ["all", "dominators", "blocks"])
def test_every_match_is_one_line_and_every_candidate_one_bar(
    small: tuple[NetworkGraph, NetworkGraph], points: PointKind, tmp_path: Path
) -> None:
    matches = match(*small, points=points)
    root = _drawn(*small, matches, points, tmp_path / "pair.svg")
    body = root.find(f"{SVG}g")
    assert body is not None
    lines = _of_kind(body, "line", "stitch")
    assert sorted(_tip(line).splitlines()[0] for line in lines) == sorted(
        f"a.{m.a.name} -> b.{m.b.name}" for m in matches
    )
    for line, pair in zip(lines, matches, strict=True):
        resampled = pair.a.layout.grid != pair.b.layout.grid
        assert ("resampled" in line.attrib["class"]) == resampled
    matched = [m.a.node for m in matches] + [m.b.node for m in matches]
    candidates = [p for graph in small for p in select_points(graph, points)]
    assert len(_of_kind(body, "rect", "matched")) == len(matched)
    assert len(_of_kind(body, "rect", "unmatched")) == len(candidates) - len(matched)
    assert len(_of_kind(body, "rect", "end")) == 4


def test_lines_end_at_the_bars_of_their_points(
    small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    matches = match(*small)
    root = _drawn(*small, matches, "dominators", tmp_path / "pair.svg")
    ends = {"a": ("x1", "y1"), "b": ("x2", "y2")}
    lines = _of_kind(root.findall(f"{SVG}g")[0], "line", "stitch")
    bars = _of_kind(root, "rect", "matched")
    for place, (side, (x, y)) in enumerate(ends.items()):
        for line in lines:
            name = _tip(line).splitlines()[place].split(" -> ")[0].removeprefix(f"{side}.")
            heights = [
                float(bar.attrib["y"]) + float(bar.attrib["height"]) / 2
                for bar in bars
                if _tip(bar).startswith(f"{name}, ") and _touches(bar, float(line.attrib[x]))
            ]
            assert heights == pytest.approx([float(line.attrib[y])], abs=0.02)


def _touches(bar: ET.Element, x: float) -> bool:
    """Whether one end of a bar is at x."""
    left, width = float(bar.attrib["x"]), float(bar.attrib["width"])
    return min(abs(x - left), abs(x - left - width)) < 0.02


def test_bars_are_shares_of_the_macs_since_the_point_above(
    small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    root = _drawn(*small, match(*small), "dominators", tmp_path / "pair.svg")
    tips = [_tip(bar) for bar in root.iter(f"{SVG}rect") if _tip(bar)]
    shares = [float(tip.split(": ")[1].split("%")[0]) for tip in tips]
    assert sum(shares) == pytest.approx(200, abs=0.01 * len(shares))  # 100 for each network
    share = dict(zip((tip.split(",")[0] for tip in tips), shares, strict=True))
    # the stem's first convolution: 3 × 16 channels, 3 × 3, at stride 2
    assert share["conv1.0"] == pytest.approx(100 * 80 * 80 * 3 * 16 * 9 / small[0].macs, abs=0.01)
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect") if _tip(bar)]
    assert widths.index(max(widths)) == shares.index(max(shares))


def test_names_are_escaped_and_cut(deep: NetworkGraph, tmp_path: Path) -> None:
    root = _drawn(deep, deep, match(deep, deep), "dominators", tmp_path / "pair.svg")
    assert _tip(root).startswith(f"{STRANGE} × {STRANGE}: ")
    headings = [e.text for kind in ("title", "parent") for e in _of_kind(root, "text", kind)]
    assert headings == [f"{STRANGE} × {STRANGE}", STRANGE, STRANGE]
    labels = [e.text or "" for e in _of_kind(root, "tspan", "name")]
    assert any("…" in label for label in labels)
    assert max(map(len, labels)) <= 36
    assert len({label for label in labels if label.endswith(".7")}) == 1


def test_labels_do_not_overlap_at_400_points(
    deep: NetworkGraph, small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    other = small[1]
    matches = match(deep, other, points="all")
    root = _drawn(deep, other, matches, "all", tmp_path / "pair.svg")
    width = float(root.attrib["width"])
    boxes = [_box(label) for label in _of_kind(root, "text", "label")]
    for left, right, _, _ in boxes:
        assert left >= 0
        assert right <= width
    for p, q in itertools.combinations(boxes, 2):
        assert p[1] <= q[0] or q[1] <= p[0] or p[3] <= q[2] or q[3] <= p[2]
    # without the names of its blocks one is lost in a network; the last is next to the output
    blocks = len(select_points(deep, "blocks")) + len(select_points(other, "blocks"))
    assert len(_of_kind(root, "text", "block")) >= blocks - 1
    bars = [
        (float(bar.attrib["y"]), float(bar.attrib["height"]))
        for bar in _of_kind(root, "rect", "bar")
        if _tip(bar).startswith("a_container")
    ]
    assert len(bars) > 390
    for (y, height), (following, _) in itertools.pairwise(sorted(bars)):
        assert height >= 4
        assert y + height <= following


def _box(label: ET.Element) -> tuple[float, float, float, float]:
    parts = list(label)
    characters = sum(len(part.text or "") for part in parts)
    width = characters * 0.6 * svg.LABEL_SIZE + sum(float(p.get("dx", 0)) for p in parts)
    x, y = float(label.attrib["x"]), float(label.attrib["y"])
    left = x - width if label.attrib["text-anchor"] == "end" else x
    return left, left + width, y - 0.8 * svg.LABEL_SIZE, y + 0.2 * svg.LABEL_SIZE


def test_it_suits_light_and_dark_backgrounds(
    small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    root = _drawn(*small, match(*small), "dominators", tmp_path / "pair.svg")
    style = root.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for rule in (".background {", "text, ", ".stitch {", ".bar.matched {", ".bar.unmatched {"):
        colours = [part.split(rule)[-1].split("#")[1][:6] for part in (light, dark)]
        assert colours[0] != colours[1]
    assert len(_of_kind(root, "rect", "background")) == 1
