from __future__ import annotations

from pathlib import Path

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.evaluation.latency import Latencies, measure_latency, use_latencies
from optuna_stitch.evaluation.settings import LatencySettings
from optuna_stitch.search.objective import resolve_constraints
from optuna_stitch.utils.errors import ArtifactError, ConfigError


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
