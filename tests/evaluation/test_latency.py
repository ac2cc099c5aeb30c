from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

import optuna_stitch as st
from optuna_stitch.evaluation import pieces as pieces_module
from optuna_stitch.evaluation.latency import (
    Latencies,
    import_latencies,
    measure_alike,
    measure_latency,
    use_latencies,
)
from optuna_stitch.evaluation.pieces import pieces_of, time_here, write_pieces
from optuna_stitch.evaluation.settings import LatencySettings
from optuna_stitch.search.objective import resolve_constraints
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.utils.errors import ArtifactError, ConfigError
from tests.helpers.networks import small_pair


def test_a_networks_latency_is_the_sum_of_its_operations(
    supernetwork: st.Supernetwork, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    latencies = measure_latency(
        supernetwork.supergraph, LatencySettings(batch_size=3, threads=1), rounds=3
    )
    assert torch.get_num_threads() == threads
    assert (latencies.batch_size, latencies.threads) == (3, 1)
    names = [operation.name for operation in supernetwork.supergraph.operations]
    assert sorted(latencies.milliseconds) == sorted(names)
    a, b, both = (
        latencies(supernetwork.subnetwork({"output": output})) for output in ("a", "b", "ensemble")
    )
    assert min(a, b) > 0
    joined = latencies.milliseconds["ensemble"]
    shared = latencies.milliseconds["input.0"]
    assert both == pytest.approx(a + b + joined - shared)
    latencies.save(tmp_path / "latency.json")
    assert Latencies.load(tmp_path / "latency.json") == latencies


def test_as_a_metric_it_counts_with_what_the_supernetwork_was_given(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    every = {operation.name: 0.5 for operation in supernetwork.supergraph.operations}
    use_latencies(supernetwork.supergraph, Latencies(1, 2, every))
    evaluator = st.Evaluator(supernetwork, data.val, ["latency_ms"])
    parent = supernetwork.subnetwork({"output": "a"})
    assert evaluator.evaluate([parent])[0]["latency_ms"] == 0.5 * len(parent.resolved.steps)


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    for text in ("no JSON", '{"speed": 3}'):
        path.write_text(text)
        with pytest.raises(ArtifactError, match="Remove the file"):
            Latencies.load(path)


def test_bounds_on_figures() -> None:
    cheap, good = resolve_constraints({"max_macs": 100, "min_accuracy": 0.5})
    assert cheap.violation(120) == 20
    assert cheap.violation(80) == -20
    assert good.violation(0.75) == -0.25
    assert good.metric.name == "accuracy"


@pytest.mark.parametrize("name", ["macs", "most_macs", "max_", "max_speed"])
def test_bounds_on_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match="metric"):
        resolve_constraints({name: 1})


def test_pieces_run_whole_or_not_at_all(supernetwork: st.Supernetwork) -> None:
    pieces = pieces_of(supernetwork.supergraph)
    places = [place for piece in pieces for place in piece.places]
    assert sorted(places) == list(range(len(supernetwork.supergraph.operations)))
    assert len(pieces) < len(places)
    rng = random.Random(0)
    for _ in range(60):
        density = rng.choice([0.05, 0.3])
        on = frozenset(s for s in range(len(supernetwork.switches)) if rng.random() < density)
        for output in ("a", "b", "ensemble"):
            steps = supernetwork.subnetwork(Genotype(output, on)).resolved.steps
            run = {place for place, _ in steps}
            for piece in pieces:
                assert len(run & set(piece.places)) in (0, len(piece.places))


def table_of(supernetwork: st.Supernetwork, **changes: Any) -> dict[str, Any]:
    """What a device would write that takes a millisecond for every piece."""
    supergraph = supernetwork.supergraph
    names = [supergraph.operations[piece.root].name for piece in pieces_of(supergraph)]
    measured = {name: 1.0 for name in names if not name.startswith("input.")}
    table = {
        "supernetwork": supergraph.content_hash(),
        "threads": 2,
        "runtime": "onnxruntime 1",
        "device": "board",
        "milliseconds": {"1": measured},
    }
    return {**table, **changes}


def test_a_table_counts_by_pieces(tmp_path: Path) -> None:
    supernetwork = small_pair()
    supergraph = supernetwork.supergraph
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(table_of(supernetwork)))
    latencies = import_latencies(path, supergraph)
    assert (latencies.device, latencies.runtime) == ("board, onnxruntime 1", "imported")
    assert (latencies.batch_size, latencies.threads) == (1, 2)
    pieces = pieces_of(supergraph)
    for output in ("a", "b", "ensemble"):
        subnetwork = supernetwork.subnetwork({"output": output})
        run = {place for place, _ in subnetwork.resolved.steps}
        images = sum(supergraph.operations[piece.root].owner == "input" for piece in pieces)
        assert latencies(subnetwork) == sum(piece.root in run for piece in pieces) - images
    latencies.save(path)
    assert Latencies.load(path) == latencies
    # nobody timed another network there
    use_latencies(supergraph, latencies)
    with pytest.raises(ConfigError, match=r"measured elsewhere \(board, onnxruntime 1\)"):
        measure_alike(small_pair(side=24).supergraph, supergraph)


