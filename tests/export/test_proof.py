"""Every file is judged in its own runtime, and what loses too much is not handed over."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from scipy.stats import binomtest
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.export import formats as formats_module
from optuna_stitch.export.export import export_subnetwork
from optuna_stitch.export.formats import FORMATS, select_formats
from optuna_stitch.export.onnx_file import load_onnx
from optuna_stitch.export.proof import read_proofs
from optuna_stitch.export.targets import check_tensorrt, openvino_model
from optuna_stitch.utils.errors import ArtifactError, ExportError
from tests.helpers.exports import best_single_stitch, cascade_of, small_pair
from tests.helpers.networks import small_pair as dense_pair

TARGETS = ["onnx-float16", "onnx-int8", "openvino", "tensorrt"]

# Of 200 images, which the file below answers by another class.
CHANGED = 30


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A format without a tolerance, whose file answers the first images of a split otherwise."""
    honest = FORMATS["program"]

    def load(folder: Path) -> Any:
        network, seen = honest.load(folder), 0

        def run(images: Tensor) -> Tensor:
            nonlocal seen
            logits = network(images)
            assert isinstance(logits, Tensor)
            if len(images) > 1:  # not where images are timed, or looked at alone
                places = torch.arange(seen, seen + len(images)) < CHANGED
                seen += len(images)
                logits[places] = logits[places].roll(1, dims=1)
            return logits

        return run

    changed = dataclasses.replace(honest, tolerance=None, load=load)
    monkeypatch.setitem(FORMATS, "program", changed)


