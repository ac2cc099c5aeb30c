"""An export is there whole or not at all, and leaves alone what is not its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optuna_stitch as st
from optuna_stitch.export import formats
from optuna_stitch.export.card import Origin
from optuna_stitch.export.export import export_network
from optuna_stitch.export.source import inlined
from optuna_stitch.utils.errors import ExportError

Export = Callable[..., Path]
PRODUCTS = {"README.md", "config.json", "network.py", "network.safetensors", "network.svg"}


@pytest.fixture
def export(supernetwork: st.Supernetwork, data: st.Data, origin: Origin) -> Export:
    def run(to: Path, **options: Any) -> Path:
        genotype = st.Genotype("b")
        return export_network(
            supernetwork, genotype, to, split=data.test, origin=origin, **options
        )

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


@pytest.mark.parametrize("form", ["python", "program", "onnx"])
def test_a_full_disk(form: str, export: Export, tmp_path: Path) -> None:
    export(tmp_path / "to")
    before = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    with room(100_000), pytest.raises(ExportError, match=r"cannot be written.*File too large"):
        export(tmp_path / "to", formats=[form], force=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == before
    assert names(tmp_path) == {"to"}


def test_an_interruption_leaves_nothing(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    stopped = dataclasses.replace(formats.FORMATS["program"], write=interrupt)
    monkeypatch.setitem(formats.FORMATS, "program", stopped)
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


def test_unknown_formats(export: Export, tmp_path: Path) -> None:
    for wanted in (["python", "tflite"], []):
        with pytest.raises(ExportError, match="there are python, program, onnx and all"):
            export(tmp_path / "to", formats=wanted)
    assert names(tmp_path) == set()


def test_onnx_is_an_extra(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    expected = r"needs onnxscript: pip install 'optuna-stitch\[onnx\]'"
    with pytest.raises(ExportError, match=expected):
        export(tmp_path / "to", formats=["all"])
    export(tmp_path / "to", formats=["python", "program"])


@pytest.mark.parametrize(
    "returned",
    ["torch.nextafter({}, {} + 1)", "torch.full_like({}, torch.nan)", "torch.cat([{}, {}])"],
)
def test_another_network_than_the_extracted_one_is_not_kept(
    returned: str, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = formats.FORMATS["python"]

    def write(subject: formats.Subject, folder: Path) -> None:
        honest.write(subject, folder)
        path = folder / "network.py"
        text, changed = re.subn(
            r"        return (\w+)\n\n",
            lambda m: f"        return {returned.format(m[1], m[1])}\n\n",
            path.read_text(),
        )
        assert changed == 1
        path.write_text(text)

    monkeypatch.setitem(formats.FORMATS, "python", dataclasses.replace(honest, write=write))
    with pytest.raises(ExportError, match=r"As python the network's logits differ"):
        export(tmp_path / "to")
    assert names(tmp_path) == set()


class Regions(nn.Module):
    """Parts without gradients and without autocast, one inside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = (x * self.weight).sum(1, keepdim=True)
            with torch.autocast("cpu", enabled=False):
                low, high = torch.aminmax(scale * x, dim=1, keepdim=True)
        return (x - low) * scale + high.cos()


def test_regions_become_part_of_one_graph() -> None:
    module = Regions()
    x = torch.rand(4, 3)
    program = torch.export.export(module, (x,), strict=False)
    regions = [n for n in program.graph.nodes if "wrap_with" in str(n.target)]
    assert regions
    graph = inlined(program.graph_module)
    assert not [n for n in graph.nodes if "wrap_with" in str(n.target)]
    flat = torch.fx.GraphModule(program.graph_module, graph)
    (answer,) = flat(module.weight, x)
    assert torch.equal(answer, module(x))
    kept = {n.target for n in graph.nodes if n.op == "call_function"}
    assert {torch.ops.aten.cos.default, torch.ops.aten.aminmax.default} <= kept
