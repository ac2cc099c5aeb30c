"""Cascades leave in every format: same answers, and the rest runs for unsure images only."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.profiler import profile

import optuna_stitch as st
from optuna_stitch.export import formats
from optuna_stitch.export.check import check_format, images_of
from optuna_stitch.export.export import export_subnetwork
from optuna_stitch.export.formats import FORMATS, load_program, write_onnx, write_program
from optuna_stitch.export.source import write_code
from optuna_stitch.export.trace import trace
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.subnetwork import CascadeModule
from optuna_stitch.utils.errors import ExportError
from tests.helpers.exports import (
    Small,
    Tied,
    answers,
    assert_same_cascade,
    by_sureness,
    cascade_of,
    load_code,
    load_onnx,
    small_pair,
    with_exit,
    write_pictures,
)

# Measures, and numbers of the mean.
EXITS: list[dict[str, Any]] = [
    {"confidence": "probability"},
    {"confidence": "margin", "weight": 0.3},
    {"confidence": "entropy", "temperatures": (1.3, 0.7)},
    {"confidence": "calibrated", "coefficients": (0.1, -1.0, 2.0, 0.3), "weight": 1.0},
]


OUTPUT = "b then both"


@pytest.fixture(scope="module")
def cascade(data: st.Data) -> st.Subnetwork:
    """A cascade that costs next to nothing to trace; no image is near its threshold."""
    found = cascade_of(small_pair(lambda: sharp(Small()), lambda: sharp(Tied())), OUTPUT, data.val)
    images = data.val.pick(range(len(data.val)), found.supergraph.views).images
    module: Any = found.extract()
    sure = module.exit.sure(module.first(*images)[0]).sort().values[60:100]
    widest = int(sure.diff().argmax())
    return with_exit(found, threshold=sure[widest : widest + 2].mean().item())


def sharp(network: Any) -> Any:
    """The same network, surer of some images than of others."""
    network.head.weight.data *= 10
    return network


@pytest.fixture(scope="module")
def folder(
    cascade: st.Subnetwork, data: st.Data, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same, exported in every format."""
    to = tmp_path_factory.mktemp("cascade") / "to"
    return export_subnetwork(cascade, to, split=data.test, formats=["all"])


def network_of(text: str, weights: dict[str, torch.Tensor]) -> Any:
    made: dict[str, Any] = {"__name__": "network", "__file__": "network.py"}
    exec(compile(text, "network.py", "exec"), made)
    return made["Network"](weights)


@pytest.mark.parametrize(
    ("pair", "output"),
    [
        ("supernetwork", "a then both"),
        pytest.param("cnn_vit", "b then both", marks=pytest.mark.slow),
        pytest.param("supernetwork", "b then both", marks=pytest.mark.slow),
        pytest.param("cnn_vit", "a then both", marks=pytest.mark.slow),
    ],
)
def test_code_is_bit_for_bit_the_cascade(
    pair: str, output: str, request: pytest.FixtureRequest, data: st.Data
) -> None:
    cascade = cascade_of(request.getfixturevalue(pair), output, data.val)
    traced = trace(cascade)
    module: Any = traced.module
    images = data.test.pick(range(60), cascade.supergraph.views).images
    for changes in EXITS:
        found = dataclasses.replace(module.exit, **changes)
        with torch.no_grad():
            middle = found.sure(module.first(*images)[0]).sort().values[20].item()
        for threshold in (middle, -1.0, 2.0):
            exit = dataclasses.replace(found, threshold=threshold)
            other = CascadeModule(module.first, module.rest, exit)
            # nothing is traced anew: only the exit differs
            code = write_code(dataclasses.replace(traced, module=other))
            network = network_of(*code)
            assert f"< {threshold!r}" in code[0]
            for count in (1, 60):
                given = [pixels[:count] for pixels in images]
                with torch.no_grad():
                    assert torch.equal(network(*given), other(*given)), exit
                assert network.went_on == other.went_on
            assert network.went_on == {-1.0: 0, 2.0: 60}.get(threshold, 20)


