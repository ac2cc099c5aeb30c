from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype, first_of, outputs_of
from optuna_stitch.stitching.matching import Similarity, match, match_all
from optuna_stitch.stitching.supergraph import node_operation
from optuna_stitch.utils.errors import ArtifactError, MatchError, StudyError
from tests.helpers.networks import SmallNetwork, small_parents, small_trio


class Branched(nn.Module):
    """Ten classes, by convolutions of which each reads some of those before it."""

    def __init__(self, reads: Sequence[Sequence[int]], width: int) -> None:
        super().__init__()
        self.reads = reads
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in reads)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        values = [self.stem(images)]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            read = values[reads[0]]
            for other in reads[1:]:
                read = read + values[other]
            values.append(layer(read).relu())
        whole = values[-1]
        for other in values[:-1]:
            whole = whole + other
        logits: Tensor = self.head(whole.mean((2, 3)))
        return logits


@some.composite
def branched(draw: some.DrawFn) -> Branched:
    reads = [
        draw(some.lists(some.integers(0, place), min_size=1, max_size=3, unique=True))
        for place in range(draw(some.integers(1, 5)))
    ]
    return Branched(reads, draw(some.integers(2, 4)))


def answers(
    supernetwork: st.Supernetwork, on: frozenset[int], images: Tensor
) -> dict[str, Tensor]:
    """What every head answers, from the definition: the first stitch that is on replaces."""
    graphs = supernetwork.graphs
    raw: dict[tuple[str, str], Tensor] = {}

    def value(side: str, name: str) -> Tensor:
        """Before the point's own switches."""
        if (side, name) not in raw:
            graph = graphs[side].module
            node = next(n for n in graph.graph.nodes if n.name == name)
            if node.op == "placeholder":
                return images
            reads = [read(side, other.name) for other in node.all_input_nodes]
            raw[side, name] = node_operation(graph, node)(*reads)
        return raw[side, name]

    def read(side: str, name: str) -> Tensor:
        for index, switch in enumerate(supernetwork.switches):
            if index in on and (switch.into, switch.target) == (side, name):
                found: Tensor = supernetwork.stitches[index](value(switch.out_of, switch.source))
                return found
        return value(side, name)

    return {side: value(side, graph.output.name) for side, graph in graphs.items()}


@settings(max_examples=3, deadline=None)
@given(some.data())
def test_matches_of_many_networks_never_make_a_cycle(draw: some.DataObject) -> None:
    _check_many(draw)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(some.data())
def test_matches_of_very_many_networks_never_make_a_cycle(draw: some.DataObject) -> None:
    _check_many(draw)


def _check_many(draw: some.DataObject) -> None:
    torch.manual_seed(0)
    count = draw.draw(some.integers(2, 5))
    supernetwork = st.stitch(
        *small_parents([draw.draw(branched()) for _ in range(count)]), points="all"
    )
    for pair in itertools.combinations(supernetwork.sides, 2):
        own = [match for match in supernetwork.matches if match.sides == pair]
        ends = [(match.a.depth, match.b.depth) for match in own]
        assert ends == sorted(ends)  # the order of both
        assert len({m.a.node for m in own}) == len({m.b.node for m in own}) == len(own)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for weight in supernetwork.stitches.parameters():
            nn.init.normal_(weight)
        for side, parent in supernetwork.parents.items():
            alone = supernetwork.subnetwork({"output": side}).extract()
            assert torch.equal(alone(images), parent.module(images))
        switches = len(supernetwork.switches)
        on = draw.draw(some.frozensets(some.integers(0, switches - 1)))
        expected = answers(supernetwork, on, images)  # would not end where there is a cycle
        for side, logits in expected.items():
            found = supernetwork.subnetwork(Genotype(side, on))
            assert torch.equal(found.extract()(images), logits)
            assert found.on <= on
            # what was left out of the canonical form has no effect
            assert torch.equal(answers(supernetwork, found.on, images)[side], logits)
            assert supernetwork.subnetwork(found.genotype) == found


def test_orders_of_two_that_make_a_cycle_together_become_one_order() -> None:
    parents = small_parents([SmallNetwork(4, segments=False) for _ in range(3)])
    graphs = {side: parent.graph() for side, parent in zip("abc", parents, strict=True)}

    def like_the(shift: int) -> Similarity:
        """A point is like the next one of the other network, or like the one before."""
        return lambda _a, _b, of_a, of_b: np.eye(len(of_a), len(of_b), k=shift)

    similarities = {("a", "b"): like_the(1), ("b", "c"): like_the(1), ("a", "c"): like_the(-1)}
    alone = [
        replace(pair, sides=sides)
        for sides, similar in similarities.items()
        for pair in match(*(graphs[s] for s in sides), points="all", similarity=similar)
    ]
    a, b, c = parents
    with pytest.raises(MatchError, match="cycle"):
        st.Supernetwork(a, b, graphs, alone, others=[c])
    together = match_all(graphs, points="all", similarities=similarities)
    assert 0 < len(together) < len(alone)
    assert st.Supernetwork(a, b, graphs, together, others=[c]).sides == ("a", "b", "c")


