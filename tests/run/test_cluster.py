"""Files for clusters: what they call exists, and has what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import optuna_stitch as st
from optuna_stitch.cli.app import app
from optuna_stitch.run.study_file import load_study_file
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call
from tests.helpers.runs import TINY

CLUSTER = Path(__file__).parents[2] / "studies" / "cluster"

VARIABLE = "OPTUNA_STITCH_STORAGE"


def _read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def _services() -> dict[str, Any]:
    services: dict[str, Any] = _read("compose.yaml")["services"]
    return services


def _commands() -> Iterator[tuple[str, list[str], set[str]]]:
    """Every call of the command line, and the environment it has."""
    for name, service in _services().items():
        if name != "database":
            yield name, service["command"], set(service["environment"])
    for name in ("build.yaml", "search.yaml"):
        (container,) = _read(name)["spec"]["template"]["spec"]["containers"]
        yield name, container["args"], {variable["name"] for variable in container["env"]}


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [pytest.param(*rest, id=name) for name, *rest in _commands()],
)
def test_what_is_called_exists(arguments: list[str], environment: set[str]) -> None:
    group: Any = typer.main.get_command(app)
    context = group.make_context("optuna-stitch", list(arguments), resilient_parsing=True)
    name, command, rest = group.resolve_command(context, list(arguments))
    parsed = command.make_context(name, rest, parent=context)
    assert parsed.params["study"].name == "study.yaml"
    assert environment == {VARIABLE}


def test_services_wait_for_what_they_need() -> None:
    services = _services()
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
    for name in ("worker", "dashboard"):
        needed = services[name]["depends_on"]["build"]
        assert needed == {"condition": "service_completed_successfully"}
    mounted = _read("search.yaml")["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in mounted["volumes"]}
    assert {mount["name"] for mount in mounted["containers"][0]["volumeMounts"]} == volumes


def test_the_image_has_what_the_package_is_built_of() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    for name in copied:
        assert (CLUSTER.parents[1] / name).exists()
    kept = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert {name.removeprefix("!") for name in kept if name != "*"} == copied


def test_a_password_stays_in_the_environment(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = load_study_file(CLUSTER / "study.yaml").study.storage
    assert said == f"${{{VARIABLE}}}"
    Path("tiny.yaml").write_text(TINY.replace("study:\n", f"study:\n  storage: {said}\n"))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert call("build", "tiny.yaml") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"the environment has no {VARIABLE}: set it, as in `export {VARIABLE}=...`" in told
    with pytest.raises(ConfigError):
        _ = st.Run.start("tiny.yaml").storage
    open_storage("sqlite:///secret.db")
    monkeypatch.setenv(VARIABLE, "sqlite:///secret.db")
    run = st.Run.start("tiny.yaml")
    assert run.storage_url == "sqlite:///secret.db"
    assert run.storage.get_all_studies() == []
    assert "secret" not in Path("runs/tiny/study.yaml").read_text()
