"""An export is there whole or not at all, and leaves alone what is not its own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.export.export import export_subnetwork
from optuna_stitch.export.formats import FORMATS
from optuna_stitch.export.trace import Traced
from optuna_stitch.utils.errors import ExportError
from tests.helpers.exports import assert_same, images_of, load_code, small_pair

Export = Callable[..., Path]
PRODUCTS = {"README.md", "config.json", "network.py", "network.safetensors", "network.svg"}


@pytest.fixture(scope="module")
def export(data: st.Data) -> Export:
    """Export a network that costs next to nothing to trace."""
    subnetwork = small_pair().subnetwork({"output": "b"})

    def run(to: Path, **options: Any) -> Path:
        return export_subnetwork(subnetwork, to, split=data.test, **options)

    return run


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_made_with_all_that_is_needed(export: Export, tmp_path: Path) -> None:
    assert export(tmp_path / "deep" / "to") == tmp_path / "deep" / "to"
    assert names(tmp_path / "deep") == {"to"}
    assert names(tmp_path / "deep" / "to") == PRODUCTS
    export(tmp_path / "deep" / "to", force=True)
    assert names(tmp_path / "deep" / "to") == PRODUCTS


def test_files_that_are_there_are_left_alone(export: Export, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "README.md").write_text("old")
    with pytest.raises(ExportError, match=r"has files in it: README\.md, thesis\.txt.*--force"):
        export(tmp_path)
    assert names(tmp_path) == {"thesis.txt", "README.md"}
    export(tmp_path, force=True)
    assert names(tmp_path) == {"thesis.txt", *PRODUCTS}
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "README.md").read_text() != "old"


def test_no_network_of_an_earlier_export_stays(export: Export, tmp_path: Path) -> None:
    export(tmp_path, formats=["program"])
    export(tmp_path, formats=["python"], force=True)
    assert names(tmp_path) == PRODUCTS


def test_a_file_is_no_folder(export: Export, tmp_path: Path) -> None:
    (tmp_path / "to").write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        export(tmp_path / "to", force=True)
    with pytest.raises(ExportError, match=r"cannot be written to .*Not a directory"):
        export(tmp_path / "to" / "deeper")
    assert (tmp_path / "to").read_text() == "mine"


def test_a_folder_that_cannot_be_made(export: Export) -> None:
    with pytest.raises(ExportError, match="cannot be written to /proc/network"):
        export(Path("/proc/network"))


@contextmanager
def room(size: int) -> Iterator[None]:
    """Let no file become larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "form",
    [
        *("python", "program", "onnx"),
        *(
            pytest.param(form, marks=pytest.mark.slow)
            for form in ("onnx-float16", "onnx-int8", "openvino", "tensorrt", "coreml")
        ),
    ],
)
def test_a_full_disk(form: str, export: Export, data: st.Data, tmp_path: Path) -> None:
    given = {} if form in ("python", "program", "onnx") else {"validation": data.val.take(20)}
    if form == "onnx-int8":
        given["train"] = data.train
    export(tmp_path / "to")
    before = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    with room(5_000), pytest.raises(ExportError, match=r"cannot be written.*Make room"):
        export(tmp_path / "to", formats=[form], force=True, **given)
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == before
    assert names(tmp_path) == {"to"}


@pytest.mark.slow
def test_a_format_that_is_a_folder_is_replaced(export: Export, tmp_path: Path) -> None:
    products = {"README.md", "config.json", "network.mlpackage", "network.svg"}
    for _ in range(2):
        export(tmp_path / "to", formats=["coreml"], force=True)
        assert names(tmp_path / "to") == products
    export(tmp_path / "to", formats=["python"], force=True)
    assert names(tmp_path / "to") == PRODUCTS


def test_an_interruption_leaves_nothing(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    stopped = dataclasses.replace(FORMATS["program"], write=interrupt)
    monkeypatch.setitem(FORMATS, "program", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "to", formats=["python", "program"])
    assert names(tmp_path) == set()


def test_what_a_killed_export_left_does_not_matter(export: Export, tmp_path: Path) -> None:
    left = tmp_path / f".to.{os.getpid()}.part"
    left.mkdir()
    (left / "network.pt2").write_text("half")
    export(tmp_path / "to")
    assert names(tmp_path / "to") == PRODUCTS
    assert names(tmp_path) == {"to"}


@pytest.mark.parametrize(
    "returned",
    ["torch.nextafter({}, {} + 1)", "torch.full_like({}, torch.nan)", "torch.cat([{}, {}])"],
)
def test_another_network_than_the_extracted_one_is_not_kept(
    returned: str, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FORMATS["python"]

    def write(traced: Traced, folder: Path) -> None:
        honest.write(traced, folder)
        path = folder / "network.py"
        text, changed = re.subn(
            r"        return (\w+)\n\n",
            lambda m: f"        return {returned.format(m[1], m[1])}\n\n",
            path.read_text(),
        )
        assert changed == 1
        path.write_text(text)

    monkeypatch.setitem(FORMATS, "python", dataclasses.replace(honest, write=write))
    with pytest.raises(ExportError, match=r"As python the network's logits differ"):
        export(tmp_path / "to")
    assert names(tmp_path) == set()


def test_without_a_run(supernetwork: st.Supernetwork, tmp_path: Path) -> None:
    """No images to compare on, and no story for the card."""
    subnetwork = supernetwork.subnetwork({"output": "b"})
    assert subnetwork.export(tmp_path / "to") == tmp_path / "to"
    assert names(tmp_path / "to") == PRODUCTS
    assert_same(load_code(tmp_path / "to"), subnetwork, images_of(supernetwork, 7))
    card = (tmp_path / "to" / "README.md").read_text()
    assert "# test_resnet × test_efficientnet\n" in card
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    assert config["architecture"] == "test_resnet--test_efficientnet"
    assert "label_names" not in config["pretrained_cfg"]


def test_random_images_find_another_network(
    supernetwork: st.Supernetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(
        FORMATS["python"], load=lambda folder: lambda images: torch.zeros(len(images), 10)
    )
    monkeypatch.setitem(FORMATS, "python", other)
    with pytest.raises(ExportError, match=r"logits differ .* on 1 random images"):
        supernetwork.subnetwork({"output": "b"}).export(tmp_path / "to")
    assert names(tmp_path) == set()
