"""What is written computes what the extracted module computes, in every format."""

from __future__ import annotations

import gc
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file

import optuna_stitch as st
from optuna_stitch.export.export import export_subnetwork
from optuna_stitch.export.formats import select_formats, write_onnx
from optuna_stitch.export.trace import trace
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.utils.errors import ExportError
from tests.helpers.exports import (
    Foreign,
    Small,
    Tied,
    assert_same,
    images_of,
    load_code,
    load_onnx,
    load_program,
    small_pair,
    some,
)


@pytest.mark.parametrize("pair", ["supernetwork", pytest.param("cnn_vit", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_code_and_program_are_bit_for_bit_the_network(
    pair: str, seed: int, request: pytest.FixtureRequest, data: st.Data, tmp_path: Path
) -> None:
    supernetwork = request.getfixturevalue(pair)
    subnetwork = some(supernetwork, seed)
    export_subnetwork(subnetwork, tmp_path, split=data.test, formats=["python", "program"])
    images = images_of(supernetwork, 7)
    assert_same(load_code(tmp_path), subnetwork, images)
    assert_same(load_program(tmp_path), subnetwork, images)


@pytest.mark.parametrize(
    ("pair", "output"),
    [
        ("supernetwork", "b"),
        pytest.param("cnn_vit", "ensemble", marks=pytest.mark.slow),
    ],
)
def test_onnx_answers_alike(pair: str, output: str, exported: Any, data: st.Data) -> None:
    subnetwork, folder = exported(pair, output)
    assert [path.name for path in folder.glob("network.*")].count("network.onnx") == 1
    assert not (folder / "network.onnx.data").exists()
    module, run = subnetwork.extract(), load_onnx(folder)
    with torch.no_grad():
        for batch in data.test.batches(subnetwork.supergraph.views, 100):
            found, expected = run(*batch.images), module(*batch.images)
            assert (found - expected).abs().max() <= 1e-4
            best = expected.topk(2).values
            decided = best[:, 0] - best[:, 1] > 2e-4  # the rest may fall either way
            assert torch.equal(found.argmax(1)[decided], expected.argmax(1)[decided])


@pytest.fixture(scope="module")
def two_views() -> st.Supernetwork:
    """Parents that see the same image in two sizes and colours."""
    view = st.View((1, 40, 40), (0.3,), (0.2,), "bilinear", 0.9)
    return small_pair(lambda: Small(channels=1), Tied, view)


def inputs_of(subnetwork: st.Subnetwork) -> int:
    module: Any = subnetwork.extract()
    return sum(node.op == "placeholder" for node in module.graph.nodes)


@pytest.mark.slow
def test_two_views_are_two_inputs(
    two_views: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    # a stitch into a branch leaves the rest of what reads the other input
    singles = (
        two_views.subnetwork(Genotype("ensemble", frozenset([switch])))
        for switch in range(len(two_views.switches))
    )
    subnetwork = next(single for single in singles if single.on and inputs_of(single) == 2)
    export_subnetwork(subnetwork, tmp_path, split=data.test, formats=["all"])
    images = images_of(two_views, 7)
    assert_same(load_code(tmp_path), subnetwork, images)
    assert_same(load_program(tmp_path), subnetwork, images)
    assert (load_onnx(tmp_path)(*images) - subnetwork.extract()(*images)).abs().max() <= 1e-4

    config = json.loads((tmp_path / "config.json").read_text())
    assert "pretrained_cfg" not in config
    assert [one["name"] for one in config["inputs"]] == ["images_0", "images_1"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    for one, view in zip(config["inputs"], two_views.views, strict=True):
        fields = timm.data.resolve_data_config(pretrained_cfg=one["pretrained_cfg"])
        seen = timm.data.create_transform(**fields)(image.convert(view.mode))
        assert torch.equal(seen, view.transform()(image.convert(view.mode)))


@pytest.mark.parametrize("output", ["a", "b"])
def test_of_two_views_one_may_be_all_that_is_needed(
    output: Any, two_views: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    subnetwork = two_views.subnetwork({"output": output})
    export_subnetwork(subnetwork, tmp_path, split=data.test)
    view = {"a": two_views.a, "b": two_views.b}[output].view
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == list(view.input_size)
    images = torch.randn(2, *view.input_size)
    assert torch.equal(load_code(tmp_path)(images=images), subnetwork.extract()(images))


def test_tied_weights_are_kept_once(data: st.Data, tmp_path: Path) -> None:
    supernetwork = small_pair(Tied)
    subnetwork = supernetwork.subnetwork({"output": "ensemble"})
    export_subnetwork(subnetwork, tmp_path, split=data.test, formats=["python", "program"])
    images = images_of(supernetwork, 7)
    assert_same(load_code(tmp_path), subnetwork, images)
    assert_same(load_program(tmp_path), subnetwork, images)
    names = [name for name in load_file(tmp_path / "network.safetensors") if name[0] == "a"]
    assert {"a.one.weight", "a.two.weight"} & set(names) in ({"a.one.weight"}, {"a.two.weight"})
    assert {"a.shift", "a.scale"} <= set(names)
    assert "a.shift" in dict(load_code(tmp_path).named_buffers())


@pytest.mark.slow
def test_an_operator_that_is_not_torchs_is_named(data: st.Data, tmp_path: Path) -> None:
    subnetwork = small_pair(Foreign).subnetwork({"output": "a"})
    with pytest.raises(ExportError, match=r"operator stitch_tests\.twice.*as `program`"):
        export_subnetwork(subnetwork, tmp_path / "to", split=data.test)
    assert list(tmp_path.iterdir()) == []
    export_subnetwork(subnetwork, tmp_path / "to", split=data.test, formats=["program"])
    with pytest.raises(ExportError, match=r"cannot be converted to ONNX"):
        export_subnetwork(subnetwork, tmp_path / "onnx", split=data.test, formats=["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["to"]


def test_large_onnx_weights_lie_beside_the_model(tmp_path: Path) -> None:
    supernetwork = small_pair()
    subnetwork = supernetwork.subnetwork({"output": "b"})
    write_onnx(trace(subnetwork), tmp_path, largest=1000)
    assert (tmp_path / "network.onnx.data").stat().st_size > 4 * 2000
    images = images_of(supernetwork, 7)
    difference = load_onnx(tmp_path)(*images) - subnetwork.extract()(*images)
    assert difference.abs().max() <= 1e-4


@pytest.mark.slow
def test_nothing_is_said_on_the_way(
    data: st.Data,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    cnn_vit: st.Supernetwork,
) -> None:
    gc.collect()  # what other tests left
    recwarn.clear()
    export_subnetwork(some(cnn_vit, 2), tmp_path, split=data.test, formats=["all"])
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_unknown_formats() -> None:
    for wanted in (["python", "tflite"], []):
        with pytest.raises(ExportError, match=r"there are python, .* and all \(python, program"):
            select_formats(wanted)


def test_onnx_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_formats(["onnx", "python", "onnx"]) == ["python", "onnx"]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    expected = (
        r"needs onnxscript: pip install 'optuna-stitch\[onnx\]'\. Or choose another format, "
        r"python or program\."
    )
    with pytest.raises(ExportError, match=expected):
        select_formats(["all"])
    assert select_formats(["program", "python"]) == ["python", "program"]


@pytest.fixture(scope="module")
def two_grids() -> st.Supernetwork:
    """Parents of which one has half the other's grid, with stitches of every form, not fitted."""
    torch.manual_seed(0)
    fine, coarse = (
        torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3, stride, 1),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(width, 5),
        )
        for width, stride in ((4, 1), (6, 2))
    )
    view = st.View((3, 8, 8))
    parents = [
        st.load_parent(network, name=name, view=view)
        for network, name in ((fine, "fine"), (coarse, "coarse"))
    ]
    supernetwork = st.stitch(*parents, points="all")
    forms: list[dict[str, Any]] = [{"kernel": 3, "rank": 2}, {"everywhere": True}]
    stitches = []
    for place, plain in enumerate(supernetwork.stitches):
        form = forms[place // 2 % 2]
        made = Stitch(plain.source, plain.target, folded=True, context=True, **form)
        for weight in made.parameters():
            torch.nn.init.normal_(weight)
        stitches.append(made)
    supernetwork._lay(stitches, None)
    return supernetwork


def crossings(supernetwork: st.Supernetwork) -> list[Genotype]:
    """Of every direction the networks that cross once between different grids."""
    return [
        Genotype(switch.into, frozenset([index]))
        for index, switch in enumerate(supernetwork.switches)
        if supernetwork.stitches[index].folded
    ]


def test_stitches_of_every_form_are_saved_and_loaded(
    two_grids: st.Supernetwork, tmp_path: Path
) -> None:
    two_grids.save(tmp_path)
    loaded = st.Supernetwork.load(tmp_path, a=two_grids.a, b=two_grids.b)
    forms = [stitch.form for stitch in two_grids.stitches]
    assert [stitch.form for stitch in loaded.stitches] == forms
    assert len(crossings(two_grids)) >= 4
    for genotype in crossings(two_grids):
        network = loaded.subnetwork(genotype).extract()
        assert_same(network, two_grids.subnetwork(genotype), images_of(two_grids, 3))


def test_folders_of_before_these_forms_are_loaded(
    two_grids: st.Supernetwork, tmp_path: Path
) -> None:
    before = two_grids.keep(range(len(two_grids.switches)))
    plain = [Stitch(stitch.source, stitch.target, kernel=3) for stitch in before.stitches]
    for stitch in plain:
        torch.nn.init.normal_(stitch.weight)
    before._lay(plain, None)
    before.save(tmp_path)
    file = tmp_path / "supernetwork.json"
    described = json.loads(file.read_text())
    for stitch in described["stitches"]:
        assert [stitch.pop("folded"), stitch.pop("context")] == [False, False]
    file.write_text(json.dumps(described))
    loaded = st.Supernetwork.load(tmp_path, a=two_grids.a, b=two_grids.b)
    for genotype in crossings(two_grids):
        network = loaded.subnetwork(genotype).extract()
        assert_same(network, before.subnetwork(genotype), images_of(two_grids, 3))


@pytest.mark.slow
def test_folded_grids_and_context_leave_in_every_format(
    two_grids: st.Supernetwork, tmp_path: Path
) -> None:
    images = images_of(two_grids, 5)
    for place, genotype in enumerate(crossings(two_grids)[:4]):
        subnetwork = two_grids.subnetwork(genotype)
        folder = tmp_path / str(place)
        export_subnetwork(subnetwork, folder, formats=["python", "program", "onnx"])
        assert_same(load_code(folder), subnetwork, images)
        assert_same(load_program(folder), subnetwork, images)
        with torch.no_grad():
            expected = subnetwork.extract()(*images)
        assert torch.allclose(load_onnx(folder)(*images), expected, atol=1e-4, rtol=1e-4)