def test_only_the_first_stitch_into_a_point_counts() -> None:
    supernetwork = small_trio()
    into: dict[tuple[str, str], list[int]] = {}
    for index, switch in enumerate(supernetwork.switches):
        into.setdefault((switch.into, switch.target), []).append(index)
    first, second = next(ways for ways in into.values() if len(ways) == 2)
    side = supernetwork.switches[first].into
    both = supernetwork.subnetwork(Genotype(side, frozenset([first, second])))
    assert both == supernetwork.subnetwork(Genotype(side, frozenset([first])))
    assert both != supernetwork.subnetwork(Genotype(side, frozenset([second])))
    asked: list[int] = []

    def asks(index: int) -> bool:
        asked.append(index)
        return index == first

    assert supernetwork.supergraph.reach(side, asks) == {first}
    assert second not in asked


def test_outputs_are_means_and_cascades_of_what_the_heads_answer() -> None:
    supernetwork = small_trio()
    on = frozenset(range(0, len(supernetwork.switches), 3))
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        heads = answers(supernetwork, on, images)
        for output in supernetwork.supergraph.outputs:
            if first_of(output) is not None:
                continue
            logits = supernetwork.subnetwork(Genotype(output, on)).extract()(images)
            sides = "abc" if output == "ensemble" else output.split("+")
            mean = torch.stack([heads[side].softmax(1) for side in sides]).mean(0)
            torch.testing.assert_close(logits.softmax(1), mean)
    assert supernetwork.supergraph.outputs == outputs_of("abc")
    with pytest.raises(StudyError, match="a then a\\+b"):
        supernetwork.subnetwork({"output": "a then both"})


def test_a_cascade_asks_two_of_three(data: st.Data) -> None:
    supernetwork = small_trio()
    split = data.val.take(60)
    evaluator = st.Evaluator(supernetwork, split, ["accuracy", "macs"])
    params = {"output": "c then b+c", "threshold": 0.3}
    cascade = supernetwork.subnetwork(params)
    (tuned,) = evaluator.tune_exits([cascade])
    assert tuned.exit is not None
    assert tuned.exit.sides == ("b", "c")
    assert tuned.exit.recipe.startswith("c where")
    module = tuned.extract()
    images = split.pick(range(60), supernetwork.views).images[0]
    with torch.no_grad():
        found = module(images)
        b, c = (supernetwork.parents[side].module(images) for side in "bc")
        went_on = tuned.exit.goes_on(c)
        assert 0 < int(went_on.sum()) < 60
        torch.testing.assert_close(found[~went_on], c[~went_on])
        torch.testing.assert_close(found[went_on], tuned.exit.mean(b, c)[went_on])
    macs = {side: graph.macs for side, graph in supernetwork.graphs.items()}
    assert cascade.macs == round(macs["c"] + 0.3 * macs["b"])
    assert evaluator.evaluate([cascade])[0]["macs"] == cascade.macs


def test_three_are_saved_and_loaded(tmp_path: Path, data: st.Data) -> None:
    supernetwork = small_trio()
    supernetwork.fit(data.train.take(40), kernel=1, recalibrate=0)
    kept = supernetwork.keep([1, 4, 7])
    kept.save(tmp_path)
    parents = dict(zip("abc", small_trio().parents.values(), strict=True))
    loaded = st.Supernetwork.load(tmp_path, **parents)
    assert loaded.content_hash() == kept.content_hash()
    assert loaded.switches == kept.switches
    assert list(loaded.match_table()["parents"]) == [", ".join(m.sides) for m in kept.matches]
    with pytest.raises(ArtifactError, match="has no parent d"):
        st.Supernetwork.load(tmp_path, **parents, d=parents["c"])


def test_what_three_parents_cannot_be_is_said() -> None:
    small, labelled = (SmallNetwork(4, segments=segments) for segments in (False, True))
    with pytest.raises(MatchError, match="Parents a, network 0, and c, network 2, have two jobs"):
        st.stitch(*small_parents([small, SmallNetwork(6, segments=False), labelled]))
    with pytest.raises(MatchError, match="9 parents are more than 8"):
        st.stitch(*small_parents([small] * 9))
