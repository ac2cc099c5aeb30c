"""What Markdown files say leads somewhere, and agrees with the code."""

from __future__ import annotations

import ast
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

import optuna_stitch as st
from optuna_stitch.cli.app import app
from optuna_stitch.run.schema import StudyFile

ROOT = Path(__file__).parents[1]
README, GUIDE = ROOT / "README.md", ROOT / "studies" / "README.md"
FIGURES = ROOT / "tests" / "benchmarks" / "README.md"

DOCUMENTS = sorted(
    path
    for folder, pattern in (
        (ROOT, "*.md"),
        *((ROOT / part, "**/*.md") for part in (".github", "optuna_stitch", "studies", "tests")),
    )
    for path in folder.glob(pattern)
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return _FENCE.sub("", path.read_text())


def blocks(path: Path, language: str) -> list[str]:
    """A document's blocks of code in a language."""
    return [text for kind, text in _FENCE.findall(path.read_text()) if kind == language]


def anchors(path: Path) -> set[str]:
    """What GitHub calls a document's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(path: Path) -> list[list[str]]:
    """Everything a document says to call, with `uv run` or without, word by word."""
    lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", prose(path))
    # several commands in a line are one after the other
    calls = [call.strip() for text in [*lines, *spans] for call in text.split("&&")]
    found = [
        shlex.split(call.removeprefix("uv run "), comments=True)
        for call in calls
        if call.startswith(("uv run ", "optuna-stitch "))
    ]
    return [words for words in found if words[0] in ("optuna-stitch", "pytest", "python")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(prose(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target} in {path}"
        assert there.is_relative_to(ROOT), f"{target} in {path}"
        if anchor:
            assert anchor in anchors(there), f"{target} in {path}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_those_of_the_command_line(path: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for program, *words in commands(path):
        files = [word for word in words if word.endswith((".py", ".yaml")) and "/" in word]
        if "--out" not in words:
            assert all((ROOT / file).is_file() for file in files), (program, words)
        options = [word for word in words if word.startswith("--")]
        if program == "python" and files:
            text = (ROOT / files[0]).read_text()
            if "arguments_of" in text:  # those that several benchmarks share
                text += (ROOT / "tests/benchmarks/pairs.py").read_text()
            assert all(f'"{option}"' in text for option in options), words
        if program == "optuna-stitch":
            command = known[words[0]]
            if words[0] == "latency":  # a group of commands
                command = command.commands[words[1]]
            own = {name for option in command.params for name in option.opts}
            own |= {name for option in command.params for name in option.secondary_opts}
            if words[0] == "pick":  # which takes bounds on any figure
                options = [name for name in options if name[:6] not in ("--max-", "--min-")]
            assert set(options) <= own, words


def test_commands_are_found() -> None:
    """The two that the README begins with, or the test above would test nothing."""
    assert {words[1] for words in commands(README) if words[0] == "optuna-stitch"} >= {
        "run",
        "export",
    }


@pytest.mark.parametrize("path", [GUIDE, README], ids=["guide", "readme"])
def test_study_files_are_valid(path: Path) -> None:
    one, two = (
        yaml.safe_load((ROOT / "studies" / name).read_text())
        for name in ("digits.yaml", "two_jobs.yaml")
    )
    for block in blocks(path, "yaml"):
        said = yaml.safe_load(block)
        whole = two if "a" in said.get("data", {}) else one
        StudyFile.model_validate({**whole, **said})


@pytest.mark.parametrize("path", [GUIDE, README], ids=["guide", "readme"])
def test_names_are_public(path: Path) -> None:
    for block in blocks(path, "python"):
        ast.parse(block)
    for name in re.findall(r"\bst\.([A-Za-z_]+)", path.read_text()):
        assert name in st.__all__, name


def test_new_names_of_the_changelog_exist() -> None:
    text = (ROOT / "CHANGELOG.md").read_text().partition("### Old names")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    for _, new in rows:
        for name in re.findall(r"`st\.([A-Za-z_]+)", new):
            assert name in st.__all__, name
        for path in re.findall(r"`(optuna_stitch\.[\w.]+)`", new):
            assert pkgutil.resolve_name(path), path


def test_the_guide_names_every_study_file_and_key() -> None:
    text = GUIDE.read_text()
    for file in (ROOT / "studies").glob("*.yaml"):
        assert f"({file.name})" in text, file
    for section in StudyFile.model_fields:
        assert section in text, section


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 170


def test_the_readme_shows_the_program() -> None:
    program = (ROOT / "studies" / "digits.py").read_text().split('"""\n\n', 1)[1]
    assert blocks(README, "python") == [program]


def test_every_figure_of_the_readme_is_measured() -> None:
    """Its table of results repeats figures of which the commands are in the other document."""
    section = README.read_text().partition("## What was measured")[2].partition("\n## ")[0]
    figures = FIGURES.read_text()
    rows = [line.split("|")[2:4] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 4
    for row in rows:
        for figure in re.findall(r"\d[\d,.]*", " ".join(row)):
            assert re.search(rf"(?<![\d.]){re.escape(figure.rstrip('.,'))}(?![\d])", figures), row
