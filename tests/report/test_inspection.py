from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.models.graph import NetworkGraph
from optuna_stitch.report import inspection
from optuna_stitch.report.inspection import (
    Surveyed,
    describe,
    excluded_table,
    families_table,
    matches_table,
    stitches_of,
    survey,
    survey_tables,
    write_survey,
)
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.stitching.matching import match


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.fixture(scope="module")
def graphs() -> dict[str, NetworkGraph]:
    return {"a": st.load_parent("test_resnet").graph(), "b": st.load_parent("test_vit").graph()}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Surveyed]:
    """A network that is captured, one that branches on its input, one that cannot be made."""

    def load(name: str) -> st.Parent:
        if name == "branching":
            return st.load_parent(_Branching(), view=st.View((3, 8, 8)), name=name)
        if name == "broken":
            raise RuntimeError("no such kernel\nand more")
        return st.load_parent(name)

    monkeypatch.setattr(inspection, "load_parent", load)
    return survey(["test_vit", "branching", "broken"])


def _lines(*tables: Table, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(*tables)
    return [line for line in capture.get().splitlines() if line.strip()]


def test_a_survey_says_what_a_network_is_or_why_not(
    found: list[Surveyed], graphs: dict[str, NetworkGraph]
) -> None:
    captured, branching, broken = found
    graph = graphs["b"]
    assert captured.name == "test_vit"
    assert (captured.macs, captured.parameters) == (graph.macs, graph.parameters)
    assert captured.input_shape == "3×160×160"
    assert captured.layouts == "NLC NCHW"
    assert captured.points == len(graph.points) > captured.dominators > captured.blocks == 6
    assert captured.captured_by == graph.captured_by
    assert captured.reason == ""
    assert branching.reason.startswith("cannot be captured")
    assert broken.reason == "cannot be made: RuntimeError: no such kernel"


def test_a_survey_on_the_screen_and_as_csv(found: list[Surveyed], tmp_path: Path) -> None:
    tables = survey_tables(found)
    assert [table.row_count for table in tables] == [1, 2]
    lines = _lines(*tables)
    assert any("test_vit" in line and "37.6" in line and "/6" in line for line in lines)
    assert any("broken" in line and "cannot be made" in line for line in lines)
    write_survey(found, tmp_path / "zoo.csv")
    read = pd.read_csv(tmp_path / "zoo.csv").set_index("name")
    assert read.loc["test_vit", "macs"] == found[0].macs
    assert read.loc[["branching", "broken"], "macs"].isna().all()
    assert read["reason"].notna().tolist() == [False, True, True]


def test_figures_are_never_cropped_in_80_columns() -> None:
    name = "a_network_with_a_name_of_fifty_characters_or_so_384"
    wide = Surveyed(name, 10**9, 10**11, "3×1024×1024", "NHWC NLC NCHW NC", 999, 99, 99, "export")
    text = "".join(_lines(*survey_tables([wide])))
    for figure in ("1,000.0", "100,000.0", "3×1024×1024", "999/99/99", "export"):
        assert figure in text


def test_matches_are_listed_with_what_both_stitches_cost(graphs: dict[str, NetworkGraph]) -> None:
    matches = match(graphs["a"], graphs["b"], points="blocks")
    lines = _lines(matches_table(matches))
    assert len(lines) == 2 + 2 * len(matches)
    # a convolution of 32 × 64 channels on the 10 × 10 positions both have, and a class token
    assert lines[2].split() == [
        *("1", "a", "layer1.0", "NCHW", "32×40×40", "0.32", "a", "→", "b", "0.207"),
        f"{2 * 64 * 32 + 2 * 64:,}",
    ]
    assert lines[3].split()[-1] == f"{32 * 64 + 32:,}"
    for pair in matches:
        into_b, into_a = stitches_of(pair)
        assert into_b.macs == Stitch(pair.a.layout, pair.b.layout).macs
        assert into_a.macs == Stitch(pair.b.layout, pair.a.layout).macs
        assert into_b.weight.is_meta


def test_excluded_values_are_counted_or_listed(graphs: dict[str, NetworkGraph]) -> None:
    counted = _lines(excluded_table(graphs))
    assert sum(int(line.split()[1]) for line in counted[2:]) == sum(
        len(graph.excluded) for graph in graphs.values()
    )
    assert sum("is what the network returns" in line for line in counted) == 2
    every = "\n".join(_lines(excluded_table(graphs, every=True), width=200))
    for graph in graphs.values():
        for name, reason in graph.excluded.items():
            assert name in every
            assert reason in every


def test_a_network_in_one_line(graphs: dict[str, NetworkGraph]) -> None:
    text = describe(graphs["a"])
    for part in ("test_resnet: 102.5 M MACs", "469,688 parameters", "1000 classes", "3×160×160"):
        assert part in text


def test_families_are_told_by_the_beginnings_of_their_names() -> None:
    families = {
        "resnet": ["resnet18", "resnet50d", "seresnet50", "test_resnet"],
        "vovnet": ["vovnet39a"],
        "torchvision/": ["torchvision/efficientnet_v2_s"],
    }
    lines = _lines(families_table(families))
    assert lines[2].split() == ["resnet", "4", "resnet", "seresnet", "test"]
    assert lines[3].split() == ["vovnet", "1", "vovnet"]
    assert lines[4].split() == ["torchvision/", "1", "efficientnet"]
