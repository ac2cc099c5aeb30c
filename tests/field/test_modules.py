"""Modules at the door: unwrapped and converted, or a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import optuna_stitch as st
from optuna_stitch.utils.errors import CaptureError, ConfigError
from tests.helpers.modules import Tiny, save_program, with_head

PIXELS = 32


class _Adapted(nn.Module):
    """A network with an adapter of low rank, which knows how to merge it."""

    def __init__(self, *, exact: bool = True) -> None:
        super().__init__()
        self.base = Tiny()
        self.down = nn.Parameter(torch.randn(2, 8))
        self.up = nn.Parameter(torch.randn(10, 2))
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.base.features(x).mean((2, 3))
        logits: Tensor = self.base.head(pooled) + pooled @ self.down.T @ self.up.T
        return logits

    def merge_and_unload(self) -> nn.Module:
        if self.exact:
            self.base.head.weight.data += self.up.data @ self.down.data
        return self.base


def _partly_compiled() -> nn.Module:
    module = Tiny()
    module.second = torch.compile(module.second)  # type: ignore[assignment]
    return module


def _compiled_in_place() -> nn.Module:
    module = Tiny()
    module.compile()
    return module


def _normed() -> nn.Module:
    module = Tiny()
    module.first = nn.utils.weight_norm(module.first)  # type: ignore[assignment]
    module(torch.randn(2, 3, PIXELS, PIXELS))  # its weight is computed, and no leaf
    return module


TAKEN: dict[str, Callable[[], nn.Module]] = {
    "torch.compile": lambda: torch.compile(Tiny()),  # type: ignore[return-value]
    "a compiled part": _partly_compiled,
    "compiled in place": _compiled_in_place,
    "DataParallel": lambda: nn.DataParallel(Tiny()),
    "compiled DataParallel": lambda: torch.compile(nn.DataParallel(Tiny())),  # type: ignore[return-value]
    "averaged weights": lambda: AveragedModel(Tiny()),
    "timm's moving average": lambda: ModelEmaV3(Tiny()),
    "adapters": _Adapted,
    "float16": lambda: Tiny().half(),
    "bfloat16": lambda: Tiny().bfloat16(),
    "float64": lambda: Tiny().double(),
    "weight_norm": _normed,
}


def _eager(module: nn.Module, images: Tensor) -> Tensor:
    """What a module answers, without compiling it, in its own precision."""
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        answer: Tensor = module.eval()(images.to(next(module.parameters()).dtype))
    return answer.float()


@pytest.mark.parametrize("kind", TAKEN)
def test_a_module_is_taken_out_of_its_wrapper(
    kind: str, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = TAKEN[kind]().train()
    before = [(p.dtype, p.requires_grad, p.detach().clone()) for p in module.parameters()]
    graph = st.load_parent(module, input_size=PIXELS, name="mine").graph()
    assert module.training
    for parameter, (dtype, requires_grad, value) in zip(module.parameters(), before, strict=True):
        assert (parameter.dtype, parameter.requires_grad) == (dtype, requires_grad)
        assert torch.equal(parameter, value)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in graph.module.parameters())
    rough = 1e-5 if before[0][0] in (torch.float32, torch.float64) else 0.02
    answers = graph.module(images)
    torch.testing.assert_close(answers, _eager(module, images), atol=rough, rtol=rough)
    said = capsys.readouterr().err
    assert ("float32" in said) == (before[0][0] != torch.float32)
    assert ("merged" in said) == (kind == "adapters")


def test_a_module_of_a_distributed_run(tmp_path: Path, images: Tensor) -> None:
    store = (tmp_path / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        module = nn.parallel.DistributedDataParallel(Tiny())
        parent = st.load_parent(module, input_size=PIXELS)
    finally:
        torch.distributed.destroy_process_group()
    assert parent.name == "Tiny"  # after what is inside
    with torch.no_grad():
        assert torch.equal(parent.graph().module(images), module.module(images))


def _hooked_wrapper() -> nn.Module:
    module = nn.DataParallel(Tiny())
    module.register_forward_hook(lambda _, __, x: 2 * x)
    return module


TOLD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10)),
        r"0\.weight of mine has no shape yet. Run the module once",
    ),
    "scripted": (lambda: torch.jit.script(Tiny()), "scripted.* Give the module that it was made"),
    "traced": (
        lambda: torch.jit.trace(Tiny(), torch.randn(2, 3, PIXELS, PIXELS)),  # type: ignore[no-untyped-call]
        "scripted or traced",
    ),
    "a scripted part": (
        lambda: nn.Sequential(torch.jit.script(Tiny())),
        "0 of mine is scripted or traced",
    ),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(Tiny(), {nn.Linear}),  # type: ignore[no-untyped-call]
        "head of mine is quantized",
    ),
    "without numbers": (lambda: Tiny().to("meta"), "meta device.* Load the weights"),
    "one number": (
        lambda: nn.Sequential(Tiny(), nn.Linear(10, 1)),
        r"one number for an image.* `torch.stack\(\[0 \* z, z\], 1\)`",
    ),
    "one number without a dimension": (
        lambda: nn.Sequential(Tiny(), nn.Linear(10, 1), nn.Flatten(0)),
        "one number for an image",
    ),
    "two channels": (lambda: Tiny(2), "takes images of 2 channels; an image has 1"),
    "a hook on a wrapper": (_hooked_wrapper, r"hook `_hooked_wrapper.*on its DataParallel"),
    "adapters that do not merge": (lambda: _Adapted(exact=False), "adapters.*other answers"),
    "half inside": (lambda: nn.Sequential(_Halving(), Tiny()), "change what is named here"),
}


class _Halving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", TOLD)
def test_what_cannot_be_taken_is_told_with_the_way_out(kind: str) -> None:
    make, message = TOLD[kind]
    with pytest.raises(CaptureError, match=message) as told:
        st.load_parent(make(), input_size=PIXELS, name="mine").graph()
    assert "another architecture" not in str(told.value)


def test_one_logit_becomes_two_classes_as_the_message_says(images: Tensor) -> None:
    class TwoClasses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(Tiny(), nn.Linear(10, 1), nn.Flatten(0))

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x)
            return torch.stack([0 * z, z], 1)

    module = TwoClasses()
    graph = st.load_parent(module, input_size=PIXELS).graph()
    with torch.no_grad():
        torch.testing.assert_close(
            graph.module(images).softmax(1)[:, 1], module.net(images).sigmoid()
        )


def test_programs_of_a_fixed_batch(tmp_path: Path, images: Tensor) -> None:
    path = str(tmp_path / "net.pt2")
    module = Tiny().eval()
    save_program(module, path, dynamic=False)  # nothing in it depends on the batch
    graph = st.load_parent(path).graph()
    with torch.no_grad():
        assert torch.equal(graph.module(images), module(images))
    save_program(with_head(lambda x: x.mean((2, 3)).reshape(2, 8)), path, dynamic=False)
    with pytest.raises(CaptureError, match=r"batches of 2 only.*dynamic_shapes="):
        st.load_parent(path).graph()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_channels_work_from_end_to_end(channels: int, mode: str, data: st.Data) -> None:
    torch.manual_seed(0)
    few = data.train.take(30)
    arguments = {"in_chans": channels}
    named = st.load_parent("test_resnet", model_args=arguments, input_size=PIXELS)
    half = (0.5,)
    a, b = (
        st.load_parent(Tiny(channels), input_size=PIXELS, mean=half, std=half) for _ in range(2)
    )
    for parent in (named, a, b):
        assert parent.view.input_size == (channels, PIXELS, PIXELS)
        assert len(parent.view.mean) == len(parent.view.std) == channels
        assert parent.view.mode == mode
    supernetwork = st.stitch(a, b)
    supernetwork.fit(few, recalibrate=10)
    wanted = supernetwork.subnetwork({"output": "ensemble"})
    seen = next(few.batches(supernetwork.views, batch_size=30))
    assert seen.images[0].shape == (30, channels, PIXELS, PIXELS)
    with torch.no_grad():
        answers = sum(
            p.module(x).softmax(1) for p, x in zip((a, b), seen.images * 2, strict=False)
        )
    right = float((answers.argmax(1) == seen.targets).float().mean())  # type: ignore[union-attr]
    [found] = st.Evaluator(supernetwork, few, kernels="plain").evaluate([wanted])
    assert found["accuracy"] == pytest.approx(right)


def test_means_of_another_number_of_channels(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"`mean` has 3 numbers.*images of 4 channels. Give 4"):
        st.load_parent(Tiny(4), input_size=PIXELS)
    grey = st.load_parent(Tiny(1), input_size=PIXELS).view
    assert (grey.mean, grey.std) == ((0.449,), (0.226,))  # timm's of RGB, averaged
    assert "grey images with mean 0.449" in capsys.readouterr().err
    assert st.View((4, 8, 8)).mean == (0.5,) * 4
    with pytest.raises(ConfigError, match="1 \\(grey\\), 3 \\(RGB\\) or 4"):
        st.View((2, 8, 8))
    named = st.load_parent(timm.create_model("test_resnet", in_chans=1), name="mine").view
    assert named.input_size == (1, 160, 160)
