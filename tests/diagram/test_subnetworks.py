from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from torch import nn

import optuna_stitch as st
from optuna_stitch.diagram.drawing import draw_subnetwork, macs_text
from optuna_stitch.diagram.lanes import DROP
from optuna_stitch.diagram.segments import dissect
from optuna_stitch.stitching.genotype import SIDES, Genotype, Output, first_of
from tests.helpers.drawings import (
    STRANGE,
    SVG,
    Deep,
    Forked,
    arrow_ends,
    assert_bars_are_apart,
    assert_suits_light_and_dark,
    assert_texts_have_room,
    coloured_stretches,
    lane_of,
    of_kind,
    rows_of,
    tip,
)


@pytest.fixture(scope="module")
def pair() -> st.Supernetwork:
    """Two networks of which every match is between dominators."""
    a = st.load_parent("test_resnet", num_classes=10, input_size=32)
    return st.stitch(a, st.load_parent("test_efficientnet", num_classes=10, view=a.view))


@pytest.fixture(scope="module")
def trio() -> st.Supernetwork:
    """Three networks."""
    sizes = zip((4, 6, 8), (2, 3, 5), strict=True)
    view = st.View((3, 8, 8))
    return st.stitch(*(st.load_parent(chain(*size), view=view, name="chain") for size in sizes))


@pytest.fixture(scope="module")
def branching() -> st.Supernetwork:
    """Two networks that are matched inside of their residual blocks as well."""
    a, b = st.load_parent("test_resnet"), st.load_parent("test_vit")
    return st.stitch(a, b, points="all")


@pytest.fixture(scope="module")
def deep() -> st.Supernetwork:
    """400 blocks a lane, and a name that XML does not take as it is."""
    view = st.View((3, 8, 8))
    a, b = (st.load_parent(Deep(400), view=view, name=f"{STRANGE} {side}") for side in SIDES)
    return st.stitch(a, b, points="blocks")


