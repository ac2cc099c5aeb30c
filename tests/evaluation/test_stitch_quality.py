from __future__ import annotations

from dataclasses import replace

import pytest

import optuna_stitch as st
from optuna_stitch.evaluation.stitch_quality import StitchQuality, best_stitches, measure_stitches
from optuna_stitch.stitching.genotype import Genotype
from tests.helpers.networks import networks


def test_each_is_the_network_with_one_stitch_on(a: st.Parent, b: st.Parent, data: st.Data) -> None:
    supernetwork = st.stitch(a, b, points="blocks")
    fits = supernetwork.fit(data.train, images=100)
    stitch_qualities = measure_stitches(supernetwork, fits, data.val.take(100))
    evaluator = st.Evaluator(supernetwork, data.val.take(100), ["accuracy", "macs"])
    parents = evaluator.evaluate(networks(supernetwork, [Genotype("a"), Genotype("b")]))
    weaker = min(entry["accuracy"] for entry in parents)
    for index in (0, len(stitch_qualities) - 1):
        stitch_quality = stitch_qualities[index]
        alone = Genotype(stitch_quality.into, frozenset([index]))
        figures = evaluator.evaluate(networks(supernetwork, [alone]))[0]
        assert stitch_quality.switch == supernetwork.switches[index].name
        assert (stitch_quality.quality, stitch_quality.macs) == (
            figures["accuracy"],
            figures["macs"],
        )
        assert stitch_quality.drop == pytest.approx(weaker - figures["accuracy"])
        assert stitch_quality.stitch_macs == supernetwork.stitches[index].macs
    assert [c.depth_a for c in stitch_qualities] == sorted(c.depth_a for c in stitch_qualities)


def test_the_best_are_kept() -> None:
    one = StitchQuality("a.x -> b.y", "b", 0.5, 0.5, 0.0, 1.0, 1, 4, 1000, 10_000, 0.0, 0.0)
    some = [
        replace(one, quality=quality, drop=0.9 - quality, r2=r2)
        for quality, r2 in ((0.9, 0.1), (0.5, 0.9), (0.8, 0.8), (0.7, 0.7))
    ]
    assert best_stitches(some) == [0, 1, 2, 3]
    assert best_stitches(some, best=2) == [0, 2]
    assert best_stitches(some, min_r2=0.7) == [1, 2, 3]
    assert best_stitches(some, max_accuracy_drop=0.25) == [0, 2, 3]
    assert best_stitches(some, max_accuracy_drop=0.25, min_r2=0.75) == [2]
    assert best_stitches(some, min_r2=0.99) == []
