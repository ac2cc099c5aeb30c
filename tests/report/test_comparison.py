from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from optuna_stitch.report.comparison import Comparison
from optuna_stitch.report.comparison_page import data_frame, rich_table, sentences
from optuna_stitch.report.comparison_plots import draw_comparison
from optuna_stitch.run.compare import compare_runs
from tests.helpers.searched import climb, make_run, samplers, seeds


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def _shares(comparison: Comparison) -> dict[str, float]:
    return {run.name: float(run.shares[-1]) for run in comparison.results}


def test_hypervolumes_have_one_reference_and_one_front() -> None:
    good = make_run("good", [(0.94, 3e6), (0.96, 5e6)])
    poor = make_run("poor", [(0.92, 3e6), (0.5, 1e6)])  # one of no use to anybody
    comparison = compare_runs([good, poor])
    # (0.90, 2), (0.94, 3) and (0.96, 5) are the front; the reference is a tenth beyond
    assert comparison.reference == pytest.approx([0.894, 5.3e6])
    whole = 0.066 * 0.3 + 0.046 * 2 + 0.006 * 1
    assert _shares(comparison)["good"] == pytest.approx(1)
    # parent a, then 0.92 at 3 M, then parent b at 4 M
    found = 0.006 * 1 + 0.026 * 1 + 0.046 * 1.3 + 0.01 * 0
    assert _shares(comparison)["poor"] == pytest.approx(found / whole)
    assert [len(run.outcomes.front) for run in comparison.results] == [3, 5]
    assert comparison.trials == 5


def test_all_are_compared_after_as_many_trials_as_the_shortest_has() -> None:
    long = make_run("long", [*climb(0.95, 6), None, (0.99, 2e6)])
    short = make_run("short", [*climb(0.95, 3), None, None])
    comparison = compare_runs([long, short])
    assert comparison.trials == 6  # of 10 and 6, failed ones left out
    lengths = {run.name: run.trials for run in comparison.results}
    assert lengths == {"long": 10, "short": 6}
    needed = [run.needed(0.95) for run in comparison.results]
    assert needed == [10, math.inf]
    group = comparison.groups[0]
    assert group.needed(0.95, comparison.trials) == [math.inf, math.inf]
    assert (
        "All are compared after 6 trials, which the shortest run has." in sentences(comparison)[-2]
    )
    frame = data_frame(comparison).set_index("run")
    assert frame.loc["long", "share_after_all_trials"] == pytest.approx(1)
    assert frame.loc["long", "share"] < 0.9
    assert frame.loc["long", "trials_to_95%"] == 10
    assert pd.isna(frame.loc["short", "trials_to_95%"])


def test_groups_with_enough_seeds_are_tested() -> None:
    clear = compare_runs(samplers([0.97, 0.971, 0.972, 0.973], [0.95, 0.951, 0.952, 0.953]))
    (difference,) = clear.differences
    assert difference.p_value == pytest.approx(2 / 70)
    assert difference.least == pytest.approx(2 / 70)
    said = sentences(clear)[0]
    assert said.startswith(
        "After 15 trials study.sampler.name=linkage has found more than study.sampler.name=nsga2: "
    )
    assert said.endswith("p = 0.029 (Mann-Whitney U).")


def test_seeds_that_are_too_few_tell_nothing() -> None:
    runs = samplers([0.97, 0.971, 0.972], [0.95, 0.951, 0.952], [0.93, 0.94])
    comparison = compare_runs(runs)
    (difference,) = comparison.differences
    assert difference.p_value == difference.least == pytest.approx(0.1)
    said = sentences(comparison)
    assert "p = 0.1" in said[0]
    assert said[1] == "With so few runs even the clearest difference would have p = 0.1."
    assert said[2].startswith("Not tested: study.sampler.name=random. ")


