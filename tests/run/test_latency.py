"""Latencies of another device: what a run writes for it, and how it counts with its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from optuna_stitch.evaluation.latency import Latencies
from optuna_stitch.run.run import Run
from optuna_stitch.run.schema import StudyFile, smoke_test
from optuna_stitch.utils.errors import ArtifactError, ConfigError, RunError
from tests.helpers.commands import call
from tests.helpers.runs import TINY

IMPORTED = TINY.replace(
    "study:",
    "evaluation: {latency: {runtime: imported}}\nstudy:\n  objectives: [accuracy, latency_ms]",
)


@pytest.mark.slow
def test_a_table_goes_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(IMPORTED)
    assert call("latency", "export", "tiny.yaml", "pieces") == 2
    assert "has no supernetwork yet" in capsys.readouterr().err
    run = Run.start("tiny.yaml")
    supernetwork = run.build()
    with pytest.raises(ConfigError, match="There is no table of latencies yet"):
        run.search()

    assert call("latency", "export", "tiny.yaml", "pieces") == 0
    assert "run there: python measure.py" in capsys.readouterr().out
    assert call("latency", "export", "tiny.yaml", "pieces") == 2
    assert "pieces is there and not empty" in capsys.readouterr().err
    script = ["pieces/measure.py", "--rounds", "3", "--threads", "1", "--to", "table.json"]
    subprocess.run([sys.executable, *script], check=True, capture_output=True)

    assert call("latency", "import", "tiny.yaml", "tiny.yaml") == 2
    assert "tiny.yaml cannot be read" in capsys.readouterr().err
    assert call("latency", "import", "tiny.yaml", "table.json") == 0
    assert "for 1 image at once" in capsys.readouterr().out
    latencies = Latencies.load(run.folder / "latency.json")
    study = run.search(n_trials=4)
    for trial in study.trials[:4]:
        subnetwork = supernetwork.subnetwork(trial.params)
        assert trial.values[1] == pytest.approx(latencies(subnetwork))

    run.import_latency("table.json")  # the same again changes nothing
    table = json.loads(Path("table.json").read_text())
    table["milliseconds"]["1"] = dict.fromkeys(table["milliseconds"]["1"], 1.0)
    Path("other.json").write_text(json.dumps(table))
    with pytest.raises(RunError, match="were counted with other times"):
        run.import_latency("other.json")
    table["milliseconds"]["4"] = table["milliseconds"]["1"]
    Path("other.json").write_text(json.dumps(table))
    with pytest.raises(ArtifactError, match="is of 4 images at once; the study file says 1"):
        run.import_latency("other.json")


def test_other_networks_were_not_timed_there() -> None:
    parents = {side: {"network": "resnet18", "random_weights": True} for side in ("a", "b")}
    said = {
        "parents": parents,
        "evaluation": {"latency": {"runtime": "imported"}},
        "study": {"objectives": ["accuracy", "latency_ms"]},
    }
    file = StudyFile.model_validate(said)
    assert smoke_test(file).evaluation.latency.runtime == "onnxruntime"
    with pytest.raises(ValidationError, match=r"and not of `report\.baselines`"):
        StudyFile.model_validate({**said, "report": {"baselines": [parents["a"]]}})
    both = {"objectives": ["retained", "latency_ms"]}
    with pytest.raises(ValidationError, match="two jobs, whose reports fit linear probes"):
        StudyFile.model_validate({**said, "data": {"a": {}, "b": {}}, "study": both})