def test_code_says_what_is_chosen_only(cascade: st.Subnetwork) -> None:
    plain = with_exit(cascade, confidence="probability", weight=0.5, temperatures=(1.0, 1.0))
    text, _ = write_code(trace(plain))
    assert "the largest class probability." in text
    assert not re.search(r"margin|entropy|odds|(logits|a|b) / ", text)
    text, _ = write_code(trace(with_exit(cascade, confidence="entropy", temperatures=(2.0, 3.0))))
    assert "(logits / 3.0).double()" in text
    assert "F.log_softmax(a / 2.0, dim=1)" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "exit", [EXITS[0], *(pytest.param(exit, marks=pytest.mark.slow) for exit in EXITS[1:])]
)
def test_programs_and_onnx_answer_alike(
    exit: dict[str, Any], cascade: st.Subnetwork, data: st.Data, tmp_path: Path
) -> None:
    other = with_exit(cascade, **exit)
    images = by_sureness(other, data.test)
    module: Any = other.extract()
    sure = module.exit.sure(module.first(*images)[0])
    other = with_exit(other, threshold=float(sure[20:22].mean()))
    traced = trace(other)
    write_program(traced, tmp_path)
    assert_same_cascade(load_program(tmp_path), other, images)
    write_onnx(traced, tmp_path)
    assert_same_cascade(load_onnx(tmp_path), other, images, 1e-4)
    single = load_onnx(tmp_path, single=True)
    for place in (0, 10, 30, 59):
        given = [pixels[place : place + 1] for pixels in images]
        assert (single(*given) - other.extract()(*given)).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["supernetwork", "cnn_vit"])
@pytest.mark.parametrize("output", ["a then both", "b then both"])
def test_every_format_of_every_pair(
    pair: str, output: str, request: pytest.FixtureRequest, data: st.Data, tmp_path: Path
) -> None:
    cascade = cascade_of(request.getfixturevalue(pair), output, data.val)
    export_subnetwork(cascade, tmp_path, split=data.test, formats=["all"])
    images = by_sureness(cascade, data.test)
    assert_same_cascade(load_code(tmp_path), cascade, images)
    assert_same_cascade(load_program(tmp_path), cascade, images)
    assert_same_cascade(load_onnx(tmp_path), cascade, images, 1e-4)


@pytest.mark.slow
def test_two_views_are_two_inputs(data: st.Data, tmp_path: Path) -> None:
    """The first stage takes both, and hands over what the rest alone looks at."""
    view = st.View((1, 40, 40), (0.3,), (0.2,), "bilinear", 0.9)
    supernetwork = small_pair(lambda: Small(channels=1), Tied, view)
    cascade = supernetwork.subnetwork(Genotype("a then both", threshold=0.4))
    (cascade,) = st.Evaluator(supernetwork, data.val, ["accuracy"]).tune_exits([cascade])
    export_subnetwork(cascade, tmp_path, split=data.test, formats=["python", "program"])
    images = by_sureness(cascade, data.test)
    assert [pixels.shape[1] for pixels in images] == [1, 3]
    assert_same_cascade(load_code(tmp_path), cascade, images)
    assert_same_cascade(load_program(tmp_path), cascade, images)


def test_code_runs_the_rest_for_unsure_images_only(
    folder: Path, cascade: st.Subnetwork, data: st.Data
) -> None:
    network, counts = load_code(folder), []
    rest = network.rest

    def counting(*handed: torch.Tensor) -> torch.Tensor:
        counts.append(len(handed[0]))
        return rest(*handed)

    network.rest = counting
    (images,) = by_sureness(cascade, data.test)
    went_on = []
    for start, stop in ((55, 60), (0, 60), (0, 3)):
        network(images[start:stop])
        went_on.append(network.went_on)
    assert went_on[0] == 0 < went_on[1] < 60
    assert went_on[1:] == [went_on[1], 3] == counts


def convolutions(network: Any, images: torch.Tensor) -> int:
    """How many convolutions run."""
    with torch.no_grad(), profile() as profiled:
        network(images)
    return sum(event.count for event in profiled.key_averages() if event.key == "aten::conv2d")


