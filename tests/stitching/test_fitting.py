from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge

import optuna_stitch as st
from optuna_stitch.errors import FitError
from optuna_stitch.networks.layouts import Layout
from optuna_stitch.stitching.fitting import StitchFit, _Regression
from optuna_stitch.stitching.layers import Stitch


def _fit(
    source: Layout, target: Layout, x: torch.Tensor, y: torch.Tensor, **options: bool
) -> tuple[Stitch, StitchFit]:
    stitch = Stitch(source, target)
    regression = _Regression("test", stitch, options.get("match_variance", False))
    held_out = torch.arange(len(x)) % 5 == 4
    regression.add(x, y, held_out, 1000, torch.Generator())
    return stitch, regression.solve()


def test_a_linear_relation_is_recovered() -> None:
    source, target = Layout("NCHW", 6, (4, 4)), Layout("NHWC", 3, (4, 4))
    weight, bias = torch.randn(3, 6), torch.randn(3)
    x = torch.randn(50, 6, 4, 4)
    y = torch.einsum("nchw,rc->nhwr", x, weight) + bias
    stitch, fitted = _fit(source, target, x, y)
    assert fitted.r2 > 0.9999
    assert torch.allclose(stitch.weight, weight, atol=1e-4)
    assert torch.allclose(stitch(x), y, atol=1e-3)


def test_the_solution_is_sklearns_ridge() -> None:
    source, target = Layout("NC", 5, (1, 1)), Layout("NC", 2, (1, 1))
    x = torch.randn(400, 5, dtype=torch.float64)
    y = x @ torch.randn(5, 2, dtype=torch.float64) + torch.randn(400, 2).double()
    stitch, fitted = _fit(source, target, x, y)
    strength = fitted.ridge * float(x.var(dim=0, correction=0).mean()) * len(x)
    expected = Ridge(alpha=strength).fit(x.numpy(), y.numpy())
    assert stitch.weight.numpy() == pytest.approx(expected.coef_, abs=1e-6)
    assert stitch.bias.numpy() == pytest.approx(expected.intercept_, abs=1e-6)


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


def test_fewer_images_than_channels() -> None:
    source, target = Layout("NC", 64, (1, 1)), Layout("NC", 8, (1, 1))
    x, y = torch.randn(20, 64), torch.randn(20, 8)
    stitch, fitted = _fit(source, target, x, y, match_variance=True)
    assert stitch(x).isfinite().all()
    assert fitted.r2 < 1


def test_features_that_are_not_finite_are_named() -> None:
    layout = Layout("NC", 2, (1, 1))
    x = torch.tensor([[1.0, float("nan")]] * 10)
    with pytest.raises(FitError, match="'test' hold NaN or infinite"):
        _fit(layout, layout, x, x)


def test_too_few_images(a: st.Parent, b: st.Parent, data: st.Data) -> None:
    with pytest.raises(FitError, match="5 images are too few"):
        st.fit(st.stitch(a, b), data.train, images=5)


def test_a_fit_is_repeatable_and_late_stitches_are_good(
    a: st.Parent, b: st.Parent, supernetwork: st.Supernetwork, data: st.Data
) -> None:
    again = st.stitch(a, b)
    fits = st.fit(again, data.train)
    assert again.content_hash() == supernetwork.content_hash()
    assert [entry.switch for entry in fits] == [switch.name for switch in again.switches]
    assert all(entry.macs > 0 for entry in fits)
    # a stitch into the last match must leave most of the weaker parent's accuracy
    evaluator = st.Evaluator(again, data.val)
    last = len(again.switches) - 2
    parents = evaluator.evaluate([st.Genotype("a"), st.Genotype("b")])
    crossed = evaluator.evaluate([st.Genotype("b", frozenset([last]))])[0]
    assert crossed["accuracy"] > min(p["accuracy"] for p in parents) - 0.1
