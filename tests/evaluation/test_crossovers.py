from __future__ import annotations

from dataclasses import replace

import pytest

import optuna_stitch as st


@pytest.fixture(scope="module")
def crossovers(a: st.Parent, b: st.Parent, data: st.Data) -> list[st.Crossover]:
    supernetwork = st.stitch(a, b)
    fits = st.fit(supernetwork, data.train, images=100)
    return st.measure_crossovers(supernetwork, fits, data.val.take(100))


def test_each_is_the_network_with_one_stitch_on(
    crossovers: list[st.Crossover], a: st.Parent, b: st.Parent, data: st.Data
) -> None:
    supernetwork = st.stitch(a, b)
    st.fit(supernetwork, data.train, images=100)
    evaluator = st.Evaluator(supernetwork, data.val.take(100), ["accuracy", "macs"])
    parents = evaluator.evaluate([st.Genotype("a"), st.Genotype("b")])
    weaker = min(entry["accuracy"] for entry in parents)
    for index in (0, len(crossovers) - 1):
        crossover = crossovers[index]
        alone = st.Genotype(crossover.into, frozenset([index]))
        figures = evaluator.evaluate([alone])[0]
        assert crossover.switch == supernetwork.switches[index].name
        assert (crossover.quality, crossover.macs) == (figures["accuracy"], figures["macs"])
        assert crossover.drop == pytest.approx(weaker - figures["accuracy"])
        assert crossover.stitch_macs == supernetwork.laid[index].macs
    assert [c.depth_a for c in crossovers] == sorted(c.depth_a for c in crossovers)


def test_the_best_are_kept(crossovers: list[st.Crossover]) -> None:
    some = [
        replace(crossovers[0], quality=quality, drop=0.9 - quality, r2=r2)
        for quality, r2 in ((0.9, 0.1), (0.5, 0.9), (0.8, 0.8), (0.7, 0.7))
    ]
    assert st.best_stitches(some) == [0, 1, 2, 3]
    assert st.best_stitches(some, best=2) == [0, 2]
    assert st.best_stitches(some, min_r2=0.7) == [1, 2, 3]
    assert st.best_stitches(some, max_accuracy_drop=0.25) == [0, 2, 3]
    assert st.best_stitches(some, max_accuracy_drop=0.25, min_r2=0.75) == [2]
    assert st.best_stitches(some, min_r2=0.99) == []
