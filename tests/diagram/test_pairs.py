from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

import optuna_stitch as st
from optuna_stitch.diagram.drawing import draw_pair
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.stitching.genotype import SIDES
from optuna_stitch.stitching.matching import Match, PointKind, match, select_points
from tests.helpers.drawings import (
    STRANGE,
    SVG,
    Deep,
    assert_bars_are_apart,
    assert_suits_light_and_dark,
    assert_texts_have_room,
    lane_of,
    moved,
    of_kind,
    rows_of,
    tip,
)


@pytest.fixture(scope="module")
def small() -> tuple[NetworkGraph, NetworkGraph]:
    return st.load_parent("test_resnet").graph(), st.load_parent("test_vit").graph()


@pytest.fixture(scope="module")
def deep() -> NetworkGraph:
    """400 points and a name that XML does not take as it is."""
    graph = st.load_parent(Deep(133), view=st.View((3, 8, 8)), name=STRANGE).graph()
    assert len(graph.points) == 400
    return graph


def _drawn(
    a: NetworkGraph, b: NetworkGraph, matches: Sequence[Match], points: PointKind, path: Path
) -> ET.Element:
    draw_pair(a, b, matches, points=points).write(path)
    return ET.parse(path).getroot()


@pytest.mark.parametrize("points", ["all", "dominators", "blocks"])
def test_every_match_is_one_line_and_every_candidate_one_bar(
    small: tuple[NetworkGraph, NetworkGraph], points: PointKind, tmp_path: Path
) -> None:
    matches = match(*small, points=points)
    root = _drawn(*small, matches, points, tmp_path / "pair.svg")
    (across,) = of_kind(root, "g", "across")
    lines = of_kind(across, "line", "stitch")
    assert sorted(tip(line).splitlines()[0] for line in lines) == sorted(
        f"a.{m.a.name} -> b.{m.b.name}" for m in matches
    )
    for line, pair in zip(lines, matches, strict=True):
        resampled = pair.a.layout.grid != pair.b.layout.grid
        assert ("resampled" in line.attrib["class"]) == resampled
    for side, graph in zip(SIDES, small, strict=True):
        candidates = select_points(graph, points)
        matched = {getattr(pair, side).node for pair in matches}
        images, *rows, output = rows_of(lane_of(root, side))
        assert (images[0], output[0]) == ("images", "output")
        for (name, _, coloured, grey), point in zip(rows, candidates, strict=True):
            assert name == point.name
            assert (coloured > 0, grey > 0) == (point.node in matched, point.node not in matched)


def test_lines_end_at_the_bars_of_their_points(
    small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    matches = match(*small)
    root = _drawn(*small, matches, "dominators", tmp_path / "pair.svg")
    (across,) = of_kind(root, "g", "across")
    lines = of_kind(across, "line", "stitch")
    place = {element: (x, y) for element, x, y in moved(root)}
    for number, side in enumerate(SIDES):
        lane = lane_of(root, side)
        height = {name: y for name, y, *_ in rows_of(lane)}
        for line in lines:
            name = tip(line).splitlines()[number].split(" -> ")[0].removeprefix(f"{side}.")
            x, y = (float(line.attrib[f"{axis}{number + 1}"]) for axis in "xy")
            assert height[name] == pytest.approx(y, abs=0.02)
            # the spine, where bars begin, is at 0 in the lane
            assert x + place[line][0] == pytest.approx(place[lane][0], abs=0.02)


def test_bars_are_shares_of_the_macs_since_the_point_above(
    small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    root = _drawn(*small, match(*small), "dominators", tmp_path / "pair.svg")
    bars = [bar for side in SIDES for bar in lane_of(root, side).findall(f"{SVG}g")]
    tips = [tip(bar) for bar in bars]
    shares = [float(tip.split(": ")[1].split("%")[0]) if ": " in tip else 0.0 for tip in tips]
    assert sum(shares) == pytest.approx(200, abs=0.01 * len(shares))  # 100 for each network
    share = dict(zip((tip.split(",")[0] for tip in tips), shares, strict=True))
    # the stem's first convolution: 3 × 16 channels, 3 × 3, at stride 2
    assert share["conv1.0"] == pytest.approx(100 * 80 * 80 * 3 * 16 * 9 / small[0].macs, abs=0.01)
    widths = [max(float(part.attrib["width"]) for part in bar.iter(f"{SVG}rect")) for bar in bars]
    assert widths.index(max(widths)) == shares.index(max(shares))


def test_names_are_escaped_and_cut(deep: NetworkGraph, tmp_path: Path) -> None:
    root = _drawn(deep, deep, match(deep, deep), "dominators", tmp_path / "pair.svg")
    assert tip(root).startswith(f"{STRANGE} × {STRANGE}: ")
    headings = [e.text for kind in ("title", "parent") for e in of_kind(root, "text", kind)]
    assert headings == [f"{STRANGE} × {STRANGE}", STRANGE, STRANGE]
    labels = [e.text or "" for e in of_kind(root, "tspan", "name")]
    assert any("…" in label for label in labels)
    assert max(map(len, labels)) <= 36
    assert len({label for label in labels if label.endswith(".8")}) == 1


def test_labels_do_not_overlap_at_400_points(
    deep: NetworkGraph, small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    other = small[1]
    matches = match(deep, other, points="all")
    root = _drawn(deep, other, matches, "all", tmp_path / "pair.svg")
    assert_texts_have_room(root)
    # without the names of its blocks one is lost in a network; the last is next to the output
    blocks = len(select_points(deep, "blocks")) + len(select_points(other, "blocks"))
    assert len(of_kind(root, "text", "block")) >= blocks - 1
    lane = lane_of(root, "a")
    assert len(rows_of(lane)) == 402
    assert_bars_are_apart(lane)


def test_it_suits_light_and_dark_backgrounds(
    small: tuple[NetworkGraph, NetworkGraph], tmp_path: Path
) -> None:
    root = _drawn(*small, match(*small), "dominators", tmp_path / "pair.svg")
    assert_suits_light_and_dark(root)