def test_what_a_file_loses_is_counted_and_may_be_too_much(
    wrong: None, supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    subnetwork = supernetwork.subnetwork({"output": "b"})
    module = subnetwork.extract()
    batch = next(data.val.batches(supernetwork.views, len(data.val)))
    with torch.no_grad():
        guesses = module(*batch.images).argmax(1)
    other = guesses.clone()
    other[:CHANGED] = (guesses[:CHANGED] + 1) % 10
    right, kept = guesses == batch.targets, other == batch.targets
    lost, won = int((right & ~kept).sum()), int((~right & kept).sum())
    assert lost > won + 2
    points = 100 * (lost - won) / len(right)

    def export(**options: Any) -> Path:
        return export_subnetwork(
            subnetwork,
            tmp_path / "to",
            split=data.test.take(1),
            validation=data.val,
            formats=["python", "program"],
            **options,
        )

    # what was asked for goes as a whole
    with pytest.raises(ExportError) as raised:
        export(max_drop=points - 0.1)
    said = str(raised.value)
    assert f"As program (network.pt2) the network loses {points:.2f} points of accuracy" in said
    assert f"on {len(right)} validation images" in said
    assert "Nothing was written. Take python, which loses 0.00." in said
    assert list(tmp_path.iterdir()) == []

    folder = export(max_drop=points)
    proofs = read_proofs(folder)
    found = proofs[-1].answers[""]
    assert found.judged == pytest.approx(right.double().mean())
    assert found.quality == pytest.approx(kept.double().mean())
    assert found.p_value == pytest.approx(binomtest(won, won + lost).pvalue)
    assert found.agreement == pytest.approx(1 - CHANGED / len(right))
    assert min(proof.latency_ms for proof in proofs) > 0
    assert proofs[0].runtime == f"torch {torch.__version__.partition('+')[0]}"
    (line,) = [
        line
        for line in (folder / "README.md").read_text().splitlines()
        if f"-{points:.2f}" in line
    ]
    assert f"| {100 * found.quality:.2f}% | -{points:.2f} |" in line
    with pytest.raises(ArtifactError, match="Export the network again"):
        read_proofs(tmp_path)


def test_images_that_are_missing_are_asked_for(data: st.Data, tmp_path: Path) -> None:
    subnetwork = small_pair().subnetwork({"output": "b"})
    for options, words in (
        ({"formats": ["onnx-int8"], "validation": data.val}, "calibration images.*`train`"),
        ({"formats": ["onnx-float16"]}, "loses as onnx-float16 shows on validation images"),
        ({"max_drop": 1.0}, "give `validation`"),
        ({"max_drop": -1.0}, "0 to 100 points"),
        ({"validation": st.DataPair(data, data).val}, "two questions is judged on both"),
    ):
        with pytest.raises(ExportError, match=words):
            export_subnetwork(subnetwork, tmp_path / "to", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats_module.importlib.util, "find_spec", lambda name: None)
    for name, extra in (
        *(("onnx-int8", "onnx"), ("tensorrt", "onnx")),
        *(("openvino", "openvino"), ("coreml", "coreml")),
    ):
        with pytest.raises(ExportError, match=rf"pip install 'optuna-stitch\[{extra}\]'"):
            select_formats([name])


def model_of(*nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model of a chain of nodes, on images ``(1, 3, 8, 8)``."""
    inputs = [helper.make_tensor_value_info("x", kind, [1, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_operators_that_runtimes_lack_are_named(tmp_path: Path) -> None:
    refused = {
        "has no operator Det, of the node d": helper.make_node("Det", ["x"], ["y"], "d"),
        "has no operator mine.Twice, of the node t": helper.make_node(
            "Twice", ["x"], ["y"], "t", domain="mine"
        ),
        "cubic.*of the node r": helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], "r", mode="cubic"
        ),
        "gives no indices.*of the node m": helper.make_node(
            "MaxPool", ["x"], ["y", "i"], "m", kernel_shape=[2, 2]
        ),
        "shape of y is not fixed, of the node n": helper.make_node("NonZero", ["x"], ["y"], "n"),
    }
    for words, node in refused.items():
        with pytest.raises(ExportError, match=f"TensorRT cannot take.*{words}"):
            check_tensorrt(model_of(node))
    check_tensorrt(model_of(helper.make_node("Relu", ["x"], ["y"], "r")))

    for name in ("Det", "mine.Twice"):
        domain, _, kind = name.rpartition(".")
        node = helper.make_node(kind, ["x"], ["y"], "d", domain=domain)
        model = model_of(node)
        model.opset_import.append(helper.make_opsetid("mine", 1))
        onnx.save(model, tmp_path / "lacking.onnx")
        with pytest.raises(ExportError, match=f"OpenVINO.*operator {name}, of the node d"):
            openvino_model(tmp_path / "lacking.onnx")
    strange = helper.make_node("Gelu", ["x"], ["y"], "g", approximate="strangely")
    onnx.save(model_of(strange), tmp_path / "strange.onnx")
    with pytest.raises(ExportError, match=r"convert the operator Gelu \(.*strangely\)\. Choose"):
        openvino_model(tmp_path / "strange.onnx")

    weights = helper.make_tensor("w", TensorProto.DOUBLE, [1, 3, 1, 1], np.ones(3))
    double = model_of(helper.make_node("Conv", ["x", "w"], ["y"], "c"), kind=TensorProto.DOUBLE)
    double.graph.initializer.append(weights)
    onnx.save(double, tmp_path / "double.onnx")
    with pytest.raises(ExportError, match=r"it has no operator Conv, of the node c"):
        load_onnx(tmp_path / "double.onnx")


@pytest.mark.slow
def test_int8_is_judged_and_its_answers_stay_in_32_bits(data: st.Data, tmp_path: Path) -> None:
    subnetwork = small_pair().subnetwork({"output": "ensemble"})
    folder = subnetwork.export(
        tmp_path / "to",
        formats=["onnx-int8"],
        validation=data.val,
        train=data.train,
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "network.int8.onnx", "network.svg")
    ]
    (proof,) = read_proofs(folder)
    assert (proof.file, proof.images) == ("network.int8.onnx", len(data.val))
    assert proof.answers[""].agreement > 0.5
    nodes = onnx.load(folder / "network.int8.onnx").graph.node
    made_by = {name: node for node in nodes for name in node.output}
    assert sum(node.op_type == "Conv" for node in nodes) == 4
    for node in nodes:
        reads = [made_by[name].op_type for name in node.input if name in made_by]
        if node.op_type == "Conv":
            assert set(reads) == {"DequantizeLinear"}
        if node.op_type in ("Exp", "Log", "Sub"):
            assert "DequantizeLinear" not in reads


def check_targets(
    subnetwork: st.Subnetwork, folder: Path, validation: Any, train: Any, files: list[str]
) -> None:
    """Export for every target; see that files answer as their proofs say, and nearly alike."""
    export_subnetwork(
        subnetwork, folder, formats=[*TARGETS, "coreml"], validation=validation, train=train
    )
    proofs = read_proofs(folder)
    assert [proof.file for proof in proofs] == files
    for proof in proofs:
        for kept in proof.answers.values():
            # of untrained networks many answers are near ties, more than 8 bits tell apart
            assert kept.agreement > (0.5 if "int8" in proof.format else 0.9), proof
            assert kept.quality == kept.judged or kept.agreement < 1
    config = json.loads((folder / "config.json").read_text())
    assert [one["file"] for one in config["files"]] == files
    card = (folder / "README.md").read_text()
    for proof in proofs:
        assert f"| {proof.file}" in card
        assert proof.runtime in card
    assert (folder / "network.mlpackage" / "Manifest.json").is_file()
    assert "network.mlpackage was written and not run: Core ML runs on macOS" in card


PLAIN = ["network.float16.onnx", "network.int8.onnx", "network.xml", "network.tensorrt.onnx"]

CASCADE = [
    *("network.float16.onnx", "network.float16.single.onnx"),
    *("network.int8.onnx", "network.int8.single.onnx"),
    *("network.xml", "network.tensorrt.onnx"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ensemble", "cascade"])
def test_targets_answer_alike(
    kind: str, supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    if kind == "ensemble":
        subnetwork = best_single_stitch(supernetwork, "ensemble", data.val)
    else:
        subnetwork = cascade_of(supernetwork, "b then both", data.val)
    files = CASCADE if kind == "cascade" else PLAIN
    check_targets(subnetwork, tmp_path / "to", data.val, data.train, files)


@pytest.mark.slow
def test_targets_answer_both_questions(
    two_jobs: st.Supernetwork, pair: st.DataPair, tmp_path: Path
) -> None:
    subnetwork = two_jobs.subnetwork({"output": "both"})
    check_targets(subnetwork, tmp_path / "to", pair.val, pair.train, PLAIN)
    for proof in read_proofs(tmp_path / "to"):
        assert list(proof.answers) == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["ensemble", "a then both"])
def test_targets_label_pixels(output: Any, tmp_path: Path) -> None:
    part = {"images": 12}
    noise = st.load_data("noise/5/pixels", train=part, val=part, test=part)
    supernetwork = dense_pair(segments=True)
    supernetwork.fit(noise.train)
    subnetwork = supernetwork.subnetwork({"output": output, "threshold": 0.5})
    if subnetwork.is_cascade:
        evaluator = st.Evaluator(supernetwork, noise.val, ["mean_iou"])
        (subnetwork,) = evaluator.tune_exits([subnetwork])
    files = CASCADE if subnetwork.is_cascade else PLAIN
    check_targets(subnetwork, tmp_path / "to", noise.val, noise.train, files)
    for proof in read_proofs(tmp_path / "to"):
        assert proof.answers[""].metric == "mean_iou"
