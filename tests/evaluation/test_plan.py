from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

import optuna_stitch as st
from optuna_stitch.evaluation.engine import Engine, divide
from optuna_stitch.evaluation.settings import Kernels
from optuna_stitch.stitching import program as sharing
from optuna_stitch.stitching.genotype import Genotype, single_stitch_genotypes
from tests.helpers.networks import networks
from tests.helpers.plans import plan


def _genotypes(supernetwork: st.Supernetwork) -> some.SearchStrategy[list[Genotype]]:
    switch = some.integers(0, len(supernetwork.switches) - 1)
    genotype = some.builds(
        Genotype,
        some.sampled_from(["a", "b", "ensemble"]),
        some.frozensets(switch, max_size=4),
    )
    return some.lists(genotype, min_size=1, max_size=6)


_SLOW_PAIRS = [pytest.param(pair, marks=pytest.mark.slow) for pair in ("cnn_vit", "tokens")]


@settings(max_examples=10, deadline=None)
@given(some.data())
@pytest.mark.parametrize("pair", ["supernetwork", *_SLOW_PAIRS])
def test_together_or_alone_logits_are_equal_bit_for_bit(
    request: pytest.FixtureRequest, images: Tensor, pair: str, draw: some.DataObject
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(pair)
    genotypes = draw.draw(_genotypes(supernetwork))
    with torch.inference_mode():
        together = plan(supernetwork, genotypes).run([images])
        for genotype, logits in zip(genotypes, together, strict=True):
            alone = supernetwork.subnetwork(genotype).extract()(images)
            # a single-stitch network into a shallow point may overflow to NaN, then both must
            assert torch.equal(logits.nan_to_num(), alone.nan_to_num())


@settings(max_examples=5, deadline=None)
@given(some.data())
@pytest.mark.parametrize(
    "pair",
    ["supernetwork", pytest.param("plain_norms", marks=pytest.mark.slow), *_SLOW_PAIRS],
)
def test_with_fast_kernels_too(
    request: pytest.FixtureRequest, images: Tensor, pair: str, draw: some.DataObject
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(pair)
    genotypes = draw.draw(_genotypes(supernetwork))
    engine = Engine(supernetwork.supergraph, "fast", memory=1, batch_size=len(images))
    together = _run(engine, genotypes, images)
    for genotype, logits in zip(genotypes, together, strict=True):
        (alone,) = _run(engine, [genotype], images)
        assert torch.equal(logits.nan_to_num(), alone.nan_to_num())
        with torch.no_grad():
            plain = supernetwork.subnetwork(genotype).extract()(images)
        assert torch.allclose(logits, plain, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_fast_kernels_are_what_torch_makes_of_the_extracted_module(
    plain_norms: st.Supernetwork, images: Tensor
) -> None:
    # a convolution that a stitch reads or replaces is not folded, which torch cannot know
    modules = {
        side: dict(graph.module.named_modules()) for side, graph in plain_norms.graphs.items()
    }

    def convolves(side: str, node: str) -> bool:
        return isinstance(modules[side].get(node.removeprefix("_")), nn.Conv2d)  # type: ignore[index]

    supernetwork = plain_norms.keep(
        [
            index
            for index, switch in enumerate(plain_norms.switches)
            if not convolves(switch.into, switch.target)
            and not convolves("a" if switch.into == "b" else "b", switch.source)
        ]
    )
    engine = Engine(supernetwork.supergraph, "fast", memory=1, batch_size=len(images))
    genotypes = [Genotype("ensemble"), *single_stitch_genotypes(supernetwork.switches)]
    assert len(genotypes) > 4
    for genotype, logits in zip(genotypes, _run(engine, genotypes, images), strict=True):
        module = supernetwork.subnetwork(genotype).extract()
        assert isinstance(module, fx.GraphModule)
        fused = fuse(module, no_trace=True)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in _called(fused))
        with torch.no_grad():
            alone = fused(images.contiguous(memory_format=torch.channels_last))
        assert torch.equal(logits, alone)


def _called(module: fx.GraphModule) -> list[nn.Module]:
    calls = [node for node in module.graph.nodes if node.op == "call_module"]
    return [module.get_submodule(str(node.target)) for node in calls]


@torch.no_grad()
def _run(engine: Engine, genotypes: list[Genotype], images: Tensor) -> list[Tensor]:
    subnetworks = [st.Subnetwork.of(engine.supergraph, genotype) for genotype in genotypes]
    program = divide(engine.supergraph, subnetworks, batch_size=len(images))[0].program
    return engine.run(engine.prepare(program), [images])


@pytest.fixture(scope="session")
def tokens(vit: st.Parent, data: st.Data) -> st.Supernetwork:
    """Channels last in the network itself, and tokens with a prefix."""
    other = st.load_parent("test_mambaout", num_classes=10, view=vit.view)
    supernetwork = st.stitch(other, vit)
    supernetwork.fit(data.train)
    kinds = {
        layout.kind for made in supernetwork.stitches for layout in (made.source, made.target)
    }
    assert {"NHWC", "NLC"} <= kinds
    return supernetwork


@pytest.fixture(scope="session")
def plain_norms(data: st.Data) -> st.Supernetwork:
    """Two networks whose BatchNorms are torch's own, which torch's fusion knows."""

    def parent(width: int) -> st.Parent:
        torch.manual_seed(width)
        module = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 1),
            nn.BatchNorm2d(2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, 10),
        )
        with torch.no_grad():
            module(torch.randn(64, 3, 32, 32))  # in training mode: BatchNorms take statistics
        return st.load_parent(module.eval(), name=f"cnn{width}", input_size=32)

    supernetwork = st.stitch(parent(8), parent(12))
    supernetwork.fit(data.train)
    return supernetwork


