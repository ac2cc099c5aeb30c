"""Workers elsewhere, other samplers, other studies: what goes on from a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import yaml
from optuna.trial import TrialState

import optuna_stitch as st
from optuna_stitch.run.run import Run
from optuna_stitch.storage.open import open_storage
from tests.cli.test_cli import TINY
from tests.helpers.commands import call


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def _write(file: str, **study: Any) -> str:
    wanted = yaml.safe_load(TINY)
    shared = {
        "name": "shared",
        "storage": f"sqlite:///{Path.cwd()}/shared.db",
        "artifacts": f"{Path.cwd()}/store",
    }
    wanted["study"] |= shared | study
    Path(file).write_text(yaml.safe_dump(wanted))
    return file


def _study(storage: str = "sqlite:///shared.db", name: str = "shared") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(storage))


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def test_a_worker_elsewhere_fetches_the_supernetwork_and_joins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study_file = _write("tiny.yaml")
    assert call("search", study_file, "--run", "here", "--trials", "8", "--batch", "4") == 0
    before = Path("here/supernetwork.safetensors").read_bytes()
    assert call("search", study_file, "--run", "there", "--trials", "4") == 0
    assert Path("there/supernetwork.safetensors").read_bytes() == before
    assert not Path("there/fit.png").exists()  # it was not built there
    assert len(_complete(_study())) == 12
    workers = {trial.user_attrs["worker"] for trial in _complete(_study())}
    assert len(workers) == 2
    assert call("report", study_file, "--run", "there") == 0
    capsys.readouterr()

    # a store in which somebody changed the weights
    files = _study().user_attrs["supernetwork_files"]
    stored = Path("store") / files["supernetwork.safetensors"]
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-4] + b"\x00\x00\x80\x3f")
    assert call("search", study_file, "--run", "elsewhere", "--trials", "1") == 2
    assert "is not the one that was saved" in capsys.readouterr().err
    stored.write_bytes(whole[:-1000])
    shutil.rmtree("elsewhere")
    assert call("search", study_file, "--run", "elsewhere", "--trials", "1") == 2
    assert "cannot be loaded" in capsys.readouterr().err

    # or put the supernetwork of another pair
    description = Path("store") / files["supernetwork.json"]
    stored.write_bytes(whole)
    other = json.loads(description.read_text())
    other["content"] = "0123456789abcdef"
    description.write_text(json.dumps(other))
    shutil.rmtree("elsewhere")
    assert call("search", study_file, "--run", "elsewhere", "--trials", "1") == 2
    assert "0123456789abcdef" in capsys.readouterr().err


def test_another_sampler_goes_on_in_the_same_study() -> None:
    assert call("search", _write("tiny.yaml"), "--trials", "10") == 0
    changed = _write(
        "tiny.yaml",
        sampler={"name": "local_search"},
        steering={"share": 0.8, "over": 0.5},
        trials=16,
    )
    assert call("search", changed) == 0
    trials = _complete(_study())
    assert len(trials) == 16
    assert sum("NSGAIISampler:generation" in trial.system_attrs for trial in trials) == 10


def test_a_study_starts_from_the_front_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("search", _write("first.yaml", name="first")) == 0
    front = _study(name="first").best_trials
    warm = {"population": 8, "front_of": "runs/first"}
    assert call("search", _write("second.yaml", name="second", start=warm)) == 0
    assert "from another study's front" in " ".join(capsys.readouterr().err.split())
    supernetwork = st.load_supernetwork("runs/second")

    def networks(trials: list[optuna.trial.FrozenTrial]) -> set[st.Genotype]:
        found = (supernetwork.genotype(trial.params) for trial in trials)
        return {supernetwork.canonical(genotype) for genotype in found}

    assert any(genotype.on for genotype in networks(front))
    begun = _study(name="second").trials[: 3 + len(front)]
    assert networks(front) <= networks(begun)
    nowhere = {"population": 8, "front_of": "runs/nowhere"}
    assert call("search", _write("third.yaml", name="third", start=nowhere)) == 2
    assert "is no run" in capsys.readouterr().err


def test_a_journal_beside_remembered_figures() -> None:
    study_file = _write("tiny.yaml", storage="journal:///{run}/study.journal")
    assert call("run", study_file) == 0
    assert Path("runs/tiny/records.db").exists()
    assert len(_complete(_study("journal:///runs/tiny/study.journal"))) == 12


def test_the_same_seed_gives_the_same_sequence() -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, sampler in (
        ("a", "linkage"),
        ("b", "linkage"),
        ("c", "nsga2"),
        ("d", "nsga2"),
        ("e", "local_search"),
        ("f", "local_search"),
    ):
        chosen = {"name": sampler} | ({"population_size": 6} if sampler == "nsga2" else {})
        study_file = _write("tiny.yaml", name=name, sampler=chosen, trials=24)
        if found:  # the same supernetwork
            shutil.copytree("runs/a", f"runs/{name}")
            Path(f"runs/{name}/study.yaml").unlink()
            shutil.copy(study_file, f"runs/{name}/study.yaml")
        assert call("search", study_file, "--run", f"runs/{name}") == 0
        found[name] = [trial.params for trial in _study(name=name).trials]
        assert len(found[name]) == 24
    assert found["a"] == found["b"]
    assert found["c"] == found["d"]
    assert found["e"] == found["f"]
    assert found["a"] != found["c"] != found["e"]


@pytest.mark.parametrize("stage", ["_study", "_joins"])
def test_a_storage_that_fails_wherever_the_study_is_read(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        cause = sqlalchemy.exc.OperationalError("SELECT", {}, Exception("disk I/O error"))
        raise optuna.exceptions.StorageInternalError("something happened") from cause

    monkeypatch.setattr(Run, stage, fail)
    assert call("run", _write("tiny.yaml")) == 2
    assert "disk I/O error" in capsys.readouterr().err


def test_a_sampler_from_optunahub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Our own package, as the hub would serve it."""
    import optunahub

    import optuna_stitch.search.samplers.linkage as linkage

    package = tmp_path / "registry" / "package" / "samplers" / "linkage"
    shutil.copytree(Path(linkage.__file__).parent, package)

    def load(name: str) -> Any:
        return optunahub.load_local_module(name, registry_root=str(tmp_path / "registry/package"))

    monkeypatch.setattr(optunahub, "load_module", load)
    chosen = {"name": "hub:samplers/linkage:LinkageSampler", "population_size": 8}
    assert call("search", _write("tiny.yaml", sampler=chosen)) == 0
    assert len(_complete(_study())) == 12
    wrong = _write("wrong.yaml", name="x", sampler={"name": "hub:samplers/linkage"})
    assert call("search", wrong) == 2
    assert ":LinkageSampler or :LocalSearchSampler" in capsys.readouterr().err
    nowhere = _write("wrong.yaml", name="x", sampler={"name": "hub:samplers/nowhere:X"})
    assert call("search", nowhere) == 2
    assert "'samplers/nowhere' cannot be loaded" in capsys.readouterr().err
