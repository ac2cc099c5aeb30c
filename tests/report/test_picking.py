"""Picking a network of a front by what it must keep to."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import optuna_stitch as st
from optuna_stitch.report.picking import pick
from optuna_stitch.utils.errors import ConfigError, StudyError
from tests.helpers.commands import call


def _row(name: str, accuracy: float, macs: float, **others: object) -> dict[str, object]:
    return {
        "name": name,
        "trial": int(name.split()[1]) if name.startswith("trial") else None,
        "on_front": True,
        "on_fixed_front": True,
        "test_accuracy": accuracy,
        "test_accuracy_low": accuracy - 0.01,
        "test_accuracy_high": accuracy + 0.01,
        "test_macs": macs,
        "worst_macs": macs,
        "share": None,
        "parameters": 1000,
        "output": "a",
        "stitches": "",
        **others,
    }


CASCADE = {"on_fixed_front": False, "worst_macs": 9e6, "share": 0.25, "output": "a then both"}

TABLE = pd.DataFrame(
    [
        _row("parent a", 0.90, 1e6),
        _row("parent b", 0.95, 8e6),
        _row("trial 1", 0.80, 0.5e6),
        _row("trial 2", 0.94, 2e6, **CASCADE),
        _row("trial 3", 0.91, 3e6, on_front=False),
        _row("trial 4", 0.99, 4e6, on_front=False, on_fixed_front=False),
    ]
)


@pytest.mark.parametrize(
    ("bounds", "options", "picked"),
    [
        ({}, {}, "parent b"),
        ({"max_macs": 3e6}, {}, "trial 2"),
        ({"max_macs": 2e6 - 1}, {}, "parent a"),
        ({"max_macs": 3e6}, {"fixed_cost": True}, "trial 3"),
        ({"max_worst_macs": 3e6}, {}, "trial 3"),
        ({"min_accuracy": 0.9}, {}, "parent a"),
        ({"min_accuracy": 0.92}, {}, "trial 2"),
        ({"min_accuracy": 0.9, "max_macs": 9e6}, {}, "parent b"),
        # 0.94 is 14/15 of the way up at a fifth of the way to the dearest
        ({}, {"knee": True}, "trial 2"),
        ({}, {"knee": True, "fixed_cost": True}, "parent a"),
        ({"max_macs": 1e6}, {"knee": True}, "trial 1"),
    ],
)
def test_what_is_picked(bounds: dict[str, float], options: dict[str, bool], picked: str) -> None:
    found = pick(TABLE, bounds, **options)
    assert found.name == picked
    assert found.trial == (int(picked.split()[1]) if picked.startswith("trial") else None)


def test_it_says_why_and_what_the_next_ones_would_give() -> None:
    assert str(pick(TABLE, {"max_macs": 3e6})).splitlines() == [
        "trial 2 has the highest accuracy of the 4 networks on the front with at most 3 M MACs.",
        "On the test images: 94.00% accuracy (93.00 to 95.00), 2 M MACs on average, "
        "9 M MACs at worst, 25% of the images go on, 1,000 parameters.",
        "Output a then both.",
        "Next cheaper: parent a, 4.0 points less accuracy for 50% fewer multiply-accumulates.",
        "Next better: parent b, 1.0 points more accuracy for 300% more multiply-accumulates, "
        "beyond the bounds.",
    ]
    alone = pick(TABLE, {"min_accuracy": 0.95})
    assert alone.reason == (
        "parent b is the only network on the front with at least 95.00% accuracy."
    )


def test_a_budget_that_nothing_meets_names_what_comes_nearest() -> None:
    with pytest.raises(StudyError) as told:
        pick(TABLE, {"max_macs": 4e5, "min_accuracy": 0.7})
    assert str(told.value) == (
        "None of the 5 networks on the front has at most 0.4 M MACs and at least 70.00% "
        "accuracy. Nearest comes trial 1, with 0.5 M MACs and 80.00% accuracy."
    )


def test_what_was_not_measured_keeps_to_no_bound() -> None:
    table = TABLE.assign(test_latency_ms=[1.0, None, None, None, None, None])
    assert pick(table, {"max_latency_ms": 2.0}).name == "parent a"


@pytest.mark.parametrize("name", ["max_flops", "macs", "most_macs", "max_accuracy_low"])
def test_bounds_on_what_the_report_does_not_have(name: str) -> None:
    with pytest.raises(ConfigError, match=f"no bound '{name}'.* accuracy, macs, worst_macs"):
        pick(TABLE, {name: 1.0})


def test_percent_in_place_of_a_share() -> None:
    with pytest.raises(ConfigError, match=r"min_accuracy is a share of 1, not 98: 0\.98 is 98%"):
        pick(TABLE, {"min_accuracy": 98})


def test_a_front_and_its_table_as_a_file(front: st.Front, tmp_path: Path) -> None:
    front.table().to_csv(tmp_path / "front.csv", index=False)
    bound = front.baselines[1].test["macs"]
    picked = front.pick(max_macs=bound)
    assert picked.row["test_accuracy"] == max(
        e.quality for e in front.entries if e.on_a_front and e.test["macs"] <= bound
    )
    assert str(pick(pd.read_csv(tmp_path / "front.csv"), {"max_macs": bound})) == str(picked)


@pytest.mark.usefixtures("workplace")
def test_the_command(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pick", str(finished), "--min-accuracy", "0.01", "--max-macs=1e9") == 0
    said = capsys.readouterr().out
    assert "with at least 1.00% accuracy and at most 1,000 M MACs." in said
    number = st.Run.open(finished).pick(min_accuracy=0.01, max_macs=1e9).trial
    assert f"export {finished} --trial {number} --to trial-{number}" in said
    assert call("pick", str(finished), "--max-macs", "1") == 2
    assert "Nearest comes" in capsys.readouterr().err
    for wrong in (["--maximum", "1"], ["--max-macs"], ["--max-macs", "few"]):
        assert call("pick", str(finished), *wrong) == 2
    said = capsys.readouterr().err
    assert "no option --maximum" in said
    assert "needs a number, not nothing" in said
    assert "needs a number, not few" in said
    for broken in ("", "name\ntrial 1\n"):
        (finished / "front.csv").write_text(broken)
        assert call("pick", str(finished), "--knee") == 2
        assert "is no table of a report" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_without_a_report(built_once: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pick", str(built_once), "--knee") == 2
    assert "no report to pick from yet. Make it by: optuna-stitch report" in " ".join(
        capsys.readouterr().err.split()
    )
