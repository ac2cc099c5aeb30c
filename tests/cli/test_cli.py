from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from tests.helpers.commands import call
from tests.helpers.runs import (
    PASSING,
    PRODUCTS,
    TINY,
    change_study_file,
    complete,
    copy_supernetwork,
    study_of,
)

pytestmark = pytest.mark.usefixtures("workplace")

# Commands that only read.
READERS = {
    "report": ["report"],
    "export": ["export", "--trial", "0", "--to", "out"],
    "dashboard": ["dashboard"],
}


def _text(text: str) -> str:
    """What was printed, without the line breaks that depend on the terminal."""
    return " ".join(text.split())


def _tree() -> dict[str, bytes]:
    """All files below the current folder, and their content; none for a folder."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in Path().rglob("*")
        if path.name not in PASSING  # as long as this process has the database open
    }


def test_run_leaves_everything_and_the_stages_go_on(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in finished.iterdir()} - PASSING == PRODUCTS
    front = pd.read_csv(finished / "front.csv")
    assert list(front["name"][:3]) == ["parent a", "parent b", "ensemble"]
    assert len(pd.read_csv(finished / "fit.csv")) == len(study_of().trials[0].params) - 2
    assert yaml.safe_load((finished / "study.yaml").read_text())["study"]["trials"] == 12
    assert len(complete(study_of())) == 12
    assert study_of().trials[0].params["output"] == "a"

    built = (finished / "supernetwork.json").stat().st_mtime_ns
    assert call("search", "runs/tiny", "--trials", "5") == 0
    assert len(complete(study_of())) == 17
    assert "17 trials; next: optuna-stitch report runs/tiny" in capsys.readouterr().out
    assert call("compare", "runs/tiny") == 0
    assert Path("comparison/compare.html").is_file()
    capsys.readouterr()
    assert call("run", "tiny.yaml") == 0  # only the report is made again
    out = capsys.readouterr().out
    assert "parent a" in out
    assert "optuna-stitch dashboard runs/tiny" in out
    assert "| trials | 17 |" in (finished / "report.md").read_text()
    assert len(complete(study_of())) == 17
    assert (finished / "supernetwork.json").stat().st_mtime_ns == built


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("place", ["nowhere", "begun", "built"])
def test_reading_before_there_is_a_study_leaves_nothing_behind(
    command: str, place: str, built_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studied, how = "tiny.yaml", "tiny.yaml"
    if place == "begun":
        Path("runs/tiny").mkdir(parents=True)
        shutil.copy("tiny.yaml", "runs/tiny/study.yaml")
        how = "runs/tiny"
    elif place == "built":
        shutil.copytree(built_once, "runs/tiny")
        studied, how = "runs/tiny", "runs/tiny"
    before = _tree()
    name, *options = READERS[command]
    assert call(name, studied, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = f"runs/tiny has no study yet; run `optuna-stitch search {how}` first."
    assert expected in _text(captured.err)
    assert _tree() == before


def test_reading_in_a_folder_that_is_named_says_how_to_begin_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("report", "tiny.yaml", "--run", "mine") == 2
    assert "run `optuna-stitch search tiny.yaml --run mine` first" in capsys.readouterr().err
    assert call("report", "runs/none") == 2
    assert "no study file at runs/none" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_a_journal_is_not_made_by_reading(capsys: pytest.CaptureFixture[str]) -> None:
    change_study_file("tiny.yaml", study={"storage": "journal:///{run}/study.journal"})
    assert call("report", "tiny.yaml") == 2
    assert "has no study yet" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_other_runs_of_a_database_are_no_study_of_this_one(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_study_file("other.yaml", study={"storage": f"sqlite:///{finished}/study.db"})
    before = _tree()
    assert call("report", "other.yaml") == 2
    assert "runs/other has no study yet" in _text(capsys.readouterr().err)
    assert _tree().keys() == before.keys()
    assert study_of(name=None).study_name == "tiny"  # still the only one


def test_a_proxy_makes_its_storage_since_workers_elsewhere_may_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = []

    def serve(storage: BaseStorage, *, host: str, port: int) -> None:
        served.append((storage.get_all_studies(), host, port))

    monkeypatch.setattr("optuna_stitch.storage.open.serve_proxy", serve)
    assert call("proxy", "tiny.yaml", "--port", "13007") == 0
    assert served == [([], "127.0.0.1", 13007)]
    assert Path("runs/tiny/study.db").is_file()


def test_the_dashboard_is_served(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = []

    def serve(storage: BaseStorage, *, artifact_store: object, host: str, port: int) -> None:
        served.append((len(storage.get_all_studies()), artifact_store is not None, host, port))

    monkeypatch.setattr("optuna_stitch.report.dashboard_server.serve_dashboard", serve)
    assert call("dashboard", "runs/tiny", "--port", "8007") == 0
    assert served == [(1, True, "127.0.0.1", 8007)]


@pytest.mark.slow
def test_a_report_with_another_network_as_a_baseline(finished: Path) -> None:
    other = {"network": "test_resnet", "random_weights": True, "input_size": 32}
    section = {"baselines": [{**other, "model_args": {"num_classes": 10}}]}
    change_study_file("tiny.yaml", report=section)
    assert call("report", "tiny.yaml") == 0
    front = pd.read_csv(finished / "front.csv").set_index("name")
    assert front.loc["test_resnet", "kind"] == "other"
    assert front.loc["test_resnet", "test_macs"] == front.loc["parent a", "test_macs"]
    assert "accuracy_minus_test_resnet" in front
    # the study file in the folder is what the report was made by
    kept = yaml.safe_load((finished / "study.yaml").read_text())
    assert kept["report"]["baselines"][0]["network"] == "test_resnet"


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(built: Path) -> None:
    Path("tiny.yaml").write_text(TINY.replace("trials: 12", "trials: 200"))
    command = [sys.executable, "-m", "optuna_stitch", "search", "tiny.yaml"]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while _finished_trials() < 9:
        assert killed.poll() is None, killed.stderr and killed.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = _finished_trials()
    assert 9 <= before < 200
    assert call("search", "tiny.yaml") == 0
    study = study_of()
    assert len(complete(study)) == 200
    assert not study.get_trials(states=(TrialState.RUNNING,))
    outputs = [trial.params["output"] for trial in study.trials[:3]]
    assert outputs == ["a", "b", "ensemble"]


def _finished_trials() -> int:
    try:
        with sqlite3.connect("file:runs/tiny/study.db?mode=ro", uri=True) as connection:
            query = "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'"
            return int(connection.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


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
        ["tiny.yaml:6", "unknown key `stitching.ponts`", "Did you mean `points`?"],
    ),
    "wrong value": (
        TINY.replace("points: blocks", "points: some"),
        ["tiny.yaml:6", "`stitching.points`", "'auto', 'all', 'dominators' or 'blocks'"],
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
        ["/no/such/folder does not exist", "cannot be opened"],
    ),
    "sampler of a hub without its class": (
        TINY.replace("name: nsga2", "name: samplers:linkage:Sampler"),
        ["no sampler 'samplers:linkage:Sampler'", "as hub:package:Class."],
    ),
    "a floor on what shall be small": (
        TINY.replace("study:", "study:\n  objectives: [macs, accuracy]\n  steering: {}"),
        ["`study.steering` is a floor on the first objective, and macs shall be small"],
    ),
    "front of a run that is not there": (
        TINY.replace("start: {", "start: {front_of: runs/none, "),
        ["runs/none is no run"],
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "runs/tiny", "--smoke"], "runs/tiny is the folder of a run. Name the study file"),
        (["report", "runs/tiny", "--run", "mine"], "Both runs/tiny and mine (`--run`) name a"),
        (["finish", "tiny.yaml", "--trial", "1", "--front"], "`--front`, not both"),
        (["search", "tiny.yaml", "--launch-option", "time=["], "'[' is no value"),
        (
            ["advise", "a", "b", "--data", "nowhere"],
            "no study file, run or folder of images at no",
        ),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/study.yaml").write_text(TINY)
    before = _tree()
    assert call(*arguments) == 2
    assert said in _text(capsys.readouterr().err)
    assert _tree() == before


@pytest.mark.parametrize("command", ["run", "report"])
def test_a_folder_of_another_study_file_is_left_alone(
    command: str, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(TINY.replace("points: blocks", "points: all"))
    before = _tree()
    assert call(command, "tiny.yaml") == 2
    message = _text(capsys.readouterr().err)
    assert "belongs to another study file" in message
    assert "stitching.points ('blocks' there, 'all' here)" in message
    assert _tree() == before


def test_a_mistake_can_be_mended_before_anything_is_built() -> None:
    text = TINY.replace("study:", "study:\n  storage: sqlite:////no/such/folder/s.db")
    Path("tiny.yaml").write_text(text)
    assert call("run", "tiny.yaml") == 2
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["study.yaml"]
    Path("tiny.yaml").write_text(TINY)
    assert call("build", "tiny.yaml") == 0
    assert "no/such/folder" not in Path("runs/tiny/study.yaml").read_text()


def test_a_folder_that_is_no_run_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    assert call("run", "tiny.yaml", "--run", "mine") == 2
    assert "it is no run" in _text(capsys.readouterr().err)
    assert call("report", "tiny.yaml", "--run", "mine") == 2
    assert "it is no run" in _text(capsys.readouterr().err)
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]
    assert call("search", "mine") == 2


@pytest.mark.slow
def test_a_study_file_is_tried_out_tiny(smoke_once: Path) -> None:
    """Pretrained weights and image folders that are not there need not be, with --smoke."""
    name = "test_resnet--test_efficientnet"
    asked = yaml.safe_load((smoke_once / f"{name}.yaml").read_text())
    assert asked["parents"]["a"]["pretrained"]
    assert not (smoke_once / asked["data"]["train"]["root"]).exists()
    folder = smoke_once / "runs" / f"{name}-smoke"
    assert {path.name for path in folder.iterdir()} >= PRODUCTS
    filled = yaml.safe_load((folder / "study.yaml").read_text())
    assert filled["parents"]["a"]["random_weights"]


STUDIES = [
    # the founding paper's pairs are large, and take longest
    pytest.param(path, marks=pytest.mark.sweep if path.stem.startswith("resnet") else ())
    for path in sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_file_runs_tiny(path: Path) -> None:
    assert call("run", str(path), "--smoke") == 0
    assert (Path("runs") / f"{path.stem}-smoke" / "front.png").is_file()


def test_in_a_shell_there_is_no_traceback() -> None:
    Path("tiny.yaml").write_text(TINY.replace("points:", "ponts:"))
    command = [sys.executable, "-X", "importtime", "-m", "optuna_stitch", "run", "tiny.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in imported
    assert imported.isdisjoint({"torch", "timm", "optuna"})  # they take seconds
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert said[0].startswith("Error: tiny.yaml:6: unknown key `stitching.ponts`")
    assert done.stdout == ""


@pytest.mark.slow
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
    asked = set(study_of("runs/kept", "kept").trials[0].params) - {"output", "threshold"}
    assert asked == set(table[table["kept"]]["switch"])

    Path("none.yaml").write_text(f"{TINY}keep: {{min_r2: 1}}\n")
    assert call("build", "none.yaml") == 2
    assert "`keep` drops all" in capsys.readouterr().err
    assert Path("runs/none/fit.csv").is_file()


@pytest.mark.slow
def test_tuning_is_part_of_a_study_file() -> None:
    Path("tuned.yaml").write_text(f"{TINY}tune: {{steps: 2, networks: 2, batch_size: 8}}\n")
    assert call("build", "tuned.yaml") == 0
    tuned = pd.read_csv("runs/tuned/tuning.csv")
    assert list(tuned["switch"]) == list(pd.read_csv("runs/tuned/fit.csv")["switch"])
    assert Path("runs/tuned/tuning.pt").is_file()


def test_figures_are_remembered_in_the_studys_database(finished: Path) -> None:
    with sqlite3.connect(finished / "study.db") as connection:
        rows = connection.execute("SELECT genotype, figures FROM optuna_stitch_evaluations")
        remembered = dict(rows.fetchall())
    assert {"a", "b", "ensemble"} <= set(remembered)
    parent = json.loads(remembered["a"])["figures"]["accuracy"]
    trials = study_of().trials
    assert parent == next(t for t in trials if t.params["output"] == "a").values[0]


@pytest.mark.slow
def test_latency_as_an_objective_bounds_and_races(built_once: Path) -> None:
    file = change_study_file(
        "tiny.yaml",
        study={"objectives": ["accuracy", "latency_ms"], "constraints": {"max_macs": 2e5}},
        evaluation={"racing": {"first": 20}, "batch_size": 10, "latency": {"threads": 1}},
    )
    copy_supernetwork(built_once, "runs/tiny", file)
    assert call("run", file) == 0
    measured = json.loads(Path("runs/tiny/latency.json").read_text())
    assert measured["threads"] == 1
    study = study_of()
    assert study.metric_names == ["accuracy", "latency_ms"]
    for trial in complete(study):
        assert 0 < trial.values[1] <= sum(measured["milliseconds"].values())
        (violation,) = trial.system_attrs["constraints"]
        assert violation > 0  # nothing is so small; only parents and ensemble were run
    assert study.best_trials == []
    table = pd.read_csv("runs/tiny/front.csv")
    assert {"test_accuracy", "test_latency_ms", "test_macs"} <= set(table)
