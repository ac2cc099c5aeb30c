"""The samplers' folder is a package of OptunaHub, as its registry wants it."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import optuna
import pytest
import yaml

from optuna_stitch.search.samplers import linkage

FOLDER = Path(linkage.__file__).parent


def test_its_readme_has_the_registrys_front_matter() -> None:
    _, front_matter, text = (FOLDER / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front_matter)
    assert set(said) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    for name in ("author", "title", "description", "license"):
        assert isinstance(said[name], str)
    for name in ("tags", "optuna_versions"):
        assert all(isinstance(one, str) for one in said[name])
    assert "sampler" in said["tags"]
    assert said["license"] == "MIT License"
    for section in ("Abstract", "APIs", "Installation", "Example"):
        assert f"## {section}\n" in text
    for name in linkage.__all__:
        assert f"`{name}(" in text
    assert "<COPYRIGHT HOLDER>" not in (FOLDER / "LICENSE").read_text()


def test_it_needs_nothing_of_this_package() -> None:
    for path in FOLDER.glob("*.py"):
        assert "optuna_stitch" not in path.read_text(), path


@pytest.mark.slow
def test_it_loads_from_a_registry_and_its_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optunahub = pytest.importorskip("optunahub", reason="needs optunahub: the extra [hub]")
    root = tmp_path / "package"
    shutil.copytree(FOLDER, root / "samplers" / "linkage")
    module = optunahub.load_local_module("samplers/linkage", registry_root=str(root))
    example = runpy.run_path(str(root / "samplers" / "linkage" / "example.py"))
    for name in module.__all__:
        sampler = getattr(module, name)(seed=0)
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        study.optimize(example["objective"], n_trials=40)
        assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 40
