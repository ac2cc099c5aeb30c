from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import optuna_stitch as st
from optuna_stitch.utils.errors import CheckpointError


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_load_in_both_formats(tmp_path: Path, suffix: str) -> None:
    module = timm.create_model("test_resnet", num_classes=3)
    path = tmp_path / f"weights{suffix}"
    half = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
    if suffix == ".safetensors":
        save_file(half, path)
    else:
        torch.save({"state_dict": half}, path)
    parent = st.load_parent("test_resnet", num_classes=3, checkpoint=path)
    for key, value in parent.module.state_dict().items():
        assert value.dtype != torch.float16
        assert torch.equal(value, half[key].to(value.dtype))


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        st.load_parent("test_resnet", checkpoint=tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_corrupt_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"these are no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        st.load_parent("test_resnet", checkpoint=path)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("never-written-by-a-checkpoint", "w"))


def test_a_pickled_object_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        st.load_parent("test_resnet", checkpoint=tmp_path / "evil.pth")
    assert not (tmp_path / "never-written-by-a-checkpoint").exists()


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    with pytest.raises(CheckpointError, match="does not fit test_resnet"):
        st.load_parent("test_resnet", checkpoint=path)