def test_what_subnetworks_share_is_computed_once(supernetwork: st.Supernetwork) -> None:
    parents = [Genotype("a"), Genotype("b"), Genotype("ensemble")]
    both = supernetwork.subnetwork(Genotype("ensemble")).macs
    assert plan(supernetwork, parents).macs == both
    last = len(supernetwork.switches) - 2
    crossed = Genotype("b", frozenset([last]))
    together = plan(supernetwork, [*parents, crossed])
    assert both < together.macs < both + supernetwork.subnetwork(crossed).macs / 2


def test_no_more_is_alive_than_is_said(supernetwork: st.Supernetwork, images: Tensor) -> None:
    made = supernetwork.supergraph.program(single_stitch_genotypes(supernetwork.switches))
    alive: dict[int, int] = {}
    largest = 0
    with torch.no_grad():
        for step, value in made.values([images]):
            alive[step] = value.numel() if isinstance(value, Tensor) else 0
            largest = max(largest, sum(alive.values()))
            later = made.reads[step + 1 :]
            needed = {read for reads in later for read in reads} | set(made.outputs)
            alive = {kept: size for kept, size in alive.items() if kept in needed}
    assert largest == made.elements * len(images)


def test_a_plan_over_its_budget_is_divided(supernetwork: st.Supernetwork) -> None:
    every = networks(supernetwork, single_stitch_genotypes(supernetwork.switches))
    subnetworks = list(dict.fromkeys(every))
    genotypes = [subnetwork.genotype for subnetwork in subnetworks]
    graph = supernetwork.supergraph
    whole = graph.program(genotypes)
    largest_alone = max(graph.program([genotype]).elements for genotype in genotypes)
    assert largest_alone < whole.elements
    budget = 4 * 50 * (largest_alone + whole.elements) / 2
    parts = divide(graph, subnetworks, budget=budget, batch_size=50)
    assert 1 < len(parts) < len(genotypes)
    divided = [subnetwork for part in parts for subnetwork in part.subnetworks]
    assert sorted(map(subnetworks.index, divided)) == list(range(len(genotypes)))
    for part in parts:
        assert 4 * 50 * part.program.elements <= budget
    alone = divide(graph, subnetworks, budget=1, batch_size=50)
    assert [len(part.subnetworks) for part in alone] == [1] * len(genotypes)
    # logits that have to be kept count too
    kept = divide(graph, subnetworks, budget=budget, batch_size=50, kept=int(budget / 16))
    assert len(kept) > len(parts)


def test_an_order_that_ends_branches_keeps_less_alive(
    supernetwork: st.Supernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    genotypes = single_stitch_genotypes(supernetwork.switches)
    ordered = supernetwork.supergraph.program(genotypes)
    for step, reads in enumerate(ordered.reads):
        assert all(read < step for read in reads)
    monkeypatch.setattr(sharing, "_depth_first", lambda steps: list(range(len(steps))))
    as_asked = supernetwork.supergraph.program(genotypes)
    assert as_asked.macs == ordered.macs
    assert ordered.elements < as_asked.elements


@pytest.mark.parametrize("kernels", ["float16", "bfloat16"])
def test_sixteen_bits_are_near_and_not_exact(
    supernetwork: st.Supernetwork, images: Tensor, kernels: Kernels
) -> None:
    genotypes = [Genotype("b"), single_stitch_genotypes(supernetwork.switches)[-1]]
    exact, rounded = (
        _run(
            Engine(supernetwork.supergraph, chosen, memory=1, batch_size=len(images)),
            genotypes,
            images,
        )
        for chosen in ("fast", kernels)
    )
    for logits, near in zip(exact, rounded, strict=True):
        assert not torch.equal(logits, near.float())
        assert (logits - near.float()).norm() < 0.05 * logits.norm()
