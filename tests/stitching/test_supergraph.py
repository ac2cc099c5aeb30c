from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.matching import Match
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.errors import MatchError


@settings(max_examples=30, deadline=None)
@given(some.data())
def test_any_genotype_runs_alone_and_reads_only_what_came_before(
    supernetwork: st.Supernetwork, draw: some.DataObject
) -> None:
    switches = len(supernetwork.switches)
    on = draw.draw(some.frozensets(some.integers(0, switches - 1)))
    output: Literal["a", "b", "ensemble"] = draw.draw(some.sampled_from(["a", "b", "ensemble"]))
    genotype = Genotype(output, on)
    resolved = supernetwork.supergraph.resolve(genotype)
    computed: set[int] = set()
    for place, reads in resolved.steps:
        assert computed.issuperset(reads)
        computed.add(place)
    assert resolved.used <= on
    canonical = supernetwork.subnetwork(genotype).genotype
    assert supernetwork.subnetwork(canonical).genotype == canonical
    assert supernetwork.supergraph.resolve(canonical) == resolved
    with torch.no_grad():
        logits = supernetwork.subnetwork(genotype).extract()(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)


def test_crossing_matches_are_refused(a: st.Parent, b: st.Parent) -> None:
    graphs = {"a": a.graph(), "b": b.graph()}
    first, last = (
        [point for point in graphs[side].points if point.dominator] for side in ("a", "b")
    )
    crossed = [Match(first[0], last[-1]), Match(first[-1], last[0])]
    with pytest.raises(MatchError, match="cycle"):
        Supernetwork(a, b, graphs, crossed)  # type: ignore[arg-type]
