"""What one sitting teaches: the demo, and the notebooks, from end to end with small budgets."""

from __future__ import annotations

import re
import webbrowser
from pathlib import Path

import pytest
import yaml

from optuna_stitch.run import demo
from tests.helpers.commands import call
from tests.helpers.runs import TINY

STUDIES = Path(__file__).parents[2] / "studies"
NOTEBOOKS = sorted(STUDIES.glob("*.ipynb"))

# In place of what the notebooks ask for.
SMALL = {"EPOCHS": "4", "TRIALS": "12"}


@pytest.mark.slow
def test_the_demo_runs_once_and_opens_its_page(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "digits.yaml").write_text(TINY)
    monkeypatch.setattr(demo, "_PLACES", (workplace,))
    monkeypatch.setenv("OPTUNA_STITCH_CACHE", str(workplace / "cache"))
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert call("demo", "--no-browser") == 0
    assert not opened
    assert "Open in a browser" in capsys.readouterr().out
    (page,) = (workplace / "cache" / "demo").rglob("front.html")
    made = page.stat().st_mtime_ns
    assert call("demo") == 0
    assert opened == [page.resolve().as_uri()]
    assert page.stat().st_mtime_ns == made  # it was not made again


def test_the_study_of_the_demo_is_there() -> None:
    found = [place / "digits.yaml" for place in demo._PLACES]
    assert any(path.is_file() for path in found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_output(path: Path) -> None:
    cells = yaml.safe_load(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: uv sync")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: uv sync")
    notebook = nbformat.read(path, as_version=4)
    (given,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for name, value in SMALL.items():
        given.source, count = re.subn(
            rf"^{name} = \d+", f"{name} = {value}", given.source, flags=re.M
        )
        assert count == 1
    resources = {"metadata": {"path": str(tmp_path)}}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside
    client = nbclient.NotebookClient(
        notebook, timeout=None, startup_timeout=240, resources=resources
    )
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(str(output.get("text", "")) for output in shown)
    assert "worth a study" in text
    assert any("<svg" in output.get("data", {}).get("text/html", "") for output in shown)
