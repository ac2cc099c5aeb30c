from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from optuna_stitch.cli.results import compare as command
from optuna_stitch.report.comparison_page import FILES
from optuna_stitch.utils.errors import OptunaStitchError, RunError
from tests.helpers.searched import make_run, samplers


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def _call(*arguments: str) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    return result.output, result.exception


def test_the_command_leaves_a_page_images_and_a_table() -> None:
    samplers([0.97, 0.96, 0.98], [0.95, 0.94], on_disk=True)
    runs = ["linkage0", "linkage1", "linkage2", "nsga20", "nsga21"]
    out, error = _call(*runs)
    assert error is None, out
    assert "study.sampler.name=linkage (3 runs)" in out.replace("│", "").replace("\n", "")
    assert "These are figures on validation images" in out
    assert {path.name for path in Path("comparison").iterdir()} == set(FILES)
    page = Path("comparison/compare.html").read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in page for name in runs)
    assert 'src="http' not in page  # it needs no network
    assert "These are figures on validation images" in page
    frame = pd.read_csv("comparison/compare.csv")
    assert list(frame["run"]) == runs
    assert list(frame["seed"]) == [0, 1, 2, 0, 1]
    assert frame["share"].max() == pytest.approx(1)
    assert np.allclose(frame["reference_macs"], frame["reference_macs"][0])
    assert Path("comparison/compare.svg").read_text(encoding="utf-8").count("parent b") == 1
    assert Path("comparison/compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_only_an_earlier_comparison_is_written_over() -> None:
    make_run("run", on_disk=True)
    assert _call("run", "--to", "out")[1] is None
    assert _call("run", "--to", "out")[1] is None
    Path("out/compare.csv").write_text("mine\n1\n")
    error = _call("run", "--to", "out")[1]
    assert isinstance(error, RunError)
    assert "out/compare.html is there already" in str(error)
    assert Path("out/compare.csv").read_text() == "mine\n1\n"
    assert _call("run", "--to", "out", "--force")[1] is None
    assert Path("out/compare.csv").read_text().startswith("run,group,")


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (["run", "nowhere"], "nowhere is no run"),
        (["run", "./run"], "The run run is there twice"),
        (["run", "built"], "built has no study yet; run `optuna-stitch search built` first"),
    ],
)
def test_folders_that_are_no_searched_runs_are_refused(runs: list[str], said: str) -> None:
    make_run("run", on_disk=True)
    make_run("built", begin=False, on_disk=True)
    error = _call(*runs)[1]
    assert isinstance(error, OptunaStitchError)
    assert said in str(error)
    assert not Path("comparison").exists()


def test_a_run_that_was_never_searched_is_left_as_it_is() -> None:
    make_run("run", on_disk=True)
    make_run("new", begin=False)
    error = _call("run", "new")[1]
    assert isinstance(error, RunError)
    assert str(error).startswith("new has no study yet; run `optuna-stitch search new` first, or")
    assert [path.name for path in Path("new").iterdir()] == ["study.yaml"]


def test_journals_are_compared_as_databases_are() -> None:
    journal = {"study__storage": "journal:///{run}/study.journal"}
    make_run("one", on_disk=True, **journal)
    make_run("two", [(0.91, 3e6)], on_disk=True, study__seed=1)
    out, error = _call("one", "two")
    assert error is None, out
    assert list(pd.read_csv("comparison/compare.csv")["trials"]) == [5, 4]
