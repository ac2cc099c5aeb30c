from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from tests.helpers.commands import call

TINY = """\
parents:
  a: {network: test_resnet, input_size: 32, train: {epochs: 1}}
  b: {network: test_efficientnet, input_size: 32, train: {epochs: 1}}
data: {train: {images: 100}, val: {images: 50}}
stitching: {points: blocks}
study:
  trials: 12
  batch: 4
  sampler: {name: nsga2, population_size: 8}
  start: {population: 8}
"""
PRODUCTS = {
    "artifacts",
    "fit.csv",
    "fit.png",
    "front.csv",
    "front.html",
    "front.png",
    "front.svg",
    "history.png",
    "networks",
    "predictions.csv",
    "report.md",
    "study.db",
    "study.yaml",
    "supernetwork.json",
    "supernetwork.safetensors",
    "switches.png",
}
# What is not always there: images that are gained, the journals of an open database.
PASSING = {"gained.png", "study.db-wal", "study.db-shm"}


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("tiny.yaml").write_text(TINY)


def _study(run: str = "runs/tiny") -> optuna.Study:
    return optuna.load_study(study_name="tiny", storage=f"sqlite:///{run}/study.db")


def _complete(study: optuna.Study) -> int:
    return len(study.get_trials(states=(TrialState.COMPLETE,)))


def test_run_leaves_everything_and_the_stages_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "tiny.yaml") == 0
    out = capsys.readouterr().out
    assert "parent a" in out
    assert "optuna-stitch dashboard runs/tiny" in out
    folder = Path("runs/tiny")
    assert {p.name for p in folder.iterdir()} - PASSING == PRODUCTS
    front = pd.read_csv(folder / "front.csv")
    assert list(front["name"][:3]) == ["parent a", "parent b", "ensemble"]
    assert len(pd.read_csv(folder / "fit.csv")) == len(_study().trials[0].params) - 1
    assert yaml.safe_load((folder / "study.yaml").read_text())["study"]["trials"] == 12
    assert _complete(_study()) == 12
    assert _study().trials[0].params["output"] == "a"

    built = (folder / "supernetwork.json").stat().st_mtime_ns
    assert call("search", "runs/tiny", "--trials", "5") == 0
    assert _complete(_study()) == 17
    assert call("report", "runs/tiny") == 0
    assert call("compare", "runs/tiny") == 0
    assert Path("comparison/compare.html").is_file()
    assert call("run", "tiny.yaml") == 0  # everything is there: nothing is done again
    assert _complete(_study()) == 17
    assert (folder / "supernetwork.json").stat().st_mtime_ns == built


def test_a_report_with_another_network_as_a_baseline() -> None:
    assert call("run", "tiny.yaml") == 0
    other = {"network": "test_resnet", "random_weights": True, "input_size": 32}
    section = {"report": {"baselines": [{**other, "model_args": {"num_classes": 10}}]}}
    Path("tiny.yaml").write_text(TINY + yaml.safe_dump(section))
    assert call("report", "tiny.yaml") == 0
    front = pd.read_csv("runs/tiny/front.csv").set_index("name")
    assert front.loc["test_resnet", "kind"] == "other"
    assert front.loc["test_resnet", "test_macs"] == front.loc["parent a", "test_macs"]
    assert "accuracy_minus_test_resnet" in front