def test_tables_that_are_none_of_this_supernetwork(tmp_path: Path) -> None:
    supernetwork = small_pair()
    whole = table_of(supernetwork)
    lacking = dict(list(whole["milliseconds"]["1"].items())[1:])
    path = tmp_path / "latency.json"
    for said, words in (
        ("no JSON", r"cannot be read.*Name the latency\.json that measure\.py writes"),
        ([1], "is no table that measure.py writes"),
        ({"speed": 3}, "is no table that measure.py writes"),
        ({**whole, "supernetwork": "abc"}, r"is of another supernetwork \(abc; this one is"),
        (
            {**whole, "milliseconds": {"1": lacking}},
            r"not whole: of 1 image at once it lacks 1 of",
        ),
        ({**whole, "milliseconds": {"4": whole["milliseconds"]["1"]}}, "of 1 image at once"),
        ({**whole, "milliseconds": {"1": {**lacking, "x": -1.0}}}, "no positive number"),
    ):
        path.write_text(said if isinstance(said, str) else json.dumps(said))
        with pytest.raises(ArtifactError, match=words):
            import_latencies(path, supernetwork.supergraph)
    with pytest.raises(ArtifactError, match="cannot be read"):
        import_latencies(tmp_path / "nothing.json", supernetwork.supergraph)
    with pytest.raises(ConfigError, match=r"no table of latencies yet.*latency export"):
        measure_latency(supernetwork.supergraph, LatencySettings(runtime="imported"))


def test_onnxruntime_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'optuna-stitch\[onnx\]'"):
        measure_latency(small_pair().supergraph, LatencySettings(runtime="onnxruntime"))


def test_an_operator_that_onnxruntime_lacks_is_named_with_its_piece(tmp_path: Path) -> None:
    kind = onnx.TensorProto.DOUBLE
    x, y = (onnx.helper.make_tensor_value_info(name, kind, [1, 1, 4, 4]) for name in "xy")
    weights = onnx.helper.make_tensor("w", kind, [1, 1, 1, 1], [1.0])
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "c")
    graph = onnx.helper.make_graph([node], "piece", [x], [y], [weights])
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "1.onnx"
    )
    listed = {"supernetwork": "abc", "threads": 1, "pieces": {"1": {"a.stem": "1.onnx"}}}
    (tmp_path / "pieces.json").write_text(json.dumps(listed))
    words = r"cannot run a piece .*The piece a\.stem \(1\.onnx\).*Conv.*node with name 'c'"
    with pytest.raises(ConfigError, match=words):
        time_here(tmp_path, 3)


@pytest.mark.slow
def test_pieces_compute_the_parents_and_are_timed_by_a_script(
    cnn_vit: st.Supernetwork, tmp_path: Path
) -> None:
    supergraph = cnn_vit.supergraph
    write_pieces(supergraph, tmp_path, LatencySettings(threads=1))
    listed = json.loads((tmp_path / "pieces.json").read_text())["pieces"]
    images = [torch.randn(1, *view.input_size) for view in cnn_vit.views]
    values = {f"images_{number}": pixels.numpy() for number, pixels in enumerate(images)}
    for name, file in listed["1"].items():
        if not name:
            continue
        session = onnxruntime.InferenceSession(tmp_path / file)
        given = {one.name: values[one.name] for one in session.get_inputs()}
        outputs = [one.name for one in session.get_outputs()]
        values |= dict(zip(outputs, session.run(None, given), strict=True))
    with torch.no_grad():
        for side in ("a", "b", "ensemble"):
            expected = cnn_vit.subnetwork({"output": side}).extract()(*images)
            place = cnn_vit.subnetwork({"output": side}).resolved.output
            found = torch.from_numpy(values[f"{supergraph.operations[place].name}#0"])
            assert (found - expected).abs().max() < 1e-4

    # in a process that has neither torch nor us
    code = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['optuna_stitch'] = None; "
        "sys.argv = ['measure.py', '--rounds', '3']; "
        "runpy.run_path('measure.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    latencies = import_latencies(tmp_path / "latency.json", supergraph)
    assert (latencies.batch_size, latencies.threads) == (1, 1)
    assert latencies(cnn_vit.subnetwork({"output": "b"})) > 0


@pytest.mark.slow
def test_of_cascades_one_image_is_timed_too() -> None:
    supernetwork = small_pair()
    settings = LatencySettings(batch_size=4, threads=1, runtime="onnxruntime")
    latencies = measure_latency(supernetwork.supergraph, settings, rounds=3)
    assert (latencies.batch_size, latencies.threads) == (4, 1)
    assert latencies.single is not None
    roots = {
        supernetwork.supergraph.operations[piece.root].name
        for piece in pieces_of(supernetwork.supergraph)
    }
    for column in (latencies.single, latencies.milliseconds):
        assert {name for name, time in column.items() if time} <= roots
    assert latencies(supernetwork.subnetwork({"output": "ensemble"})) > 0
