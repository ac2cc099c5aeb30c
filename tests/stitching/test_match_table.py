from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from torch import nn

import optuna_stitch as st

STRANGE = "<i>a & b</i>"


class _Tall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a_name_that_is_longer_than_pandas_would_show_in_a_column = nn.Conv2d(3, 4, 3)
        self.layers = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(80)))
        self.head = nn.Linear(4, 10)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = self.a_name_that_is_longer_than_pandas_would_show_in_a_column(x)
        return self.head(self.layers(x).mean((2, 3)))


@pytest.fixture(scope="module")
def tall() -> st.Supernetwork:
    view = st.View((3, 8, 8))
    return st.stitch(*(st.load_parent(_Tall(), view=view, name=STRANGE) for _ in range(2)))


def test_a_row_for_each_match_with_what_its_stitches_cost(unfitted: st.Supernetwork) -> None:
    table = unfitted.match_table()
    assert table.index.tolist() == list(range(1, len(unfitted.matches) + 1))
    for row, match in zip(table.itertuples(), unfitted.matches, strict=True):
        assert (row.point_a, row.layout_a) == (match.a.name, str(match.a.layout))
        assert (row.point_b, row.layout_b) == (match.b.name, str(match.b.layout))
    macs = table[["macs_into_b", "macs_into_a"]].to_numpy().flatten().tolist()
    assert macs == [stitch.macs for stitch in unfitted.stitches]


def test_stitches_that_are_not_kept_are_missing(unfitted: st.Supernetwork) -> None:
    kept = unfitted.keep([2, 7, 8, 9])
    table = kept.match_table()
    assert table["macs_into_b"].isna().tolist() == [False, True, False]
    assert table["macs_into_a"].isna().tolist() == [True, False, False]
    assert table["macs_into_a"].sum() == kept.stitches[1].macs + kept.stitches[3].macs
    shown = kept._repr_html_()
    assert "3 matches, 4 stitches" in shown
    assert shown.count("<td>–</td>") == 2


def test_notebooks_show_every_match_in_full(tall: st.Supernetwork) -> None:
    shown = tall._repr_html_()
    read = ET.fromstring(shown[shown.index("<table") : shown.index("</table>") + 8])
    heads = [cell.text for cell in read.iter("th")]
    rows = [[cell.text or "" for cell in row] for row in read.findall("tbody/tr")]
    columns = dict(zip(heads, zip(*rows, strict=True), strict=True))
    table = tall.match_table()
    assert len(table) > 80
    assert columns["match"] == tuple(map(str, table.index))
    assert columns["point in a"] == tuple(table["point_a"])
    assert columns["layout in b"] == tuple(table["layout_b"])
    assert max(map(len, columns["point in b"])) > 50
    assert columns["a → b, M MACs"] == tuple(f"{macs / 1e6:.3f}" for macs in table["macs_into_b"])
    assert "overflow: auto" in shown


def test_names_are_escaped(tall: st.Supernetwork) -> None:
    shown = tall._repr_html_()
    assert "<i>" not in shown
    assert "&lt;i&gt;a &amp; b&lt;/i&gt; × &lt;i&gt;" in shown