def test_a_killed_run_goes_on_where_it_was() -> None:
    Path("tiny.yaml").write_text(TINY.replace("trials: 12", "trials: 60"))
    command = [sys.executable, "-c", "from optuna_stitch.cli.app import main; main()"]
    killed = subprocess.Popen([*command, "run", "tiny.yaml"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while _finished_trials() < 9:
        assert killed.poll() is None, killed.stderr and killed.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = _finished_trials()
    assert 9 <= before < 60
    assert call("run", "tiny.yaml") == 0
    study = _study()
    assert _complete(study) == 60
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    outputs = [trial.params["output"] for trial in study.trials[:3]]
    assert outputs == ["a", "b", "ensemble"]


def _finished_trials() -> int:
    try:
        with sqlite3.connect("file:runs/tiny/study.db?mode=ro", uri=True) as connection:
            query = "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'"
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def test_the_dashboard_needs_a_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("dashboard", "tiny.yaml") == 2
    assert "has no study yet" in " ".join(capsys.readouterr().err.split())


BAD_FILES = {
    "unknown network": (
        TINY.replace("test_resnet", "test_resnot"),
        ["no network named 'test_resnot'", "Did you mean", "test_resnet"],
    ),
    "missing checkpoint": (
        TINY.replace("train: {epochs: 1}", "checkpoint: none.safetensors", 1),
        ["none.safetensors", "no such file"],
    ),
    "corrupt checkpoint": (
        TINY.replace("train: {epochs: 1}", "checkpoint: broken.safetensors", 1),
        ["broken.safetensors", "cannot be read"],
    ),
    "parents of different classes": (
        TINY.replace("epochs: 1}}", "epochs: 1}, model_args: {num_classes: 12}}", 1),
        ["test_resnet tells 12", "test_efficientnet 10"],
    ),
    "parents of other classes than the data": (
        TINY.replace("epochs: 1}}", "epochs: 1}, model_args: {num_classes: 12}}"),
        ["12 classes", "has 10"],
    ),
    "misspelt key": (
        TINY.replace("points:", "ponts:"),
        ["tiny.yaml:5", "unknown key `stitching.ponts`", "Did you mean `points`?"],
    ),
    "wrong value": (
        TINY.replace("points: blocks", "points: some"),
        ["tiny.yaml:5", "`stitching.points`", "'auto', 'all', 'dominators' or 'blocks'"],
    ),
    "unknown objective": (
        TINY.replace("study:", "study:\n  objectives: [acuracy]"),
        ["no metric 'acuracy'", "accuracy, top5"],
    ),
    "unknown sampler": (
        TINY.replace("name: nsga2", "name: nsga9"),
        ["no sampler 'nsga9'", "nsga2, nsga3"],
    ),
    "unreachable storage": (
        TINY.replace("study:", "study:\n  storage: sqlite:////no/such/folder/s.db"),
        ["sqlite:////no/such/folder/s.db", "cannot be opened"],
    ),
    "too many images": (
        TINY.replace("images: 100", "images: 5000"),
        ["train split wants 5000", "1797"],
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_is_one_message_and_exit_code_2(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, expected = BAD_FILES[name]
    Path("tiny.yaml").write_text(text)
    Path("broken.safetensors").write_bytes(b"broken")
    assert call("run", "tiny.yaml") == 2
    captured = capsys.readouterr()
    message = " ".join(captured.err[captured.err.index("Error:") :].split())
    for part in expected:
        assert part in message
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_folder_of_another_study_file_is_left_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("build", "tiny.yaml") == 0
    before = {path: path.read_bytes() for path in Path("runs/tiny").iterdir()}
    Path("tiny.yaml").write_text(TINY.replace("points: blocks", "points: all"))
    assert call("run", "tiny.yaml") == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "belongs to another study file" in message
    assert "stitching.points ('blocks' there, 'all' here)" in message
    assert {path: path.read_bytes() for path in Path("runs/tiny").iterdir()} == before


def test_a_mistake_can_be_mended_before_anything_is_built() -> None:
    text = TINY.replace("study:", "study:\n  storage: sqlite:////no/such/folder/s.db")
    Path("tiny.yaml").write_text(text)
    assert call("run", "tiny.yaml") == 2
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["study.yaml"]
    Path("tiny.yaml").write_text(TINY)
    assert call("run", "tiny.yaml") == 0


def test_a_folder_that_is_no_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    assert call("run", "tiny.yaml", "--run", "mine") == 2
    assert "it is no run" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]
    assert call("search", "mine") == 2


def test_a_study_file_is_tried_out_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    """Pretrained weights and image folders that are not there need not be, with --smoke."""
    text = TINY.replace("train: {epochs: 1}", "pretrained: true")
    Path("tiny.yaml").write_text(text.replace("data: {", "data: {root: nowhere, "))
    assert call("run", "tiny.yaml", "--smoke") == 0
    assert "parent a" in capsys.readouterr().out
    assert {p.name for p in Path("runs/tiny-smoke").iterdir()} >= PRODUCTS
    filled = yaml.safe_load(Path("runs/tiny-smoke/study.yaml").read_text())
    assert filled["parents"]["a"]["random_weights"]


STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_file_runs_tiny(path: Path) -> None:
    assert call("run", str(path), "--smoke") == 0
    assert (Path("runs") / f"{path.stem}-smoke" / "front.png").is_file()


def test_in_a_shell_there_is_no_traceback() -> None:
    Path("tiny.yaml").write_text(TINY.replace("points:", "ponts:"))
    command = [sys.executable, "-c", "from optuna_stitch.cli.app import main; main()"]
    done = subprocess.run([*command, "run", "tiny.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: tiny.yaml:5: unknown key `stitching.ponts`")
    assert done.stdout == ""


def test_hopeless_stitches_are_dropped_before_the_search(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("kept.yaml").write_text(f"{TINY}keep: {{best: 3, min_r2: -1, images: 40}}\n")
    assert call("build", "kept.yaml") == 0
    out = capsys.readouterr().out
    assert "3 stitches are kept" in out
    assert "3 stitches, in runs/kept" in out
    table = pd.read_csv("runs/kept/fit.csv")
    assert table["kept"].sum() == 3
    best = table.nlargest(3, "quality")["quality"].min()
    assert (table[table["kept"]]["quality"] >= best).all()
    assert call("search", "runs/kept") == 0
    study = optuna.load_study(study_name="kept", storage="sqlite:///runs/kept/study.db")
    asked = set(study.trials[0].params) - {"output"}
    assert asked == set(table[table["kept"]]["switch"])

    Path("none.yaml").write_text(f"{TINY}keep: {{min_r2: 1}}\n")
    assert call("build", "none.yaml") == 2
    assert "`keep` drops all" in capsys.readouterr().err
    assert Path("runs/none/fit.csv").is_file()


def test_tuning_is_part_of_a_study_file() -> None:
    Path("tuned.yaml").write_text(f"{TINY}tune: {{steps: 2, networks: 2, batch_size: 8}}\n")
    assert call("build", "tuned.yaml") == 0
    tuned = pd.read_csv("runs/tuned/tuning.csv")
    assert list(tuned["switch"]) == list(pd.read_csv("runs/tuned/fit.csv")["switch"])
    assert Path("runs/tuned/tuning.pt").is_file()


def test_figures_are_remembered_in_the_studys_database() -> None:
    assert call("run", "tiny.yaml") == 0
    with sqlite3.connect("runs/tiny/study.db") as connection:
        rows = connection.execute("SELECT genotype, figures FROM optuna_stitch_evaluations")
        remembered = dict(rows.fetchall())
    assert {"a", "b", "ensemble"} <= set(remembered)
    parent = json.loads(remembered["a"])["figures"]["accuracy"]
    assert parent == next(t for t in _study().trials if t.params["output"] == "a").values[0]


def test_latency_as_an_objective_bounds_and_races() -> None:
    wanted = yaml.safe_load(TINY)
    wanted["study"] |= {"objectives": ["accuracy", "latency_ms"], "constraints": {"max_macs": 2e5}}
    wanted["evaluation"] = {"racing": {"first": 20}, "batch_size": 10, "latency": {"threads": 1}}
    Path("tiny.yaml").write_text(yaml.safe_dump(wanted))
    assert call("run", "tiny.yaml") == 0
    measured = json.loads(Path("runs/tiny/latency.json").read_text())
    assert measured["threads"] == 1
    study = _study()
    assert study.metric_names == ["accuracy", "latency_ms"]
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        assert 0 < trial.values[1] <= sum(measured["milliseconds"].values())
        (violation,) = trial.system_attrs["constraints"]
        assert violation > 0  # nothing is so small; only parents and ensemble were run
    assert study.best_trials == []
    table = pd.read_csv("runs/tiny/front.csv")
    assert {"test_accuracy", "test_latency_ms", "test_macs"} <= set(table)