def chain(width: int, layers: int) -> nn.Module:
    """Convolutions one after the other."""
    convolutions = [nn.Conv2d(width, width, 1) for _ in range(layers)]
    return nn.Sequential(
        nn.Conv2d(3, width, 1),
        *convolutions,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


def _random(supernetwork: st.Supernetwork, seed: int) -> Genotype:
    draw = random.Random(seed)
    count = len(supernetwork.switches)
    on = draw.sample(range(count), draw.choice([1, 3, 8, count // 2]))
    output = draw.choice(supernetwork.supergraph.outputs)
    return Genotype(output, frozenset(on), 0.3 if first_of(output) else None)


def _drawn(supernetwork: st.Supernetwork, genotype: Genotype) -> ET.Element:
    return ET.fromstring(str(supernetwork.subnetwork(genotype).draw(title="trial 12")))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("which", ["pair", "branching", "trio"])
def test_it_shows_what_the_genotype_computes(
    which: str, seed: int, request: pytest.FixtureRequest
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(which)
    genotype = _random(supernetwork, seed)
    subnetwork = supernetwork.subnetwork(genotype)
    steps = subnetwork.resolved.steps
    operations = [supernetwork.supergraph.operations[step] for step, _ in steps]
    computed = {operation.name for operation in operations}
    root = _drawn(supernetwork, genotype)

    arrows = {tip(arrow) for arrow in of_kind(root, "g", "crossing")}
    macs = [macs_text(stitch.macs) for stitch in supernetwork.stitches]
    assert arrows == {f"{supernetwork.switches[i].name}\n{macs[i]} MACs" for i in subnetwork.on}
    for side in supernetwork.sides:
        graph = supernetwork.graphs[side]
        nodes = {point.name: f"{side}.{point.node}" for point in graph.points}
        nodes["output"] = f"{side}.{graph.output.name}"
        images, *rows = rows_of(lane_of(root, side))
        assert images[0] == "images"
        segments = dissect(subnetwork).segments[side]
        for (name, _, coloured, grey), segment in zip(rows, segments, strict=True):
            assert segment.computed == (nodes[name] in computed)
            share = segment.used / segment.macs if segment.macs else segment.computed
            # of what is drawn in part, the colour lies over the grey
            whole = grey or coloured
            assert coloured == pytest.approx(share * whole, abs=0.01)
        assert sum(s.macs for s in segments) == graph.macs
        assert sum(s.used for s in segments) == sum(o.macs for o in operations if o.owner == side)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("which", ["pair", "branching", "trio"])
def test_the_coloured_way_leads_from_images_and_stitches_to_stitches_and_the_output(
    which: str, seed: int, request: pytest.FixtureRequest
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(which)
    root = _drawn(supernetwork, _random(supernetwork, seed))
    arrows = arrow_ends(root)
    ways = 0
    for side in supernetwork.sides:
        lane = lane_of(root, side)
        rows = rows_of(lane)
        begins = {rows[0][1], *(to for _, into, _, to in arrows if into == side)}
        ends = {rows[-1][1], *(y for source, _, y, _ in arrows if source == side)}
        stretches = coloured_stretches(lane, side)
        ways += len(stretches)
        for begin, end in stretches:
            assert any(begin == pytest.approx(y, abs=0.02) for y in begins)
            assert any(end == pytest.approx(y, abs=0.02) for y in ends)
        for source, into, y, to in arrows:
            assert to == pytest.approx(y + DROP, abs=0.02)
            if source == side:  # what is read comes from above
                assert any(begin < y <= end + 0.02 for begin, end in stretches)
            if into == side:  # what is stitched in goes on below
                assert any(begin - 0.02 <= to < end for begin, end in stretches)
                if which == "pair":  # and nothing flows past it
                    assert not any(begin < y + DROP / 2 < end for begin, end in stretches)
    assert ways


def test_what_flows_past_a_stitch_in_a_shortcut_is_not_cut(branching: st.Supernetwork) -> None:
    names = [switch.name for switch in branching.switches]
    (switch,) = (i for i, name in enumerate(names) if name.endswith("-> a.layer1.0.bn1"))
    root = _drawn(branching, Genotype("a", frozenset([switch])))
    (_, _, y, to), *_ = arrow_ends(root)
    stretches = coloured_stretches(lane_of(root, "a"), "a")
    assert any(begin < y and to < end for begin, end in stretches)
    (row,) = (row for row in rows_of(lane_of(root, "a")) if row[0] == "layer1.0.bn1")
    assert row[2] == 0


def test_of_what_is_computed_in_part_a_share_is_coloured() -> None:
    view = st.View((3, 8, 8))
    a, b = (st.load_parent(Forked(), view=view, name=f"forked {side}") for side in SIDES)
    whole = st.stitch(a, b, points="all")
    number = [switch.name for switch in whole.switches].index("b.wide -> a.wide")
    forked = whole.keep([number])  # so that one row stands for both convolutions
    root = _drawn(forked, Genotype("a", frozenset([0])))
    for side, share in (("a", 1 / 4), ("b", 3 / 4)):
        rows = {name: widths for name, _, *widths in rows_of(lane_of(root, side))}
        stem = 3 * 4 / (4 * 8 + 3 * 4)  # its share of the MACs up to the second convolution
        coloured, grey = rows["wide"]
        assert coloured == pytest.approx((stem + share * (1 - stem)) * grey, abs=0.02)
    tips = [tip(group) for side in SIDES for group in lane_of(root, side).iter(f"{SVG}g")]
    assert "wide, NCHW 6×8×8: 0.003 M MACs, 0.001 M computed, replaced" in tips
    assert "wide, NCHW 6×8×8: 0.003 M MACs, 0.002 M computed" in tips


def test_both_stitches_of_a_match_cross(pair: st.Supernetwork) -> None:
    genotype = Genotype("ensemble", frozenset([20, 21]))
    root = _drawn(pair, genotype)
    there, back = arrow_ends(root)
    assert there[2:] == back[2:]
    assert (there[0], back[0]) == ("a", "b")
    for side in SIDES:
        rows = rows_of(lane_of(root, side))
        # all is computed: the parents swap what they have
        assert all(grey == 0 for _, _, _, grey in rows)
        above, below = coloured_stretches(lane_of(root, side), side)
        assert above == pytest.approx((rows[0][1], there[2]), abs=0.02)
        assert below == pytest.approx((there[3], rows[-1][1]), abs=0.02)
        assert not of_kind(lane_of(root, side), "path", "spine")  # a cut, not a grey line


def test_a_value_that_is_replaced_may_be_read_raw_by_a_stitch(pair: st.Supernetwork) -> None:
    """`a -> b` reads above the stitch into a, so that the latter does not reach b's output."""
    root = _drawn(pair, Genotype("b", frozenset([20, 21])))
    ((source, _, y, _),) = arrow_ends(root)
    assert source == "a"
    (begin, end), *more = coloured_stretches(lane_of(root, "a"), "a")
    assert not more
    assert (begin, end) == pytest.approx((rows_of(lane_of(root, "a"))[0][1], y), abs=0.02)


@pytest.mark.parametrize(("output", "other"), [("a", "b"), ("b", "a")])
def test_beside_a_parent_alone_the_other_is_grey(
    pair: st.Supernetwork, output: Output, other: str
) -> None:
    root = _drawn(pair, Genotype(output))
    assert all(grey == 0 for _, _, _, grey in rows_of(lane_of(root, output)))
    assert all(coloured == 0 for _, _, coloured, _ in rows_of(lane_of(root, other)))
    assert not coloured_stretches(lane_of(root, other), other)
    assert not of_kind(root, "g", "crossing")
    (idle,) = of_kind(root, "path", "idle")
    assert idle.attrib["d"].count("M") == len(pair.matches)
    (end,) = of_kind(root, "g", "output")
    assert len(of_kind(end, "path", "path")) == len(of_kind(end, "path", f"path {output}")) == 1
    assert len(of_kind(end, "rect", f"answer {output}")) == 1


def test_an_ensemble_is_where_both_lanes_join(pair: st.Supernetwork) -> None:
    root = _drawn(pair, Genotype("ensemble", frozenset([3, 30])))
    (end,) = of_kind(root, "g", "output")
    for side in SIDES:
        assert len(of_kind(end, "path", f"path {side}")) == 1
    assert len(of_kind(end, "rect", "answer ensemble")) == 1
    assert len(arrow_ends(root)) == 2
    assert of_kind(root, "path", "idle")[0].attrib["d"].count("M") == len(pair.matches) - 2


def test_switches_that_do_not_matter_are_not_drawn(pair: st.Supernetwork) -> None:
    last = len(pair.switches) - 2  # into b, behind everything that a needs
    genotype = Genotype("a", frozenset([last]))
    drawn = [str(pair.subnetwork(of).draw()) for of in (genotype, Genotype("a"))]
    assert drawn[0] == drawn[1]


def test_the_header_says_what_it_costs(pair: st.Supernetwork) -> None:
    subnetwork = pair.subnetwork(Genotype("ensemble", frozenset([8, 21, 33])))
    macs = subnetwork.macs
    root = _drawn(pair, subnetwork.genotype)
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert texts[:2] == ["trial 12", "test_resnet × test_efficientnet"]
    assert texts[2] == (
        f"{macs / 1e6:,.3f} M MACs, {subnetwork.parameters / 1e6:,.2f} M parameters, "
        f"{len(subnetwork.on)} of {len(pair.switches)} stitches, ensemble of a and b"
    )
    told = {text.rsplit(" ", 2)[0]: float(text.rsplit(" ", 2)[1]) for text in texts[3:7]}
    assert set(told) == {"parent a", "stitches", "parent b", "not computed"}
    assert sum(told.values()) - told["not computed"] == pytest.approx(macs / 1e6, abs=0.002)
    both = sum(pair.graphs[side].macs for side in SIDES) / 1e6
    assert sum(told.values()) == pytest.approx(both + told["stitches"], abs=0.002)
    (header,) = of_kind(root, "g", "header")
    bars = of_kind(header, "rect", "bar")[:4]  # those of the legend follow
    widths = {bar.attrib["class"].split()[1]: float(bar.attrib["width"]) for bar in bars}
    assert widths["a"] / widths["b"] == pytest.approx(told["parent a"] / told["parent b"], 0.05)
    untitled = ET.fromstring(str(subnetwork.draw()))
    (title,) = of_kind(untitled, "text", "title")
    assert title.text == "test_resnet × test_efficientnet"


@pytest.mark.slow
def test_400_blocks_a_lane_are_legible(deep: st.Supernetwork) -> None:
    # to and fro, at neighbours and far apart, and at last both ways
    matches = [0, 1, 2, 50, 51, 200, 399]
    on = {2 * match + place % 2 for place, match in enumerate(matches)}
    genotype = Genotype("ensemble", frozenset({*on, 798, 799}))
    assert deep.subnetwork(genotype).genotype == genotype
    root = _drawn(deep, genotype)
    assert_texts_have_room(root)
    assert float(root.attrib["width"]) < 1300
    for side in SIDES:
        lane = lane_of(root, side)
        rows = rows_of(lane)
        assert len(rows) == 402
        assert_bars_are_apart(lane)
        heights = [float(label.attrib["y"]) - 4 for label in of_kind(lane, "text", "label")]
        assert len(heights) > 100
        # the ends of stitches are named, whatever else is not
        for _, _, y, _ in arrow_ends(root):
            assert any(height == pytest.approx(y, abs=0.02) for height in heights)
    assert len(arrow_ends(root)) == len(genotype.on)


def test_it_is_small(deep: st.Supernetwork) -> None:
    """Since it is uploaded for every network of a front: in bytes."""
    genotype = Genotype("ensemble", frozenset(range(0, 800, 81)))
    assert len(str(deep.subnetwork(genotype).draw()).encode()) < 2 * 150_000


def test_names_are_escaped(deep: st.Supernetwork, tmp_path: Path) -> None:
    drawing = deep.subnetwork(Genotype("a")).draw(title="<trial> & 1")
    drawing.write(tmp_path / "trial.svg")
    for root in (ET.parse(tmp_path / "trial.svg").getroot(), ET.fromstring(drawing._repr_svg_())):
        assert tip(root) == f"<trial> & 1: {STRANGE} a × {STRANGE} b"
        parents = [text.text for text in of_kind(root, "text", "parent")]
        assert parents == [f"{side}: {STRANGE} {side}" for side in SIDES]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("which", ["pair", "branching", "trio"])
def test_texts_have_room_and_suit_light_and_dark(
    which: str, seed: int, request: pytest.FixtureRequest
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(which)
    root = _drawn(supernetwork, _random(supernetwork, seed))
    assert_texts_have_room(root)
    assert_suits_light_and_dark(root)


def test_a_subnetwork_draws_itself(pair: st.Supernetwork) -> None:
    subnetwork = pair.subnetwork(Genotype("b", frozenset([4])))
    of_params = pair.subnetwork(subnetwork.params)
    assert str(of_params.draw()) == str(draw_subnetwork(subnetwork))


def test_stitches_that_are_not_kept_have_no_line(pair: st.Supernetwork) -> None:
    kept = pair.keep([3, 8, 9])
    root = _drawn(kept, Genotype("a", frozenset([0])))
    assert len(arrow_ends(root)) == 1
    (idle,) = of_kind(root, "path", "idle")
    assert idle.attrib["d"].count("M") == 1
