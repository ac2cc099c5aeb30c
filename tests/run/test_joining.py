"""Workers elsewhere, other samplers, other studies: what goes on from a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial

import optuna_stitch as st
from optuna_stitch.storage.open import open_storage
from tests.helpers.commands import call
from tests.helpers.runs import change_study_file, complete, copy_supernetwork

Build = Callable[..., str]


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def build(built_once: Path) -> Build:
    """Write a study file on a shared storage, whose run has been built like that of `TINY`."""

    def build(name: str = "shared", *, folder: str | None = None, **study: Any) -> str:
        shared = {
            "name": name,
            "storage": f"sqlite:///{Path.cwd()}/shared.db",
            "artifacts": f"{Path.cwd()}/store",
        }
        file = change_study_file(f"{name}.yaml", study=shared | study)
        if not Path(folder or f"runs/{name}").exists():
            copy_supernetwork(built_once, folder or f"runs/{name}", file)
        return file

    return build


def _study(storage: str = "sqlite:///shared.db", name: str = "shared") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(storage))


@pytest.mark.slow
def test_a_worker_elsewhere_fetches_the_supernetwork_and_joins(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    study_file = build(folder="here")
    assert call("search", study_file, "--run", "here", "--trials", "8", "--batch", "4") == 0
    before = Path("here/supernetwork.safetensors").read_bytes()
    assert call("search", study_file, "--run", "there", "--trials", "4") == 0
    assert Path("there/supernetwork.safetensors").read_bytes() == before
    assert not Path("there/fit.png").exists()  # it was not built there
    assert len(complete(_study())) == 12
    workers = {trial.user_attrs["worker"] for trial in complete(_study())}
    assert len(workers) == 2
    assert call("report", study_file, "--run", "there") == 0
    # who only reads fetches it too
    assert call("export", study_file, "--run", "reader", "--trial", "0", "--to", "out") == 0
    assert Path("reader/supernetwork.safetensors").read_bytes() == before
    assert st.Run.open("reader").study.study_name == "shared"
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


def test_another_sampler_goes_on_in_the_same_study(build: Build) -> None:
    assert call("search", build(), "--trials", "10") == 0
    changed = build(
        sampler={"name": "local_search"},
        steering={"share": 0.8, "over": 0.5},
        trials=16,
    )
    assert call("search", changed) == 0
    trials = complete(_study())
    assert len(trials) == 16
    assert sum("NSGAIISampler:generation" in trial.system_attrs for trial in trials) == 10


@pytest.mark.slow
def test_a_study_starts_from_the_front_of_another(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("search", build("first")) == 0
    front = _study(name="first").best_trials
    warm = {"population": 8, "front_of": "runs/first"}
    assert call("search", build("second", start=warm)) == 0
    assert "from another study's front" in " ".join(capsys.readouterr().err.split())
    supernetwork = st.Run.open("runs/second").supernetwork

    def networks(trials: list[FrozenTrial]) -> set[st.Subnetwork]:
        return {supernetwork.subnetwork(trial.params) for trial in trials}

    assert any(network.on for network in networks(front))
    begun = _study(name="second").trials[: 3 + len(front)]
    assert networks(front) <= networks(begun)
    nowhere = {"population": 8, "front_of": "runs/nowhere"}
    assert call("search", build("third", start=nowhere)) == 2
    assert "is no run" in capsys.readouterr().err
    build("fourth")
    unsearched = {"population": 8, "front_of": "runs/fourth"}
    assert call("search", build("fifth", start=unsearched)) == 2
    assert "runs/fourth has no study yet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_journal_beside_remembered_figures(build: Build) -> None:
    study_file = build(storage="journal:///{run}/study.journal")
    assert call("run", study_file) == 0
    assert Path("runs/shared/records.db").exists()
    assert len(complete(_study("journal:///runs/shared/study.journal"))) == 12


@pytest.mark.parametrize(
    "sampler",
    ["linkage", *(pytest.param(s, marks=pytest.mark.slow) for s in ("nsga2", "local_search"))],
)
@pytest.mark.slow
def test_the_same_seed_gives_the_same_sequence(build: Build, sampler: str) -> None:
    chosen = {"name": sampler} | ({"population_size": 6} if sampler == "nsga2" else {})
    found: list[list[dict[str, Any]]] = []
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        assert call("search", build(name, sampler=chosen, trials=36, seed=seed)) == 0
        found.append([trial.params for trial in complete(_study(name=name))])
        assert len(found[-1]) == 36
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("stage", "start"),
    [("run.create_study", {}), ("folder.load_study", {"front_of": "runs/shared"})],
)
def test_a_storage_that_fails_wherever_the_study_is_read(
    build: Build,
    stage: str,
    start: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        cause = sqlalchemy.exc.OperationalError("SELECT", {}, Exception("disk I/O error"))
        raise optuna.exceptions.StorageInternalError("something happened") from cause

    monkeypatch.setattr(f"optuna_stitch.run.{stage}", fail)
    assert call("run", build(start={"population": 8, **start})) == 2
    assert "disk I/O error" in capsys.readouterr().err


def test_a_sampler_from_optunahub(
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
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
    assert call("search", build(sampler=chosen)) == 0
    assert len(complete(_study())) == 12
    wrong = build("wrong", sampler={"name": "hub:samplers/linkage"})
    assert call("search", wrong) == 2
    assert ":LinkageSampler or :LocalSearchSampler" in capsys.readouterr().err
    nowhere = build("nowhere", sampler={"name": "hub:samplers/nowhere:X"})
    assert call("search", nowhere) == 2
    assert "'samplers/nowhere' cannot be loaded" in capsys.readouterr().err
