"""A small run, built and searched once for all tests that look at one or go on from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

import optuna_stitch as st
from optuna_stitch.run.study_file import dump_study_file, load_study_file
from optuna_stitch.storage.open import rdb_of
from tests.helpers.commands import call

# Parent b sees images as parent a does, so that every network takes one input.
TINY = """\
parents:
  a: {network: test_resnet, input_size: 32, train: {epochs: 1}}
  b: {network: test_efficientnet, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
      interpolation: bilinear, input_size: 32, train: {epochs: 1}}
data: {train: {images: 100}, val: {images: 50}}
stitching: {points: blocks}
study:
  trials: 12
  batch: 4
  sampler: {name: nsga2, population_size: 8}
  start: {population: 8}
"""


def write_study(folder: Path, text: str, **changes: object) -> Path:
    """Write ``tiny.yaml``, a study file, with changes to its sections; where it is."""
    content = yaml.safe_load(text)
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value}  # type: ignore[dict-item]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# What a run leaves in its folder.
PRODUCTS = {
    "artifacts",
    "classes.csv",
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


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with the study file of a small run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("tiny.yaml").write_text(TINY)
    return tmp_path


def _once(shared: Path, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made once for all workers of the session."""
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            unfinished = shared / f"{name}.part"
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def built_once(cache: Path, shared: Path) -> Path:
    """The folder of a run of `TINY` that was built, not searched; to be copied."""

    def make(folder: Path) -> None:
        folder.mkdir()
        file = folder / "tiny.yaml"
        file.write_text(TINY)
        run = st.Run.start(file, folder / "tiny")  # whose name is the study's
        run.build()
        _close(run)

    return _once(shared, "built", make) / "tiny"


@pytest.fixture(scope="session")
def finished_once(built_once: Path, shared: Path) -> Path:
    """The folder of a run of `TINY` that was searched and reported on; to be copied."""

    def make(folder: Path) -> None:
        place = folder / "tiny"
        shutil.copytree(built_once, place)
        run = st.Run.open(place)
        run.search()
        run.report()
        _close(run)

    return _once(shared, "finished", make) / "tiny"


@pytest.fixture(scope="session")
def smoke_once(cache: Path, shared: Path) -> Path:
    """The folder of a study file as `init` writes it, and of its run with ``--smoke``."""

    def make(folder: Path) -> None:
        folder.mkdir()
        before = Path.cwd()
        os.chdir(folder)
        try:
            assert call("init", "test_resnet", "test_efficientnet") == 0
            assert call("run", "test_resnet--test_efficientnet.yaml", "--smoke") == 0
        finally:
            os.chdir(before)

    return _once(shared, "smoke", make)


def _close(run: st.Run) -> None:
    """Leave no journal of the database behind."""
    rdb = rdb_of(run.storage)
    assert rdb is not None
    rdb.engine.dispose()


@pytest.fixture
def built(workplace: Path, built_once: Path) -> Path:
    """A copy of the run that was built, in the usual place of ``tiny.yaml``."""
    return Path(shutil.copytree(built_once, Path("runs/tiny")))


@pytest.fixture
def finished(workplace: Path, finished_once: Path) -> Path:
    """A copy of the run that was searched and reported on."""
    return Path(shutil.copytree(finished_once, Path("runs/tiny")))


def change_study_file(file: str, **sections: Any) -> str:
    """Write a study file that differs from `TINY`.

    Args:
        file: Its path.
        sections: What differs, by section; keys of ``study`` are added to those of `TINY`.

    Returns:
        The path.
    """
    wanted = yaml.safe_load(TINY)
    sections["study"] = wanted["study"] | sections.get("study", {})
    Path(file).write_text(yaml.safe_dump(wanted | sections))
    return file


def copy_supernetwork(built_once: Path, folder: str, study_file: str) -> None:
    """Make the run of a study file that asks for the same supernetwork as `TINY`, built.

    Args:
        built_once: The run that was built.
        folder: Of the new run.
        study_file: Its study file.
    """
    Path(folder).mkdir(parents=True)
    for name in ("fit.csv", "supernetwork.json", "supernetwork.safetensors"):
        shutil.copy(built_once / name, folder)
    text = dump_study_file(load_study_file(study_file))  # with absolute paths
    (Path(folder) / "study.yaml").write_text(text)


def study_of(folder: str | Path = "runs/tiny", name: str | None = "tiny") -> optuna.Study:
    """The study in the database of a run."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/study.db")


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are complete."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
