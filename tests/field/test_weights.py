"""Weights as the tools of their authors write them, and the view that belongs to them."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import optuna_stitch as st
from optuna_stitch.run.study_file import load_study_file
from optuna_stitch.utils.errors import CheckpointError, UnknownNetworkError
from tests.helpers.modules import Tiny

PIXELS = 32

Weights = dict[str, Tensor]


def _weights(seed: int) -> Weights:
    torch.manual_seed(seed)
    return Tiny().state_dict()


WANTED, OTHER = _weights(1), _weights(2)


def _prefixed(prefix: str, weights: Weights = WANTED) -> Weights:
    return {f"{prefix}{key}": value for key, value in weights.items()}


class _Settings(dict[str, Any]):
    """A class of dictionaries that is only known where the file was written."""


class _Steps(list[int]):
    """Likewise, of lists."""


class _Whole(Tiny):
    """A network with a buffer that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.ones(1), persistent=False)
        self.load_state_dict(WANTED)


def _averaged() -> dict[str, Any]:
    module = Tiny()
    module.load_state_dict(WANTED)
    return {"model": OTHER, "model_ema": AveragedModel(module).state_dict(), "epoch": 3}


def _tutorial() -> dict[str, Any]:
    module = Tiny()
    optimizer = torch.optim.Adam(module.parameters())
    sum(parameter.sum() for parameter in module.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {
        "model_state_dict": WANTED,
        "optimizer_state_dict": optimizer.state_dict(),
        "best": np.float64(0.9),
        "when": datetime.datetime(2026, 1, 1),
        "history": defaultdict(list, loss=[1.0]),
        "settings": _Settings(lr=0.1),
        "steps": _Steps([1]),
    }


# What a file holds, and what is said of it.
FILES: dict[str, tuple[Callable[[], Any], str]] = {
    "a state_dict": (lambda: WANTED, ""),
    "DataParallel": (lambda: _prefixed("module."), "the tensors `module.*`"),
    "torch.compile": (lambda: _prefixed("_orig_mod."), ""),
    "both": (lambda: _prefixed("module._orig_mod."), "the tensors `module.*`"),
    "timm's train.py": (
        lambda: {"state_dict": OTHER, "state_dict_ema": WANTED, "args": argparse.Namespace(lr=1)},
        "`state_dict_ema` of net.pth; it also has `state_dict`",
    ),
    "without its average": (lambda: {"state_dict": WANTED, "state_dict_ema": None}, ""),
    "torchvision's references": (_averaged, "`module.*` of `model_ema`.*also has `model`"),
    "Lightning": (
        lambda: {"state_dict": {**_prefixed("model._orig_mod."), "loss.weight": torch.ones(2)}},
        "`model.*` of `state_dict` of net.pth; it also has `loss.weight`",
    ),
    "Lightning's net": (lambda: {"state_dict": _prefixed("net.backbone.")}, "`net.backbone.*`"),
    "a tutorial": (_tutorial, "`model_state_dict`"),
    "net": (lambda: {"net": WANTED, "acc": 0.9}, "`net`"),
    "params": (lambda: {"params": OTHER, "params_ema": WANTED}, "`params_ema`.*has `params`"),
    "the same twice": (lambda: {"weights": WANTED, "best": WANTED}, "`weights`"),
    "deeper": (lambda: {"state": {"model": WANTED}}, "`state` → `model`"),
    "a whole module": (_Whole, ""),
    "a whole module in a dictionary": (lambda: {"model": _Whole()}, "`model`"),
}


def _taken(path: Path) -> Weights:
    parent = st.load_parent(Tiny(), checkpoint=path, input_size=PIXELS, name="mine")
    return parent.module.state_dict()


def _same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", FILES)
def test_files_of_peoples_own_tools_load(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = FILES[kind]
    torch.save(make(), tmp_path / "net.pth")
    assert _same(_taken(tmp_path / "net.pth"), WANTED)
    text = " ".join(capsys.readouterr().err.split())
    assert text.startswith("mine takes") == (bool(said) or kind == "without its average")
    assert all(part in text for part in said.split(".*")), text


def test_timms_choice_is_taken_of_any_keys(tmp_path: Path) -> None:
    keys = ("model", "state_dict", "model_ema", "state_dict_ema", "net")
    path = tmp_path / "net.pth"
    for place, present in enumerate(itertools.combinations(keys[:4], 2)):
        torch.save({key: _weights(10 + n) for n, key in enumerate((*present, "net"))}, path)
        timms = timm.models.load_state_dict(str(path))
        assert _same(_taken(path), timms), (place, present)


def test_safetensors_with_metadata_and_tied_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(_prefixed("model."), path, metadata={"format": "pt", "note": "mine"})
    assert _same(_taken(path), WANTED)

    def tied() -> nn.Module:
        module = nn.Sequential(Tiny(), nn.Linear(10, 10), nn.Linear(10, 10))
        module[2].weight = module[1].weight
        return module

    module = tied()
    save_model(module, str(path))  # which leaves one of the two out
    taken = st.load_parent(tied(), checkpoint=path, input_size=PIXELS).module.state_dict()
    assert _same(taken, module.state_dict())


class _Trap:
    """Would write a file if its class were looked up, or its state given to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        (state["folder"] / "sprung").touch()


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path, allowed = tmp_path / "net.pth", torch.serialization.get_safe_globals()
    torch.save({"state_dict": WANTED, "mine": _Trap(tmp_path)}, path)
    assert _same(_taken(path), WANTED)
    for call in (_Call(eval, "1 + 1"), _Call(open, str(tmp_path / "sprung"), "w")):
        torch.save({"state_dict": WANTED, "mine": call}, path)
        with pytest.raises(CheckpointError, match=r"it names \S*(eval|open), which has no place"):
            _taken(path)
    assert not (tmp_path / "sprung").exists()
    assert torch.serialization.get_safe_globals() == allowed


def test_a_file_without_weights_is_told_by_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": argparse.Namespace()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"no state_dict, but the keys `epoch` \(int\)"):
        _taken(tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="is a folder; name a file in it"):
        _taken(tmp_path)


def test_several_networks_in_a_file_are_named(tmp_path: Path) -> None:
    torch.save({"student": WANTED, "teacher": OTHER}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"2 sets of weights that fit.*`student`, `teacher`"):
        _taken(tmp_path / "net.pth")


def test_what_does_not_fit_is_told_in_ten_lines(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    vit = timm.create_model("test_vit").state_dict()
    torch.save({"arch": "test_vit", "state_dict": {"a" * 999: WANTED["head.bias"], **vit}}, path)
    with pytest.raises(CheckpointError) as told:
        st.load_parent("test_resnet", checkpoint=path)
    lines = str(told.value).splitlines()
    assert len(lines) <= 10
    assert len(str(told.value)) < 1200
    assert "does not fit test_resnet: it has 0 of the network's 92 tensors" in lines[0]
    assert lines[1] == (
        "77 are missing in the file: conv1.0.weight, conv1.1.weight, conv1.1.bias, "
        "conv1.1.running_mean, conv1.1.running_var and 72 more."
    )
    assert lines[2].startswith("81 are not in the network: aaa")
    assert lines[3] == "The file says that it is of the architecture test_vit."


@pytest.mark.parametrize(
    ("made_with", "hint"),
    [
        ({"num_classes": 7}, r"fc\.weight 7×96 for 5×96.*Give `num_classes: 7`"),
        ({"num_classes": 5, "in_chans": 1}, r"conv1\.0\.weight .*Give `in_chans: 1`"),
    ],
)
def test_other_classes_and_channels_are_told_with_the_way_out(
    tmp_path: Path, made_with: dict[str, int], hint: str
) -> None:
    weights = timm.create_model("test_resnet", **made_with).state_dict()
    torch.save({"state_dict": _prefixed("model.", weights)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=rf"(?s)`model\.\*` of `state_dict`.*{hint}"):
        st.load_parent("test_resnet", num_classes=5, checkpoint=tmp_path / "net.pth")


def test_adapters_alone_are_told_from_networks(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"base_model.model.head.lora_A.weight": torch.ones(2, 8)}, path)
    with pytest.raises(CheckpointError, match="holds adapters: merge them"):
        _taken(path)


@pytest.mark.slow
def test_weights_of_a_fused_network(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    name = "repvgg_a0"
    fused = timm.utils.reparameterize_model(timm.create_model(name, num_classes=10).eval())
    torch.save({"state_dict": fused.state_dict()}, tmp_path / "fused.pth")
    a = st.load_parent(name, num_classes=10, checkpoint=tmp_path / "fused.pth", input_size=PIXELS)
    with torch.no_grad():
        assert torch.equal(a.module(images), fused(images))
    b = st.load_parent(Tiny(), view=a.view)
    supernetwork = st.stitch(a, b)
    supernetwork.save(tmp_path / "saved")
    loaded = st.Supernetwork.load(tmp_path / "saved", b=b)
    assert loaded.content_hash() == supernetwork.content_hash()


def _folder(path: Path) -> nn.Module:
    module: nn.Module = timm.create_model("test_resnet", num_classes=10)
    own = {"mean": [0.1, 0.2, 0.3], "label_names": list("abcdefghij"), "num_classes": 10}
    path.mkdir(exist_ok=True)
    save_file(module.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "pretrained_cfg": own})
    )
    return module


def test_folders_of_timms(tmp_path: Path) -> None:
    module = _folder(tmp_path / "own")
    a = st.load_parent(f"local-dir:{tmp_path / 'own'}", pretrained=True)
    assert a.view.mean == (0.1, 0.2, 0.3)
    assert _same(a.module.state_dict(), module.state_dict())
    b = st.load_parent(Tiny(), view=a.view)
    supernetwork = st.stitch(a, b)
    supernetwork.save(tmp_path / "saved")
    shutil.rmtree(tmp_path / "own")  # as on another machine
    loaded = st.Supernetwork.load(tmp_path / "saved", b=b)
    assert loaded.content_hash() == supernetwork.content_hash()
    with pytest.raises(CheckpointError, match=r"has no config.json that can be read"):
        st.load_parent(f"local-dir:{tmp_path / 'own'}", pretrained=True)
    with pytest.raises(UnknownNetworkError, match="`hf-hub:timm/resnet18`"):
        st.load_parent("timm/resnet18")
    (tmp_path / "net.pth").touch()
    with pytest.raises(UnknownNetworkError, match=r"is a file.*as `checkpoint`"):
        st.load_parent(tmp_path / "net.pth")


def test_study_files_name_folders_from_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        "parents:\n"
        "  a: {network: 'local-dir:own', pretrained: true}\n"
        "  b: {network: test_resnet, pretrained: true}\n"
    )
    assert load_study_file(path).parents.a.network == f"local-dir:{tmp_path / 'own'}"


def test_a_view_belongs_to_the_weights_of_timms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder(tmp_path)
    file = tmp_path / "model.safetensors"
    described = st.load_parent("test_resnet", checkpoint=file)
    assert described.graph().classes == 10
    assert described.view.mean == (0.1, 0.2, 0.3)
    assert "config.json" in capsys.readouterr().err
    name, tag = "resnet18.tv_in1k", timm.get_pretrained_cfg("resnet18.tv_in1k")
    first = timm.get_pretrained_cfg("resnet18")
    assert (tag.crop_pct, tag.interpolation) != (first.crop_pct, first.interpolation)
    (tmp_path / name).mkdir()
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / name / "net.pth")
    view = st.load_parent("resnet18", checkpoint=tmp_path / name / "net.pth").view
    assert (view.crop_pct, view.interpolation) == (tag.crop_pct, tag.interpolation)
    assert f"taken for {name}" in capsys.readouterr().err


def test_a_view_belongs_to_the_weights_of_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "torchvision/mobilenet_v2"
    known = torchvision.models.get_model_weights("mobilenet_v2")
    weights = torchvision.models.get_model("mobilenet_v2").state_dict()

    def crop(file: str | None, **arguments: Any) -> float:
        path = None if file is None else tmp_path / file
        if path is not None:
            torch.save(weights, path)
        return st.load_parent(name, checkpoint=path, **arguments).view.crop_pct

    one, two = 224 / 256, 224 / 232
    assert crop(Path(known.IMAGENET1K_V1.url).name) == one
    assert crop(Path(known.IMAGENET1K_V2.url).name) == two
    assert not capsys.readouterr().err
    assert crop("mine.pth") == two
    assert "sees images as torchvision's IMAGENET1K_V2" in capsys.readouterr().err
    assert crop("mine.pth", model_args={"weights": "IMAGENET1K_V1"}) == one
    monkeypatch.setattr(type(known.IMAGENET1K_V1), "get_state_dict", lambda *_, **__: weights)
    assert crop(None, pretrained=True) == two
    assert crop(None, pretrained=True, model_args={"weights": "IMAGENET1K_V1"}) == one
    with pytest.raises(UnknownNetworkError, match=r"no weights 'V9'. There are IMAGENET1K_V1, "):
        crop(None, model_args={"weights": "V9"})
    with pytest.raises(UnknownNetworkError, match="expected value 1000 but got 5"):
        crop(None, pretrained=True, num_classes=5)
