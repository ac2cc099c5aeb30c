from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.models.capture import capture_export
from optuna_stitch.models.cost import measure
from optuna_stitch.models.graph import capture_graph
from optuna_stitch.models.points import find_points
from optuna_stitch.utils.errors import CaptureError

NAMES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout"]


# all of them are captured by default in test_sweep.py
@pytest.mark.parametrize(
    "name", [*NAMES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:])]
)
def test_capture_equals_eager_at_another_batch_size(name: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name).eval()
    shape = module.pretrained_cfg["input_size"]
    graph = capture_graph(module, shape, name)
    images = torch.randn(5, *shape)
    with torch.no_grad():
        assert torch.equal(graph.module(images), module(images))


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", pytest.param("test_convnext", marks=pytest.mark.slow)]
)
def test_both_ways_of_capture_agree(name: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name).eval()
    shape = module.pretrained_cfg["input_size"]
    traced = capture_graph(module, shape, name)
    exported = capture_export(module, shape, name)
    costs = measure(exported, shape)
    points, _ = find_points(exported, module, costs)
    images = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(exported(images), module(images))
    assert sum(cost.macs for cost in costs.values()) == traced.macs
    blocks = {(point.name, point.layout) for point in traced.points if point.block}
    assert blocks == {(point.name, point.layout) for point in points if point.block}


class _InPlace(nn.Module):
    """Reads a feature after an in-place operation has changed it, unless capture mends that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        x += 1
        x.mul_(2)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_in_place_operations_become_functional() -> None:
    module = _InPlace().eval()
    graph = capture_graph(module, (3, 8, 8), "in place")
    images = torch.randn(2, 3, 8, 8)
    features: dict[str, Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                features[n.name] = value
            return value

    with torch.no_grad():
        assert torch.equal(Keep(graph.module).run(images), module(images))
        assert torch.equal(features["conv"], module.conv(images))
    assert module.act.inplace  # the user's network is left as it was
    assert [point.name for point in graph.points] == ["conv", "act", "add", "mul", "mean"]


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_captured_is_named() -> None:
    with pytest.raises(CaptureError, match="my network cannot be captured"):
        capture_graph(_Branching(), (3, 8, 8), "my network")


def test_an_image_size_that_is_refused_is_named() -> None:
    vit = timm.create_model("test_vit")
    message = r"test_vit cannot .*Input height \(31\) should be.*image size"
    with pytest.raises(CaptureError, match=message):
        capture_graph(vit, (3, 31, 31), "test_vit")


class _TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("test_resnet", num_classes=10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"out": logits, "aux": 2 * logits}


def test_a_dictionary_of_outputs(images: Tensor) -> None:
    module = _TwoAnswers().eval()
    graph = st.load_parent(module, input_size=32, output="aux").graph()
    with torch.no_grad():
        assert torch.equal(graph.module(images), module(images)["aux"])
    with pytest.raises(CaptureError, match="several outputs: it returns a dictionary of out, aux"):
        st.load_parent(module, input_size=32, name="mine").graph()
    with pytest.raises(CaptureError, match="mine has no output 'logits'"):
        st.load_parent(module, input_size=32, name="mine", output="logits").graph()
