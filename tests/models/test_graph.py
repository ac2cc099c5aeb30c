from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from optuna_stitch.models.graph import capture_graph
from optuna_stitch.utils.errors import CaptureError

NAMES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout"]


@pytest.mark.parametrize("name", NAMES)
def test_capture_equals_eager_at_another_batch_size(name: str) -> None:
    torch.manual_seed(0)
    module = timm.create_model(name).eval()
    shape = module.pretrained_cfg["input_size"]
    graph = capture_graph(module, shape, name)
    images = torch.randn(5, *shape)
    with torch.no_grad():
        assert torch.equal(graph.module(images), module(images))


def test_points_of_a_residual_network() -> None:
    graph = capture_graph(timm.create_model("resnet18"), (3, 224, 224), "resnet18")
    by_name = {point.name: point for point in graph.points}
    assert len(by_name) == len(graph.points)
    blocks = [point.name for point in graph.points if point.block]
    assert blocks == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert by_name["layer1.0"].dominator
    assert not by_name["layer1.0.conv1"].dominator  # the shortcut goes around it
    assert str(by_name["layer2.1"].layout) == "NCHW 128×28×28"
    assert graph.points[0].depth == 0
    assert graph.points[-1].depth == 1
    assert graph.classes == 1000
    assert graph.excluded == {"x": "is the image itself", "fc": "is what the network returns"}


def test_token_layouts() -> None:
    name = "vit_tiny_patch16_224"
    graph = capture_graph(timm.create_model(name), (3, 224, 224), name)
    by_name = {point.name: point for point in graph.points}
    assert str(by_name["blocks.3"].layout) == "NLC 192×1+14×14"
    assert by_name["blocks.3"].block
    assert by_name["blocks.3"].dominator
    assert not by_name["blocks.3.mlp"].dominator


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
