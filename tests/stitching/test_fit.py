from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.models.layouts import Layout
from optuna_stitch.stitching.fit import StitchFit, _Job, _report
from optuna_stitch.stitching.genotype import Genotype, Switch
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.stitching.moments import Moments
from optuna_stitch.stitching.regression import Choices
from optuna_stitch.utils.errors import FitError
from tests.helpers.fixtures import FITTED
from tests.helpers.networks import networks


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A random map may be too near to one that cannot be inverted."""
    torch.manual_seed(0)


PLAIN = Choices((1,), everywhere=False, match_variance=False)


def _fit(
    source: Layout,
    target: Layout,
    x: Tensor,
    y: Tensor,
    *,
    kernel: int = 1,
    largest: int | None = None,
    parts: int = 1,
    context: bool = False,
    **options: Any,
) -> tuple[Stitch, StitchFit]:
    """Fit one stitch from its features, added in some parts."""
    switch = Switch("test", "x", "y", "b")
    choices = replace(PLAIN, **options)
    job = _Job.of(switch, Stitch(source, target), kernel, largest, choices, context=context)
    moments = Moments([pair for pair, _ in job.maps], 1000, 0)
    held_out = torch.arange(len(x)) % 5 == 4
    for some in torch.arange(len(x)).chunk(parts):
        assert moments.add({("a", "x"): x[some], ("b", "y"): y[some]}, held_out[some]) is None
    solutions = job.solve(moments)
    stitch = job.make(solutions)
    return stitch, _report(job, stitch, solutions[0])


def test_a_linear_relation_is_recovered() -> None:
    source, target = Layout("NCHW", 6, (4, 4)), Layout("NHWC", 3, (4, 4))
    weight, bias = torch.randn(3, 6), torch.randn(3)
    x = torch.randn(50, 6, 4, 4)
    y = torch.einsum("nchw,rc->nhwr", x, weight) + bias
    stitch, fitted = _fit(source, target, x, y)
    assert fitted.r2 > 0.9999
    assert torch.allclose(stitch.weight[:, :, 0, 0], weight, atol=1e-4)
    assert torch.allclose(stitch(x), y, atol=1e-3)


def test_the_solution_is_sklearns_ridge() -> None:
    source, target = Layout("NC", 5, (1, 1)), Layout("NC", 2, (1, 1))
    x = torch.randn(400, 5, dtype=torch.float64)
    y = x @ torch.randn(5, 2, dtype=torch.float64) + torch.randn(400, 2).double()
    stitch, fitted = _fit(source, target, x, y)
    strength = fitted.ridge * float(x.var(dim=0, correction=0).mean()) * len(x)
    expected = Ridge(alpha=strength).fit(x.numpy(), y.numpy())
    assert stitch.weight.flatten(1).numpy() == pytest.approx(expected.coef_, abs=1e-6)
    assert stitch.bias.flatten().numpy() == pytest.approx(expected.intercept_, abs=1e-6)


def test_prefix_tokens_have_maps_of_their_own() -> None:
    source = Layout("NLC", 4, (3, 3), prefix=1)
    target = Layout("NLC", 4, (3, 3), prefix=2)
    x = torch.randn(100, 10, 4)
    y = torch.cat([2 * x[:, :1], -x[:, :1], 3 * x[:, 1:]], dim=1)
    stitch, _ = _fit(source, target, x, y)
    assert torch.allclose(stitch(x), y, atol=1e-3)


def test_variance_is_restored() -> None:
    source, target = Layout("NCHW", 3, (4, 4)), Layout("NCHW", 3, (4, 4))
    x = torch.randn(200, 3, 4, 4)
    y = x + 2 * torch.randn(200, 3, 4, 4)  # most of it cannot be predicted
    shrunk, _ = _fit(source, target, x, y)
    matched, _ = _fit(source, target, x, y, match_variance=True)
    wanted = y.var(dim=(0, 2, 3))
    assert (shrunk(x).var(dim=(0, 2, 3)) < 0.5 * wanted).all()
    assert torch.allclose(matched(x).var(dim=(0, 2, 3)), wanted, rtol=0.02)
    assert torch.allclose(matched(x).mean((0, 2, 3)), y.mean((0, 2, 3)), atol=1e-3)


def test_dead_and_constant_channels_do_no_harm() -> None:
    source, target = Layout("NCHW", 4, (3, 3)), Layout("NCHW", 2, (3, 3))
    x = torch.randn(40, 4, 3, 3)
    x[:, 1] = 0
    x[:, 2] = 7
    y = torch.stack([x[:, 0] * 2, torch.full((40, 3, 3), 5.0)], dim=1)
    stitch, _ = _fit(source, target, x, y, match_variance=True)
    assert torch.allclose(stitch(x), y, atol=1e-3)
    nothing, _ = _fit(source, target, torch.zeros_like(x), y, match_variance=True)
    assert torch.allclose(nothing(torch.zeros_like(x)).mean((0, 2, 3)), y.mean((0, 2, 3)))


def test_positions_of_a_finer_grid_are_told_apart() -> None:
    fine, coarse = Layout("NCHW", 3, (8, 8)), Layout("NLC", 12, (4, 4))
    x = torch.randn(200, 3, 8, 8)
    y = torch.conv2d(x, torch.randn(12, 3, 2, 2), stride=2).flatten(2).transpose(1, 2) + 1
    for kernel in (1, 3):
        down, fitted = _fit(fine, coarse, x, y, kernel=kernel, rank_loss=0.01)
        assert fitted.r2 > 0.9999
        assert (down.kernel, down.folded) == (1, True)
        assert torch.allclose(down(x), y, atol=1e-2)
        assert down.macs == 16 * 12 * 12
    up, fitted = _fit(coarse, fine, y, x, everywhere=True, match_variance=True)
    assert fitted.r2 > 0.9999
    assert torch.allclose(up(y), x, atol=1e-2)
    assert up.macs == 16 * 12 * 12


def test_where_folding_reads_too_much_held_out_images_say_which_way_is_better() -> None:
    fine, coarse = Layout("NCHW", 40, (8, 8)), Layout("NCHW", 4, (4, 4))
    x = torch.randn(100, 40, 8, 8)
    averages = torch.nn.functional.avg_pool2d(x, 2)
    neighbours = torch.conv2d(averages, torch.randn(4, 40, 3, 3), padding=1)
    stitch, _ = _fit(fine, coarse, x, neighbours, kernel=3)
    assert (stitch.kernel, stitch.folded) == (3, False)
    corners = torch.conv2d(x, torch.randn(4, 40, 2, 2), stride=2)
    stitch, _ = _fit(fine, coarse, x, corners, kernel=3)
    assert (stitch.kernel, stitch.folded) == (1, True)


def test_grids_that_are_no_multiple_of_each_other_are_resampled() -> None:
    for grid, other in (((6, 6), (4, 4)), ((8, 8), (4, 2)), ((8, 8), (1, 1))):
        source, target = Layout("NCHW", 3, grid), Layout("NCHW", 2, other)
        stitch = Stitch(source, target, folded=True)
        assert not stitch.folded
        assert stitch(torch.randn(2, 3, *grid)).shape == (2, 2, *other)


@pytest.mark.parametrize("rank", [None, 3])
def test_what_all_positions_have_in_common_is_read_where_it_helps(rank: int | None) -> None:
    source, target = Layout("NLC", 8, (4, 4), prefix=1), Layout("NCHW", 8, (4, 4))
    x = torch.randn(300, 17, 8)
    x[:, 1:] += torch.randn(300, 1, 8)
    expand = torch.eye(8) if rank is None else torch.randn(8, rank)
    maps = [expand @ torch.randn(rank or 8, 8) for _ in range(3)]
    parts = (x[:, 1:], x[:, 1:].mean(1, keepdim=True), x[:, :1])
    y = sum((part @ one.T for part, one in zip(parts, maps, strict=True)), torch.tensor(2.0))
    y = y.mT.unflatten(2, (4, 4))
    for options in ({}, {"everywhere": True, "match_variance": True}):
        stitch, fitted = _fit(
            source, target, x, y, kernel=3, rank_loss=1e-5, context=True, parts=3, **options
        )
        assert (fitted.r2 > 0.9999, fitted.kernel) == (True, 1)
        assert torch.allclose(stitch(x), y, atol=2e-2)
        first, second = (rank * 8, rank * 8) if rank else (64, 0)
        assert stitch.macs == 16 * (first + second) + 2 * first
    blind, fitted = _fit(source, target, x, y)
    assert fitted.r2 < 0.9
    assert blind.context_weight is None
    itself = parts[0].mT.unflatten(2, (4, 4))
    alone, _ = _fit(source, target, x, itself, rank_loss=0.01, context=True)
    assert alone.context_weight is None


def test_features_that_hardly_differ_from_a_constant() -> None:
    layout = Layout("NCHW", 3, (2, 2))
    for size in (0.0, 1e-9, 1e-3):
        x = 1000 + size * torch.randn(50, 3, 2, 2, dtype=torch.float64)
        y = torch.randn(50, 3, 2, 2, dtype=torch.float64)
        stitch, _ = _fit(layout, layout, x, y, kernel=3, everywhere=True, match_variance=True)
        assert stitch(x.float()).isfinite().all()


def test_fewer_images_than_channels() -> None:
    source, target = Layout("NC", 64, (1, 1)), Layout("NC", 8, (1, 1))
    x, y = torch.randn(20, 64), torch.randn(20, 8)
    stitch, fitted = _fit(source, target, x, y, match_variance=True)
    assert stitch(x).isfinite().all()
    assert fitted.r2 < 1


def test_neighbours_are_read_where_they_help() -> None:
    source, target = Layout("NCHW", 4, (6, 6)), Layout("NCHW", 3, (6, 6))
    x = torch.randn(200, 4, 6, 6)
    weight = torch.randn(3, 4, 3, 3)
    y = torch.conv2d(x, weight, padding=1) + 1
    stitch, fitted = _fit(source, target, x, y, kernel=3, rank_loss=0.01, parts=3)
    assert (fitted.kernel, fitted.rank) == (3, 3)
    assert torch.allclose(stitch(x), y, atol=1e-2)
    alone, fitted = _fit(source, target, x, x[:, :3], kernel=3, rank_loss=0.01)
    assert fitted.kernel == 1
    assert alone.macs == 36 * 4 * 3


def test_a_low_rank_is_found_and_costs_less() -> None:
    source, target = Layout("NCHW", 20, (4, 4)), Layout("NCHW", 30, (4, 4))
    x = torch.randn(300, 20, 4, 4)
    weight = torch.randn(30, 4) @ torch.randn(4, 20)
    noise = 0.01 * torch.randn(300, 30, 4, 4)
    y = torch.einsum("nchw,rc->nrhw", x, weight) + noise
    full, fit_full = _fit(source, target, x, y)
    low, fit_low = _fit(source, target, x, y, rank_loss=0.001)
    assert (fit_full.rank, fit_low.rank) == (20, 4)
    assert full.macs == 16 * 20 * 30
    assert low.macs == 16 * 4 * (20 + 30)
    assert fit_low.r2 > 0.999
    assert torch.allclose(low(x), y, atol=0.2)


def test_a_budget_lowers_the_rank_to_the_best_of_that_size() -> None:
    source, target = Layout("NC", 10, (1, 1)), Layout("NC", 10, (1, 1))
    x = torch.randn(2000, 10)
    y = x * torch.arange(1, 11) + 0.1 * torch.randn(2000, 10)
    stitch, fitted = _fit(source, target, x, y, largest=70)
    assert fitted.rank == 3
    assert stitch.macs == 60
    # channels count alike, whatever their scale: each of the three is predicted in full
    explained = 1 - (stitch(x) - y).var(0) / y.var(0)
    assert float(explained.sum()) == pytest.approx(3, abs=0.4)


def test_every_position_has_a_bias_where_that_predicts_better() -> None:
    source, target = Layout("NCHW", 3, (4, 4)), Layout("NLC", 2, (4, 4), prefix=1)
    x = torch.randn(500, 3, 4, 4)
    place = 5 * torch.randn(16, 2)
    y = torch.cat([x.mean((2, 3))[:, None, :2], x[:, :2].flatten(2).transpose(1, 2) + place], 1)
    stitch, fitted = _fit(source, target, x, y, everywhere=True)
    assert stitch.bias.shape == (2, 4, 4)
    assert fitted.r2 > 0.999
    assert torch.allclose(stitch(x), y, atol=1e-2)
    alike, _ = _fit(source, Layout("NCHW", 2, (4, 4)), x, x[:, :2], everywhere=True)
    assert alike.bias.shape == (2, 1, 1)


def test_neighbours_and_positions_equal_least_squares_by_hand() -> None:
    torch.manual_seed(0)
    source, target = Layout("NCHW", 2, (3, 3)), Layout("NCHW", 2, (3, 3))
    x = torch.randn(500, 2, 3, 3, dtype=torch.float64) + 3 * torch.randn(2, 3, 3).double()
    y = x.flip(1).roll(1, 2) + 4 * torch.randn(2, 3, 3).double() + 0.1 * torch.randn_like(x)
    stitch, fitted = _fit(source, target, x, y, kernel=3, everywhere=True)
    assert fitted.kernel == 3
    assert fitted.ridge <= 1e-2
    columns = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
    places = torch.eye(9).double().repeat(500, 1)
    wanted = y.flatten(2).transpose(1, 2).flatten(0, 1)
    expected = LinearRegression(fit_intercept=False).fit(
        torch.cat([columns, places], 1).numpy(), wanted.numpy()
    )
    found = stitch.weight.flatten(1).numpy()
    assert found == pytest.approx(expected.coef_[:, :18], abs=0.01)
    assert stitch.bias.flatten(1).numpy() == pytest.approx(expected.coef_[:, 18:], abs=0.05)


def test_features_that_are_not_finite_are_named(a: st.Parent, b: st.Parent, data: st.Data) -> None:
    supernetwork = st.stitch(a, b)
    norm = next(m for m in a.module.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.weight.detach().clone()
    with torch.no_grad():
        norm.weight[0] = float("nan")
    try:
        with pytest.raises(FitError, match=r"stitch 'a\..* hold NaN or infinite .* parent a, at"):
            supernetwork.fit(data.train, images=20)
    finally:
        with torch.no_grad():
            norm.weight.copy_(before)


@pytest.mark.slow
def test_little_memory_means_more_passes_and_the_same_stitches(
    a: st.Parent, b: st.Parent, data: st.Data, capsys: pytest.CaptureFixture[str]
) -> None:
    once, often = st.stitch(a, b), st.stitch(a, b)
    once.fit(data.train, images=50)
    often.fit(data.train, images=50, memory=0.1)
    assert "passes over the images" in capsys.readouterr().err
    assert once.content_hash() == often.content_hash()
    with pytest.raises(FitError, match="raise `memory`"):
        often.fit(data.train, images=50, memory=1e-6)


def test_batches_of_any_size_give_the_same_stitches(
    a: st.Parent, b: st.Parent, data: st.Data
) -> None:
    one, other = st.stitch(a, b, points="blocks"), st.stitch(a, b, points="blocks")
    fits = [
        supernetwork.fit(data.train, images=32, batch_size=size)
        for supernetwork, size in ((one, 32), (other, 3))
    ]
    assert [entry.rank for entry in fits[0]] == [entry.rank for entry in fits[1]]
    for key, value in one.stitches.state_dict().items():
        assert torch.allclose(other.stitches.state_dict()[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_budget_holds_for_every_stitch(a: st.Parent, b: st.Parent, data: st.Data) -> None:
    supernetwork = st.stitch(a, b)
    fits = supernetwork.fit(data.train, images=50, budget=0.02)
    cheaper = min(graph.macs for graph in supernetwork.graphs.values())
    assert all(entry.macs <= 0.02 * cheaper or entry.rank == 1 for entry in fits)
    assert sum(entry.rank > 1 for entry in fits) > len(fits) / 2
    for index, entry in enumerate(fits):
        into = supernetwork.switches[index].into
        crossed = Genotype(into, frozenset([index]))
        resolved = supernetwork.supergraph.resolve(crossed)
        stitch = next(
            supernetwork.supergraph.operations[place]
            for place, _ in resolved.steps
            if supernetwork.supergraph.operations[place].owner == "stitch"
        )
        assert stitch.macs == entry.macs == supernetwork.stitches[index].macs


def test_too_few_images(a: st.Parent, b: st.Parent, data: st.Data) -> None:
    with pytest.raises(FitError, match="5 images are too few"):
        st.stitch(a, b).fit(data.train, images=5)


@pytest.mark.slow
def test_a_fit_is_repeatable_and_late_stitches_are_good(
    a: st.Parent, b: st.Parent, supernetwork: st.Supernetwork, data: st.Data
) -> None:
    again = st.stitch(a, b)
    fits = again.fit(data.train, **FITTED)
    assert again.content_hash() == supernetwork.content_hash()
    assert [entry.switch for entry in fits] == [switch.name for switch in again.switches]
    assert all(entry.macs > 0 for entry in fits)
    # a stitch into the last match must leave most of the weaker parent's accuracy
    evaluator = st.Evaluator(again, data.val)
    last = len(again.switches) - 2
    parents = evaluator.evaluate(networks(again, [Genotype("a"), Genotype("b")]))
    crossed = evaluator.evaluate(networks(again, [Genotype("b", frozenset([last]))]))[0]
    assert crossed["accuracy"] > min(p["accuracy"] for p in parents) - 0.1
