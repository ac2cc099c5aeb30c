from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.utils.errors import CheckpointError, ConfigError, UnknownNetworkError


def test_views_come_from_the_network() -> None:
    view = st.load_parent("test_resnet").view
    assert view.input_size == (3, 160, 160)
    assert view.mean == tuple(timm.get_pretrained_cfg("test_resnet").mean)
    small = st.load_parent("test_resnet", input_size=32, mean=(0.5, 0.5, 0.5)).view
    assert small.input_size == (3, 32, 32)
    assert small.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="no `interpolation` 'cubic'; choose one of bicubic"):
        st.load_parent("test_resnet", interpolation="cubic")


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


def _save_program(module: nn.Module, path: Path, side: int = 32) -> Path:
    images = torch.randn(2, 3, side, side)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module.eval(), (images,), dynamic_shapes=shapes), path)
    return path


def test_an_exported_program_is_a_parent(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=10).eval()
    parent = st.load_parent(str(_save_program(module, tmp_path / "net.pt2")))
    assert parent.view.input_size == (3, 32, 32)
    graph = parent.graph()
    assert graph.captured_by == "export"
    with torch.no_grad():
        assert torch.equal(parent.module(images), module(images))
        assert torch.equal(graph.module(images), module(images))
    supernetwork = st.stitch(parent, st.load_parent("test_resnet", num_classes=10, input_size=48))
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
