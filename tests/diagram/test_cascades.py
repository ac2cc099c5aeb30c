"""Drawings of cascades: what all images need, what unsure ones need, where an answer leaves."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

import optuna_stitch as st
from optuna_stitch.diagram.drawing import draw_subnetwork, macs_text
from optuna_stitch.stitching.cascade import Exit
from optuna_stitch.stitching.genotype import SIDES, Genotype, Output
from optuna_stitch.stitching.subnetwork import Subnetwork
from tests.helpers.drawings import (
    SVG,
    Deep,
    arrow_ends,
    assert_suits_light_and_dark,
    assert_texts_have_room,
    coloured_stretches,
    lane_of,
    light_stretches,
    of_kind,
    rows_of,
    tip,
)

SURE = Exit(first=1, confidence="calibrated", threshold=0.51234, share=0.25)


@pytest.fixture(scope="module")
def pair() -> st.Supernetwork:
    a = st.load_parent("test_resnet", num_classes=10, input_size=32)
    return st.stitch(a, st.load_parent("test_efficientnet", num_classes=10, view=a.view))


def _there_and_back(pair: st.Supernetwork) -> Subnetwork:
    """b crosses into a and comes back to its own head; a's head is asked where that is unsure."""
    names = [switch.name for switch in pair.switches]
    into_a = next(i for i, name in enumerate(names) if name.endswith("-> a.conv1.4"))
    into_b = next(i for i, name in enumerate(names) if name.startswith("a.bn1 ->"))
    return pair.subnetwork(Genotype("b then both", frozenset([into_a, into_b]), 0.25))


def _drawn(subnetwork: Subnetwork) -> ET.Element:
    return ET.fromstring(str(draw_subnetwork(subnetwork, title="trial 12")))


def _texts(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def _light(root: ET.Element, side: str) -> list[float]:
    """Widths of the light bars of a lane's rows."""
    return [
        sum(float(bar.attrib["width"]) for bar in of_kind(group, "rect", f"bar later {side}"))
        for group in lane_of(root, side).findall(f"{SVG}g")
    ]


def test_what_only_unsure_images_need_is_light(pair: st.Supernetwork) -> None:
    cascade = _there_and_back(pair)
    root, alone = _drawn(cascade), _drawn(cascade.first)
    (into_a, into_b) = sorted(arrow_ends(root), key=lambda ends: ends[2])
    assert sorted(arrow_ends(alone)) == sorted([into_a, into_b])  # every image crosses
    assert not of_kind(root, "path", "later stitch")
    for side in SIDES:
        rows, first, light = (
            rows_of(lane_of(root, side)),
            rows_of(lane_of(alone, side)),
            _light(root, side),
        )
        for (_, _, coloured, _), (_, _, solid, _), later in zip(rows, first, light, strict=True):
            assert coloured - later == pytest.approx(solid, abs=0.02)
    assert not any(_light(root, "b"))
    bottom = rows_of(lane_of(root, "a"))[-1][1]
    (stretch,) = light_stretches(lane_of(root, "a"), "a")
    assert stretch == pytest.approx((into_b[2], bottom), abs=0.02)  # a's rest, below where b left
    assert coloured_stretches(lane_of(root, "a"), "a") == [
        pytest.approx((into_a[3], bottom), abs=0.02)
    ]


@pytest.mark.parametrize(("output", "into"), [("a then both", "b"), ("b then both", "a")])
def test_a_stitch_that_only_unsure_images_cross_is_light(
    pair: st.Supernetwork, output: Output, into: str
) -> None:
    place = [i for i, switch in enumerate(pair.switches) if switch.into == into][6]
    root = _drawn(pair.subnetwork(Genotype(output, frozenset([place]), 0.5)))
    (arrow,) = of_kind(root, "g", "crossing")
    assert tip(arrow).startswith(pair.switches[place].name)
    assert len(of_kind(arrow, "path", "later stitch")) == 1
    ((begin, end),) = light_stretches(lane_of(root, into), into)
    assert begin < end
    assert not light_stretches(lane_of(root, output[0]), output[0])


def test_the_exit_says_share_and_threshold(pair: st.Supernetwork) -> None:
    cascade = _there_and_back(pair)
    texts = _texts(_drawn(cascade))
    assert texts[-3:] == [
        "where it is least sure",
        "exit: b answers 75%",
        "both answer the other 25%",
    ]
    root = _drawn(cascade.with_exit(SURE))
    assert _texts(root)[-3] == "confidence (calibrated) below 0.512"
    (end,) = of_kind(root, "g", "output")
    assert len(of_kind(end, "rect", "answer b")) == 1
    assert len(of_kind(end, "rect", "answer later ensemble")) == 1
    assert len(of_kind(end, "path", "path later a")) == 1


def test_the_header_says_both_costs_and_what_marks_mean(pair: st.Supernetwork) -> None:
    cascade = _there_and_back(pair)
    always, worst = cascade.first.macs, cascade.worst_macs
    texts = _texts(_drawn(cascade))
    assert texts[2] == (
        f"{macs_text(cascade.macs)} MACs on average, {macs_text(worst)} at worst, "
        f"{cascade.parameters / 1e6:,.2f} M parameters, 2 of {len(pair.switches)} stitches, "
        "output of b, both where unsure"
    )
    assert texts[7:9] == [
        f"for every image {macs_text(always)}",
        f"for unsure images only {macs_text(worst - always)}",
    ]
    (header,) = of_kind(_drawn(cascade), "g", "header")
    bars = [bar for bar in of_kind(header, "rect", "bar") if bar.attrib["height"] == "10"]
    budget = bars[: len(bars) - 4]  # the legend's follow
    width = sum(float(bar.attrib["width"]) for bar in budget)
    light = sum(float(bar.attrib["width"]) for bar in budget if "later" in bar.attrib["class"])
    parents = sum(graph.macs for graph in pair.graphs.values())
    stitches = sum(pair.stitches[i].macs for i in cascade.on)
    assert light / width == pytest.approx((worst - always) / (parents + stitches), abs=1e-3)


def test_texts_have_room_and_suit_light_and_dark(pair: st.Supernetwork) -> None:
    for cascade in (
        _there_and_back(pair).with_exit(SURE),
        pair.subnetwork(Genotype("a then both", threshold=0.05)),
    ):
        root = _drawn(cascade)
        assert_texts_have_room(root)
        assert_suits_light_and_dark(root)


def test_a_deep_cascade_is_legible() -> None:
    view = st.View((3, 8, 8))
    a, b = (st.load_parent(Deep(100), view=view, name=f"deep {side}") for side in SIDES)
    deep = st.stitch(a, b, points="blocks")
    into = {side: [i for i, s in enumerate(deep.switches) if s.into == side] for side in SIDES}
    on = frozenset([into["a"][10], into["b"][50], into["b"][98]])
    root = _drawn(deep.subnetwork(Genotype("a then both", on, 0.95)).with_exit(SURE))
    assert_texts_have_room(root)
    assert light_stretches(lane_of(root, "b"), "b")


@pytest.mark.parametrize("output", ["a", "ensemble"])
def test_where_all_images_are_computed_alike_nothing_is_light(
    pair: st.Supernetwork, output: Output
) -> None:
    root = _drawn(pair.subnetwork(Genotype(output, frozenset([3, 8]))))
    kinds = " ".join(element.get("class", "") for element in root.iter())
    assert "later" not in kinds.split()
