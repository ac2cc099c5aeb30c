from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest
import timm

from tests.helpers.commands import call


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.slow
def test_zoo_lists_what_a_pattern_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("zoo", "test_vit*", "--csv", "zoo.csv") == 0
    out = capsys.readouterr().out
    names = timm.list_models("test_vit*")
    assert list(pd.read_csv("zoo.csv")["name"]) == names
    for name in names:
        assert name in out
    assert "NLC" in out


def test_zoo_without_a_pattern_lists_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("zoo") == 0
    out = capsys.readouterr().out
    for part in (*timm.list_modules(), "torchvision/", "optuna-stitch zoo '*vit_tiny*'"):
        assert part in out
    assert call("zoo", "--csv", "zoo.csv") == 2
    assert "--csv needs a pattern" in capsys.readouterr().err
    assert not Path("zoo.csv").exists()


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("resnot50*", "Did you mean resnet50"),
        ("torchvision/resnot*", "Did you mean torchvision/resnet"),
        ("vit_tiny", f"'*vit_tiny*' matches {len(timm.list_models('*vit_tiny*'))}"),
        ("torchvision/vit", "'torchvision/*vit*' matches 6"),  # maxvit_t is one of them
        ("qqqqqqqqqq", "`optuna-stitch zoo` lists"),
    ],
)
def test_a_pattern_that_matches_nothing(
    pattern: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("zoo", pattern) == 2
    captured = capsys.readouterr()
    assert f"No network's name matches '{pattern}'. {hint}" in captured.err
    assert captured.out == ""


def test_inspect_shows_a_pair_and_draws_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", "test_resnet", "test_vit", "--points", "blocks") == 0
    out = capsys.readouterr().out
    for part in ("layer4.0", "blocks.5", "a → b", "102.5 M MACs", "test_resnet--test_vit.svg"):
        assert part in out
    assert "blocks.3.attn.scaled" not in out
    ET.parse("test_resnet--test_vit.svg")


def test_the_options_of_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--points", "all", "--no-resize", "--svg", "pair.svg", "--excluded"]
    assert call("inspect", "test_resnet", "test_resnet", *options) == 0
    out = capsys.readouterr().out
    assert "51 matches; the picture is pair.svg" in out  # each point with itself
    assert " x " in out
    assert [path.name for path in Path().iterdir()] == ["pair.svg"]
    root = ET.parse("pair.svg").getroot()
    assert (root.findtext("{http://www.w3.org/2000/svg}title") or "").endswith(
        "among their points"
    )


def test_a_network_of_another_zoo_is_drawn_into_the_current_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("inspect", "torchvision/resnet18", "test_resnet", "--points", "blocks") == 0
    assert [path.name for path in Path().iterdir()] == ["torchvision-resnet18--test_resnet.svg"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["test_resnet", "test_resnot"], "'test_resnot'"),
        (["test_resnet", "test_vit", "--svg", "no/such/folder.svg"], "No such file"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("inspect", *arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert not list(Path().iterdir())
