"""Any pair: every family of timm is captured, and random pairs of them are stitched."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from timm.layers import set_fused_attn
from torch.utils.flop_counter import FlopCounterMode

import optuna_stitch as st
from optuna_stitch.models.capture import TRACED_BATCH
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.models.parent import load_parent
from optuna_stitch.stitching.genotype import Genotype, Output, Side
from optuna_stitch.stitching.matching import PointKind, match
from tests.helpers import sweep

# Rows are kept here as they are made, so that a sweep that was interrupted goes on.
FOLDER = Path(os.environ.get("OPTUNA_STITCH_SWEEP", "runs/sweep"))

# Small networks of many kinds, for the tests that always run.
SAMPLE = [
    "test_resnet",
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_byobnet",
    "test_nfnet",
    "ghostnet_050",
    "lcnet_035",
    "mobilenetv4_conv_small_035",
    "xcit_nano_12_p8_224",
    "pvt_v2_b0",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "tiny_vit_5m_224",
    "resnetv2_18",
    "convit_tiny",
    "dla46x_c",
    "shvit_s1",
    "starnet_s050",
]
# Those of them that take seconds.
LARGER = {
    "convit_tiny",
    "dla46x_c",
    "edgenext_xx_small",
    "ghostnet_050",
    "mobilevit_xxs",
    "pvt_v2_b0",
    "resnetv2_18",
    "shvit_s1",
    "tiny_vit_5m_224",
    "xcit_nano_12_p8_224",
}
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in LARGER else n for n in SAMPLE]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_captured_exactly(name: str) -> None:
    row = sweep.capture_row(name)
    assert row["exact"], row
    assert row["dominators"] > 0


@pytest.mark.parametrize(
    "pair",
    [
        pair if place < 1 else pytest.param(pair, marks=pytest.mark.slow)
        for place, pair in enumerate(sweep.random_pairs(SAMPLE, 10, seed=1))
    ],
)
def test_a_sample_of_pairs_is_stitched(pair: str) -> None:
    row = sweep.pair_row(pair)
    assert row["parents_exact"], row
    assert row["genotypes_finite"] == 5, row
    assert row["matches"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_macs_equal_torchs_flop_counter(name: str) -> None:
    """The reference is eager, with attention written out as products that torch counts."""
    set_fused_attn(False)
    try:
        parent = load_parent(name)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            parent.module(sweep.random_images(parent, TRACED_BATCH))
    finally:
        set_fused_attn(True)
    fused = load_parent(name).graph()
    # per image, each node rounded down
    counted = counter.get_total_flops() / 2 / TRACED_BATCH
    assert counted - len(fused.costs) < fused.macs <= counted
    assert fused.parameters == sum(p.numel() for p in parent.module.parameters())


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(3600)
def test_every_family_of_timm_is_captured_exactly() -> None:
    families = timm.list_modules()
    found = sweep.keep_rows(
        FOLDER / "smallest.csv", families, lambda family: {"name": sweep.smallest(family)}
    )
    assert [row["key"] for row in found] == families  # none is passed over
    names = [row["name"] for row in found]
    rows = sweep.keep_rows(FOLDER / "families.csv", names, sweep.capture_row)
    assert [row["key"] for row in rows] == names
    assert [row for row in rows if row["exact"] != "True"] == []


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(7200)
def test_200_random_pairs_are_stitched() -> None:
    families = timm.list_modules()
    found = sweep.keep_rows(
        FOLDER / "smallest.csv", families, lambda family: {"name": sweep.smallest(family)}
    )
    pairs = sweep.random_pairs([row["name"] for row in found], 200)
    rows = sweep.keep_rows(FOLDER / "pairs.csv", pairs, sweep.pair_row)
    bad = [
        row
        for row in rows
        if row["parents_exact"] != "True" or row["genotypes_finite"] != "5" or row["error"]
    ]
    assert bad == []


@functools.cache
def _parent(name: str) -> st.Parent:
    return load_parent(name, num_classes=sweep.CLASSES)


@functools.cache
def _graph(name: str) -> NetworkGraph:
    return _parent(name).graph()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(some.data())
def test_no_genotype_of_any_pair_makes_a_cycle(draw: some.DataObject) -> None:
    """Whatever is on, an operation reads only what was computed before it."""
    a, b = (draw.draw(some.sampled_from(SAMPLE)) for _ in range(2))
    kind: PointKind = draw.draw(some.sampled_from(["auto", "all", "dominators"]))
    graphs: dict[Side, NetworkGraph] = {"a": _graph(a), "b": _graph(b)}
    matches = match(graphs["a"], graphs["b"], points=kind)
    supernetwork = st.Supernetwork(_parent(a), _parent(b), graphs, matches)
    switches = len(supernetwork.switches)
    for _ in range(5):
        on = draw.draw(some.frozensets(some.integers(0, switches - 1)))
        output: Output = draw.draw(some.sampled_from(["a", "b", "ensemble"]))
        resolved = supernetwork.supergraph.resolve(Genotype(output, on))
        computed: set[int] = set()
        for place, reads in resolved.steps:
            assert computed.issuperset(reads)
            computed.add(place)
        assert resolved.output in computed
