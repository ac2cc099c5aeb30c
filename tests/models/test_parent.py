from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.models.capture import capture_export
from optuna_stitch.models.cost import measure
from optuna_stitch.models.graph import capture_graph
from optuna_stitch.models.points import find_points
from optuna_stitch.utils.errors import CaptureError, CheckpointError, UnknownNetworkError


def _save_program(module: nn.Module, path: Path, side: int = 32) -> Path:
    images = torch.randn(2, 3, side, side)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module.eval(), (images,), dynamic_shapes=shapes), path)
    return path


def _small() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10).eval()


def test_torchvision_networks_see_images_as_their_weights_say() -> None:
    parent = st.load_parent("torchvision/resnet18")
    assert parent.view.input_size == (3, 224, 224)
    assert parent.view.crop_pct == 224 / 256
    graph = parent.graph()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(graph.module(images), parent.module(images))
    assert sum(point.block for point in graph.points) == 8
    with pytest.raises(UnknownNetworkError, match=r"torchvision/resnet19.*torchvision/resnet18"):
        st.load_parent("torchvision/resnet19")


def test_an_exported_program_is_a_parent(tmp_path: Path, images: Tensor) -> None:
    module = _small()
    parent = st.load_parent(str(_save_program(module, tmp_path / "net.pt2")))
    assert parent.view.input_size == (3, 32, 32)
    graph = parent.graph()
    assert graph.captured_by == "export"
    with torch.no_grad():
        assert torch.equal(parent.module(images), module(images))
        assert torch.equal(graph.module(images), module(images))
    supernetwork = st.stitch(parent, st.load_parent("test_vit2", num_classes=10, input_size=160))
    supernetwork.save(tmp_path / "saved")
    loaded = st.Supernetwork.load(tmp_path / "saved")
    assert loaded.content_hash() == supernetwork.content_hash()


@pytest.mark.parametrize("content", [None, b"no program"])
def test_a_program_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.pt2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.pt2"):
        st.load_parent(str(path))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
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


class _TwoAnswers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _small()

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


def test_what_is_measured_is_kept_by_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPTUNA_STITCH_CACHE", str(tmp_path))
    first = st.load_parent("test_vit").graph()
    kept = list(tmp_path.rglob("*.json"))
    assert len(kept) == 1
    monkeypatch.setattr("optuna_stitch.models.graph.measure", None)  # would fail if called
    again = st.load_parent("test_vit").graph()
    assert again.points == first.points
    assert again.costs == first.costs
    assert again.excluded == first.excluded
    with pytest.raises(CaptureError):
        st.load_parent("test_vit", model_args={"patch_size": 8}).graph()
    monkeypatch.undo()
    kept[0].write_text("broken")
    monkeypatch.setenv("OPTUNA_STITCH_CACHE", str(tmp_path))
    assert st.load_parent("test_vit").graph().points == first.points
