"""Paths and texts as people have them: spaces, ``~``, other locales; what is printed of them."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import optuna_stitch as st
from optuna_stitch.run.report import export_command
from optuna_stitch.run.study_file import load_study_file
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call
from tests.helpers.runs import TINY

ODD = "my runs/it's {trial} [1]"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def _hint(err: str) -> list[str]:
    """The words of the command that an error proposes, as a shell would take them."""
    return shlex.split(" ".join(err.split()).split("`")[1])


def test_commands_that_are_proposed_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my study.yaml").write_text(TINY, encoding="utf-8")
    assert call("report", "my study.yaml", "--run", ODD) == 2
    wanted = ["optuna-stitch", "search", "my study.yaml", "--run", ODD]
    assert _hint(capsys.readouterr().err) == wanted
    st.Run.start("my study.yaml", ODD)
    assert call("export", ODD, "--trial", "0", "--to", "out") == 2
    assert _hint(capsys.readouterr().err) == ["optuna-stitch", "search", ODD]
    # of a report and of the dashboard's notes, which put the number in
    command = export_command(Path("my runs/it's [1]")).replace("{trial}", "7")
    wanted = ["export", "my runs/it's [1]", "--trial", "7", "--to", "trial-7"]
    assert shlex.split(command) == ["optuna-stitch", *wanted]


def test_study_files_are_utf_8_in_every_locale() -> None:
    text = TINY.replace("data: {", 'data: {root: "Größe/画像", ')
    files = {"mine.yaml": "utf-8", "of windows.yaml": "utf-8-sig"}
    for name, encoding in files.items():
        Path(name).write_text(f"# für später\n{text}", encoding=encoding)
    code = (
        "from optuna_stitch.run.study_file import dump_study_file, load_study_file; import sys; "
        "texts = [dump_study_file(load_study_file(name)) for name in sys.argv[1:]]; "
        "sys.stdout.buffer.write('---\\n'.join(texts).encode('utf-8'))"
    )
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONPATH": str(Path(st.__file__).parents[1]),
    }
    command = [sys.executable, "-c", code, *files]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    first, second = yaml.safe_load_all(done.stdout.decode("utf-8"))
    assert first == second
    assert Path(first["data"]["root"]).parts[-2:] == ("Größe", "画像")


def test_a_study_file_of_another_encoding_is_named() -> None:
    Path("mine.yaml").write_text(f"# für später\n{TINY}", encoding="latin-1")
    with pytest.raises(ConfigError, match=r"mine\.yaml is no text in UTF-8 \(at byte 3\)"):
        load_study_file("mine.yaml")


def test_the_users_folder_is_meant_wherever_a_path_is_given(tmp_path: Path) -> None:
    home = tmp_path / "home"
    content = yaml.safe_load(TINY)
    content["parents"] = {
        "a": {"network": "~/nets/a.pt2"},
        "b": {"network": "test_resnet", "checkpoint": "~/nets/b.safetensors"},
    }
    content["data"] = {"root": "~/images", "class_map": "~/classes.txt", "val": {"root": "~/val"}}
    content["study"]["start"] = {"front_of": "~/runs/other"}
    (home / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = load_study_file("~/mine.yaml")
    assert found.parents.a.network == str(home / "nets/a.pt2")
    assert found.parents.b.checkpoint == home / "nets/b.safetensors"
    assert (found.data.root, found.data.val.root) == (home / "images", home / "val")
    assert found.data.class_map == home / "classes.txt"
    assert found.study.start.front_of == home / "runs/other"


def test_the_users_folder_is_meant_on_the_command_line_and_in_stores(tmp_path: Path) -> None:
    home, content = tmp_path / "home", yaml.safe_load(TINY)
    content["study"] |= {"storage": "journal:///~/study.journal", "artifacts": "~/files"}
    (home / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    run = st.Run.start("~/mine.yaml", "~/runs/mine")
    assert run.folder == home / "runs/mine"
    _ = run.storage, run.artifact_store
    assert {path.name for path in home.iterdir()} == {
        "study.journal",
        "files",
        "runs",
        "mine.yaml",
    }
    assert st.Run.open("~/runs/mine").name == "mine"
    # a shell leaves ~ to the program where it stands behind an equals sign
    assert call("report", "~/mine.yaml", "--run=~/runs/mine") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_importing_the_command_line_does_not_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["elsewhere", "--no-such-option"])
    monkeypatch.delitem(sys.modules, "optuna_stitch.__main__", raising=False)
    assert importlib.import_module("optuna_stitch.__main__").main