def test_programs_run_the_rest_for_unsure_images_only(
    folder: Path, cascade: st.Subnetwork, data: st.Data
) -> None:
    (images,) = by_sureness(cascade, data.test)
    program, module = load_program(folder), cascade.extract()
    for start, stop in ((55, 60), (0, 60), (0, 3)):
        given = images[start:stop]
        assert convolutions(program, given) == convolutions(module, given) > 0
    assert convolutions(program, images[55:]) < convolutions(program, images)


def test_the_rest_is_a_branch_of_the_onnx_file_for_one_image(
    folder: Path, cascade: st.Subnetwork
) -> None:
    def count(graph: Any) -> int:
        return sum(node.op_type == "Conv" for node in graph.node)

    model = onnx.load(folder / "network.single.onnx")
    (choice,) = [node for node in model.graph.node if node.op_type == "If"]
    goes_on, stays = (attribute.g for attribute in choice.attribute)
    module: Any = cascade.extract()
    rest = sum(isinstance(part, torch.nn.Conv2d) for part in module.rest.modules())
    assert count(goes_on) == rest > 0
    assert count(stays) == 0
    both = onnx.load(folder / "network.onnx").graph
    assert count(model.graph) == count(both) - rest > 0
    assert not [node for node in both.node if node.op_type == "If"]


def test_card_and_config_say_when_images_go_on_and_what_they_cost(
    folder: Path, cascade: st.Subnetwork
) -> None:
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "network.svg", "network.py", "network.safetensors"),
        *("network.pt2", "network.onnx", "network.single.onnx"),
    }
    found = cascade.exit
    assert found is not None
    config = json.loads((folder / "config.json").read_text())["cascade"]
    assert (config["first"], config["confidence"]) == ("b", found.confidence)
    assert (config["threshold"], config["share"]) == (found.threshold, 0.4)
    assert (config["macs"], config["worst_macs"]) == (cascade.macs, cascade.worst_macs)
    card = (folder / "README.md").read_text()
    assert "It is a cascade, which returns the output of b where that is sure enough." in card
    assert f"| an image goes on | where that is below {found.threshold!r} |" in card
    assert "| images that go on | 40.0% of those that the threshold was set on |" in card
    assert f"| MACs on average | {cascade.macs / 1e6:.3f} M" in card
    assert f"| MACs at most | {cascade.worst_macs / 1e6:.3f} M" in card
    assert "`network.single.onnx` takes one image" in card


@pytest.mark.slow
def test_elsewhere(folder: Path, cascade: st.Subnetwork, data: st.Data, tmp_path: Path) -> None:
    write_pictures(data.val, tmp_path / "pictures")
    found = answers(folder, tmp_path / "pictures")
    images = data.val.pick(range(len(data.val)), cascade.supergraph.views).images
    expected = cascade.extract()(*images).argmax(1).tolist()
    assert found["labels"] == dict.fromkeys(("python", "program", "onnx", "single"), expected)
    assert not [name for name in found["modules"] if name.startswith("optuna_stitch.")]


def test_a_cascade_without_an_exit_has_no_answers(tmp_path: Path) -> None:
    cascade = small_pair().subnetwork(Genotype("a then both", threshold=0.4))
    with pytest.raises(ExportError, match=r"no exit yet.*Evaluator\.tune_exits"):
        export_subnetwork(cascade, tmp_path / "to")
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_may_differ_by_may_decide_whether_an_image_goes_on(
    cascade: st.Subnetwork, data: st.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image at the threshold is answered either way; one beyond it is not."""
    traced = trace(cascade)
    images = images_of(traced, data.test)
    module: Any = traced.module
    sure = module.exit.sure(module.first(*images.pixels)[0])
    at = float(sure.sort().values[20])
    traced = dataclasses.replace(traced, module=with_exit(cascade, threshold=at).extract())

    def check(threshold: float) -> None:
        written = with_exit(cascade, threshold=threshold).extract()
        changed = dataclasses.replace(FORMATS["onnx"], load=lambda folder: written)
        monkeypatch.setitem(formats.FORMATS, "onnx", changed)
        check_format("onnx", tmp_path, traced, images)

    check(at + 1e-9)
    with pytest.raises(ExportError, match="differ"):
        check(float(sure.sort().values[40]))