def test_equal_runs_are_not_told_apart() -> None:
    runs = samplers([0.97] * 4, [0.97] * 4)
    comparison = compare_runs(runs)
    assert [difference.p_value for difference in comparison.differences] == [1.0]


def test_p_values_hold_for_all_pairs_together() -> None:
    ends = [[0.97, 0.971, 0.972, 0.973], [0.96, 0.961, 0.962, 0.963], [0.95, 0.951, 0.952, 0.953]]
    comparison = compare_runs(samplers(*ends))
    assert [pair.p_value for pair in comparison.differences] == pytest.approx([6 / 70] * 3)
    assert "corrected by Holm for 3 pairs" in sentences(comparison)[0]


def test_a_search_that_is_repeated_is_no_other_seed() -> None:
    repeated = [make_run(f"same{n}", climb(0.96 + n / 1000)) for n in range(3)]
    others = seeds("other", [0.95, 0.951, 0.952], study__sampler={"name": "random"})
    comparison = compare_runs([*repeated, *others])
    assert comparison.differences == []
    assert any("have all their seeds in common" in said for said in sentences(comparison))


def test_a_single_objective_is_compared_by_its_best_value() -> None:
    only = {"study__objectives": ["accuracy"]}
    comparison = compare_runs(
        [make_run("one", [(0.91,), (0.98,)], **only), make_run("two", [(0.97,)], **only)]
    )
    assert comparison.reference.tolist() == [0.9]  # the worst of parents and ensemble
    assert _shares(comparison) == pytest.approx({"one": 1.0, "two": 0.875})
    assert comparison.results[0].progress.tolist() == [0.9, 0.94, 0.95, 0.95, 0.98]
    # both have four trials, after which the best is the ensemble in one of them
    assert "best accuracy\nafter 4, %" in _headers(comparison)
    assert "accuracy 90%, the worst of parents and ensemble" in sentences(comparison)[-2]
    assert len(draw_comparison(comparison).data) == 3  # two edges and a median


def _headers(comparison: Comparison) -> list[str]:
    return [str(column.header) for column in rich_table(comparison).columns]


def test_three_objectives_are_compared() -> None:
    three = {"study__objectives": ["accuracy", "macs", "parameters"]}
    runs = [
        make_run("one", [(0.96, 3e6, 7e5)], **three),
        make_run("two", [(0.93, 5e6, 6e5)], study__seed=1, **three),
    ]
    comparison = compare_runs(runs)
    assert comparison.reference.shape == (3,)
    shares = _shares(comparison)
    assert 0 < shares["two"] < shares["one"] < 1  # each has what the other lacks
    figure = draw_comparison(comparison)
    titles = [figure.layout[f"xaxis{n}"].title.text for n in ("", "2", "3")]
    assert titles == [
        "multiply-accumulates per image (millions)",
        "parameters (millions)",
        "trials",
    ]
    assert {trace.mode for trace in figure.data if trace.name is None} >= {"markers"}


def test_figures_show_every_front_and_the_range_of_every_group() -> None:
    comparison = compare_runs(samplers([0.97, 0.96, 0.98], [0.95, 0.94]))
    figure = draw_comparison(comparison)
    fronts = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(fronts) == 5
    best = [trace for trace in fronts if "linkage2" in trace.hovertemplate]
    assert list(best[0].x) == [2, 3]  # millions: parent a, and the last of the climb
    assert list(best[0].y) == pytest.approx([90, 98])
    assert best[0].line.shape == "hv"
    medians = [trace for trace in figure.data if trace.name is not None]
    assert [trace.name for trace in medians] == [
        "study.sampler.name=linkage (3 runs)",
        "study.sampler.name=nsga2 (2 runs)",
    ]
    curve = comparison.groups[0].curve
    last = sorted(comparison.groups[0].shares(comparison.trials))
    assert [curve.low[-1], curve.median[-1], curve.high[-1]] == last
    assert list(medians[0].y) == pytest.approx(list(100 * curve.median))
