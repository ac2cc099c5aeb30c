"""Trackers hold every trial once, whoever finished it and whenever they could be reached."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.trial import FrozenTrial

import optuna_stitch as st
from optuna_stitch.search import trackers
from optuna_stitch.search.trackers import Tracker
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call
from tests.helpers.runs import TINY


class Listed(Tracker):
    """A tracker whose server is a list, away while ``away`` is set."""

    name, package = "The list", "optuna"
    server: ClassVar[list[int]] = []
    away = False

    def _open(self, study: optuna.Study) -> None:
        if self.away:
            raise ConnectionError("nobody there")

    def _log_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.server.append(trial.number)

    def _log_files(self, paths: Sequence[Path], folder: str) -> None:
        pass

    def _close(self) -> None:
        pass


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> type[Listed]:
    monkeypatch.setattr(Listed, "server", [])
    monkeypatch.setattr(Listed, "away", False)
    monkeypatch.setattr(trackers, "_PAUSE", 0.0)
    return Listed


def _objective(trial: optuna.Trial) -> tuple[float, float]:
    x = trial.suggest_categorical("x", ["off", "on"])
    return (1.0 if x == "on" else 0.0), 2.0


def _study(storage: Any = None) -> optuna.Study:
    study = optuna.create_study(
        directions=["maximize", "minimize"], study_name="mine", storage=storage
    )
    study.set_metric_names(["accuracy", "macs"])
    return study


def test_what_was_away_never_stops_a_study_and_gets_all_trials(
    listed: type[Listed], capsys: pytest.CaptureFixture[str]
) -> None:
    study = _study()
    with listed() as tracker:
        study.optimize(_objective, n_trials=2, callbacks=[tracker])
        listed.away = True
        study.optimize(_objective, n_trials=3, callbacks=[tracker])
        assert listed.server == [0, 1]
        listed.away = False
        study.optimize(_objective, n_trials=1, callbacks=[tracker])
    assert listed.server == [0, 1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("The list cannot be reached") == 1


def test_what_a_process_could_not_log_another_one_does(listed: type[Listed]) -> None:
    study = _study()
    listed.away = True
    for _ in range(2):
        with listed() as tracker:
            study.optimize(_objective, n_trials=2, callbacks=[tracker])
    listed.away = False
    for _ in range(2):  # the second time nothing is left
        listed().finish(study)
    assert sorted(listed.server) == [0, 1, 2, 3]


def test_workers_log_what_they_finish(listed: type[Listed], objective: st.Objective) -> None:
    study = st.create_study(objective, population=6)
    for _ in range(2):
        st.optimize(study, objective, n_trials=3, batch=3, callbacks=[listed()])
    finished = [trial.number for trial in study.trials if trial.state.is_finished()]
    assert listed.server == finished
    assert len(finished) == 6


def test_a_missing_package_is_named_before_anything_is_made(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else find(name, *a)
    )
    with pytest.raises(ConfigError, match=r"pip install 'optuna-stitch\[mlflow\]'"):
        st.MLflowTracker()
    Path("mine.yaml").write_text(TINY + "trackers: {mlflow: {}}\n")
    assert call("run", "mine.yaml") == 2
    assert "pip install 'optuna-stitch[mlflow]'" in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_study_is_one_run_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: the extra [mlflow]")
    monkeypatch.chdir(tmp_path)
    study = _study("sqlite:///study.db")
    study.optimize(_objective, n_trials=2, callbacks=[st.MLflowTracker("http://127.0.0.1:9")])
    assert capsys.readouterr().err.count("MLflow cannot be reached") == 1
    uri = "sqlite:///mlflow.db"
    Path("front.txt").write_text("front")
    for _ in range(2):  # two workers, or a study that goes on
        again = optuna.load_study(study_name="mine", storage="sqlite:///study.db")
        with st.MLflowTracker(uri, "digits") as tracker:
            again.optimize(_objective, n_trials=2, callbacks=[tracker])
            assert tracker.log_files(again, [Path("front.txt")], "report")
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert sorted(point.step for point in history) == [2, 3, 4, 5]
    for point in history:
        assert point.value == study.trials[point.step].values[0]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "report")] == [
        "report/front.txt"
    ]
    logged = client.download_artifacts(run.info.run_id, "trials/000004.json", str(tmp_path))
    assert json.loads(Path(logged).read_text())["params"] == study.trials[4].params


@pytest.mark.slow
def test_a_run_logs_trials_pictures_and_the_exported_network(workplace: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb: the extra [wandb]")
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: the extra [mlflow]")
    uri = f"sqlite:///{workplace}/mlflow.db"
    own = f"trackers: {{mlflow: {{tracking_uri: '{uri}'}}, wandb: {{mode: offline}}}}\n"
    Path("mine.yaml").write_text(TINY + own)
    run = st.Run.start("mine.yaml")
    run.search()
    run.report()
    run.export(run.study.best_trials[0].number, "network")
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    points = client.get_metric_history(found.info.run_id, "macs")
    complete = [trial.number for trial in run.study.trials if trial.values is not None]
    assert sorted(point.step for point in points) == complete
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"report.md", "front.png", "front.csv", "trials"} <= files
    number = run.study.best_trials[0].number
    network = client.list_artifacts(found.info.run_id, f"trial-{number}/network")
    assert f"trial-{number}/network/network.py" in {file.path for file in network}
    offline = sorted(Path("runs/mine/wandb").glob("offline-run-*"))
    assert offline
    ids = {path.name.rpartition("-")[2] for path in offline}
    assert len(ids) == 1  # search, report and export are one run
    written = b"".join(path.read_bytes() for path in Path("runs/mine/wandb").rglob("*.wandb"))
    assert b"accuracy" in written
