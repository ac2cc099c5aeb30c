"""The captured network is the network, or it is refused by the name of what makes it another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optuna_stitch as st
from optuna_stitch.utils.errors import CaptureError
from tests.helpers.modules import Tiny, save_program, with_head

PIXELS = 32


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _rounded(x: Tensor) -> Tensor:
    """Rounding that depends on the size of a batch, as kernels' does, many times over."""
    mean, count = _mean(x), 2 * x.shape[0] + 1
    return mean + 1e5 * (mean * count / count - mean)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _attended(x: Tensor, dropout: float) -> Tensor:
    tokens = _tokens(x)
    return F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=dropout).mean(1)


def _hooked(part: str, *, before: bool = False, returns: bool = True) -> nn.Module:
    module = Tiny()
    changed = module.get_submodule(part)
    if before:
        changed.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    else:
        changed.register_forward_hook(lambda _, __, x: x / 2 + 1 if returns else None)
    return module


class _Counting(Tiny):
    """Keeps a number from call to call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class _FrozenNoise(Tiny):
    """Draws numbers which tracing takes for constants."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(10)


class _WritesToItsImages(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return super().forward(x)


class _Answers(NamedTuple):
    logits: Tensor
    features: Tensor


class _Named(Tiny):
    def forward(self, x: Tensor) -> _Answers:  # type: ignore[override]
        return _Answers(super().forward(x), x)


class _Stubborn(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.BatchNorm2d(8)

    def train(self, mode: bool = True) -> _Stubborn:
        return super().train(True)


def _patched() -> nn.Module:
    module = Tiny()
    module.forward = lambda x: 3 * Tiny.forward(module, x)  # type: ignore[method-assign]
    return module


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout that forgets the mode": (
        lambda: with_head(lambda x: F.dropout(_mean(x), 0.5)),
        r"random numbers, in `dropout`.*training=self\.training",
    ),
    "dropout that hardly ever drops": (
        lambda: with_head(lambda x: F.dropout(_mean(x), 1e-4)),
        "random numbers, in `dropout`",
    ),
    "dropout in attention": (
        lambda: with_head(lambda x: _attended(x, 0.1)),
        "random numbers, in `scaled_dot_product_attention`",
    ),
    "noise": (lambda: with_head(lambda x: _mean(x + torch.randn_like(x))), "in `randn_like`"),
    "noise that tracing freezes": (_FrozenNoise, "other answers each time it runs"),
    "a counter": (_Counting, "other answers each time it runs"),
    "BatchNorm without statistics": (
        lambda: with_head(_mean, nn.BatchNorm2d(8, track_running_stats=False)),
        r"others in its batch, because of `part` \(BatchNorm2d\).*track_running_stats=True",
    ),
    "functional BatchNorm": (
        lambda: with_head(lambda x: _mean(F.batch_norm(x, None, None, training=True))),
        "others in its batch, because of `batch_norm`",
    ),
    "the mean of a batch": (
        lambda: with_head(lambda x: _mean(x - x.mean(0))),
        "others in its batch, because of `mean`",
    ),
    "a dimension that a single image loses": (
        lambda: with_head(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze()),
        "because of `squeeze`",
    ),
    "a module that stays in train mode": (
        lambda: _Stubborn(),
        r"part of mine is in train mode even after `eval\(\)`",
    ),
    "a forward put on an object": (_patched, "other answers than the network"),
    "a hook on the outermost module": (lambda: _hooked(""), r"hook `_hooked.*lambda>`"),
    "probabilities": (
        lambda: nn.Sequential(Tiny(), nn.Softmax(1)),
        r"returns probabilities.* Leave its softmax out, or return the logarithm",
    ),
    "a named tuple": (_Named, r"does not return one tensor of logits\. Wrap it"),
    "a hook before it": (lambda: _hooked("", before=True), r"hook `_hooked.*lambda>`"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_graph_cannot_be_is_refused_by_name(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(CaptureError, match=message):
        st.load_parent(make(), input_size=PIXELS, name="mine").graph()


SAME: dict[str, Callable[[], nn.Module]] = {
    "dropout that knows the mode": lambda: with_head(_mean, nn.Dropout2d(0.5)),
    "stochastic depth": lambda: with_head(_mean, timm.layers.DropPath(0.5)),
    "a randomized activation": lambda: with_head(_mean, nn.RReLU()),
    "statistics of one image": lambda: with_head(lambda x: F.instance_norm(x).amax((2, 3))),
    "attention": lambda: with_head(lambda x: _attended(x, 0.0)),
    "a hook on a part": lambda: _hooked("second"),
    "a hook that only looks": lambda: _hooked("", returns=False),
    "logarithms of probabilities": lambda: nn.Sequential(Tiny(), nn.LogSoftmax(1)),
    "writing to the images": _WritesToItsImages,
    "rounding that it multiplies": lambda: with_head(_rounded),
    "answers that are no numbers": lambda: with_head(lambda x: _mean(x) * float("nan")),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_is_the_same_is_taken(kind: str, images: Tensor) -> None:
    module = SAME[kind]().eval()
    graph = st.load_parent(module, input_size=PIXELS).graph()
    with torch.no_grad():
        answers = graph.module(images)
        torch.testing.assert_close(answers, module(images.clone()), equal_nan=True)


class _Noisy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Tiny(), nn.Dropout(0.5))


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Tiny(8)), "batch_norm"),
        (_Noisy, "dropout"),
    ],
)
def test_programs_exported_in_train_mode_are_refused(
    tmp_path: Path, make: Callable[[], nn.Module], culprit: str
) -> None:
    path = str(tmp_path / "net.pt2")
    save_program(make().train(), path)
    with pytest.raises(CaptureError, match=rf"`{culprit}` in `1`.*call `eval\(\)`"):
        st.load_parent(path).graph()


def test_the_check_runs_once_and_leaves_no_trace() -> None:
    parent = st.load_parent(Tiny(), input_size=PIXELS)
    runs: list[int] = []
    before = torch.random.get_rng_state()
    handle = parent.module.register_forward_hook(lambda _, __, x: runs.append(len(x)))
    for _ in range(2):
        parent.graph()
    handle.remove()
    assert runs == [2, 2]  # two images, twice, at the first of two calls
    assert torch.equal(before, torch.random.get_rng_state())
    assert not parent.module._forward_hooks
