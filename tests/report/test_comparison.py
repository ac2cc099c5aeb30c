from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import create_trial

from optuna_stitch.report.comparison import Comparison, Searched, compare
from optuna_stitch.report.comparison_page import data_frame, sentences
from optuna_stitch.report.comparison_plots import draw_comparison
from optuna_stitch.utils.errors import StudyError
from tests.helpers.searched import PARENTS, climb, make_run, samplers, seeds


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def _shares(comparison: Comparison) -> dict[str, float]:
    return {run.run.name: float(run.shares[-1]) for run in comparison.results}


def test_hypervolumes_have_one_reference_and_one_front() -> None:
    good = make_run("good", [(0.94, 3e6), (0.96, 5e6)])
    poor = make_run("poor", [(0.92, 3e6), (0.5, 1e6)])  # one of no use to anybody
    comparison = compare([good, poor])
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
    comparison = compare([long, short])
    assert comparison.trials == 6  # of 10 and 6, failed ones left out
    lengths = {run.run.name: run.trials for run in comparison.results}
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


def test_runs_of_one_study_file_are_a_group() -> None:
    runs = [
        make_run("a0", study__seed=0, study__trials=50),
        make_run("a1", study__seed=1, study__name="a1", fit__seed=3, evaluation__remember=False),
        make_run(
            "b", study__sampler={"name": "nsga2", "population_size": 30}, study__space="reachable"
        ),
    ]
    comparison = compare(runs)
    assert [(group.name, len(group.results)) for group in comparison.groups] == [
        ("study.space=flat, sampler.name=linkage", 2),
        ("study.space=reachable, sampler.name=nsga2, population_size=30", 1),
    ]
    alone = compare(runs[:2])
    assert [group.name for group in alone.groups] == ["the same study file"]


def test_groups_that_lack_what_others_have_or_differ_in_much_have_names_too() -> None:
    plain = make_run("plain")
    raced = make_run("raced", evaluation__racing={"first": 50})
    bound = make_run("bound", study__constraints={"max_macs": 5e6})
    names = [group.name for group in compare([plain, raced]).groups]
    assert names == [
        "no evaluation.racing",
        "evaluation.racing.error_rate=0.01, first=50, growth=2.0",
    ]
    comparison = compare([plain, bound])
    names = [group.name for group in comparison.groups]
    assert names == ["no study.constraints.max_macs", "study.constraints.max_macs=5000000.0"]
    assert "different bounds (study.constraints.max_macs)" in comparison.notes[0]
    much = make_run("much", evaluation__racing={"first": 50}, fit__kernel=1)
    names = [group.name for group in compare([plain, raced, much]).groups]
    assert names == ["like plain", "like raced", "like much"]


def test_groups_with_enough_seeds_are_tested() -> None:
    clear = compare(samplers([0.97, 0.971, 0.972, 0.973], [0.95, 0.951, 0.952, 0.953]))
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
    comparison = compare(runs)
    (difference,) = comparison.differences
    assert difference.p_value == difference.least == pytest.approx(0.1)
    said = sentences(comparison)
    assert "p = 0.1" in said[0]
    assert said[1] == "With so few runs even the clearest difference would have p = 0.1."
    assert said[2].startswith("Not tested: study.sampler.name=random. ")


def test_equal_runs_are_not_told_apart() -> None:
    runs = samplers([0.97] * 4, [0.97] * 4)
    comparison = compare(runs)
    assert [difference.p_value for difference in comparison.differences] == [1.0]


def test_p_values_hold_for_all_pairs_together() -> None:
    ends = [[0.97, 0.971, 0.972, 0.973], [0.96, 0.961, 0.962, 0.963], [0.95, 0.951, 0.952, 0.953]]
    comparison = compare(samplers(*ends))
    assert [pair.p_value for pair in comparison.differences] == pytest.approx([6 / 70] * 3)
    assert "corrected by Holm for 3 pairs" in sentences(comparison)[0]


def test_a_search_that_is_repeated_is_no_other_seed() -> None:
    repeated = [make_run(f"same{n}", climb(0.96 + n / 1000)) for n in range(3)]
    others = seeds("other", [0.95, 0.951, 0.952], study__sampler={"name": "random"})
    comparison = compare([*repeated, *others])
    assert comparison.differences == []
    assert any("have all their seeds in common" in said for said in sentences(comparison))


def test_what_else_differs_than_the_search_is_said() -> None:
    first = make_run("first")
    assert compare([first, make_run("alike", study__seed=1)]).notes == []
    fitted = make_run("fitted", content="0123456789abcdef", fit__kernel=1)
    notes = compare([first, fitted]).notes
    assert len(notes) == 1
    assert (
        "2 different supernetworks (edec52af945b0904: first; 0123456789abcdef: fitted)"
        in (notes[0])
    )
    moved = {**PARENTS, "b": (0.92, 4e6)}
    notes = compare([first, make_run("images", parents=moved, data__seed=1)]).notes
    assert len(notes) == 1
    assert "The accuracy of parent b is 0.94 in first, but 0.92 in images" in notes[0]


def test_files_in_other_places_may_be_the_same_files() -> None:
    here = make_run("here", data__root="images")
    copied = make_run("copied", data__root="copy", study__seed=1)
    assert [group.name for group in compare([here, copied]).groups] == ["the same study file"]
    other = make_run("other", data__root="others", parents={**PARENTS, "a": (0.8, 2e6)})
    with pytest.raises(StudyError, match=r"other and here cannot be compared: data\.root is"):
        compare([here, other])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parents__b__network": "test_c"}, "parents.b.network is 'test_c' in the one"),
        ({"data__dataset": "torch/voc"}, "data.dataset is 'torch/voc' in the one"),
        ({"study__objectives": ["accuracy", "parameters"]}, "study.objectives is ['accuracy', "),
    ],
)
def test_other_parents_data_or_objectives_are_refused(changes: dict[str, Any], said: str) -> None:
    runs = [make_run("first"), make_run("second", **changes)]
    with pytest.raises(StudyError) as refused:
        compare(runs)
    assert str(refused.value).startswith("second and first cannot be compared: ")
    assert said in str(refused.value)


def test_other_directions_are_refused() -> None:
    run = make_run("run")
    turned = optuna.create_study(directions=["minimize", "minimize"])
    turned.add_trial(create_trial(values=(0.5, 1e6)))
    with pytest.raises(StudyError, match="minimize, minimize, and maximize, minimize"):
        compare([run, Searched("turned", run.study_file, turned)])


def test_a_study_is_not_counted_twice() -> None:
    run = make_run("run")
    with pytest.raises(StudyError, match="through and run have the same study"):
        compare([run, Searched("through", run.study_file, run.study)])


def test_runs_without_anything_to_compare_are_refused() -> None:
    failed = make_run("failed", [None, None], parents={})
    infeasible = make_run("infeasible", constraints=[1.0])
    with pytest.raises(StudyError, match=r"^failed cannot be compared.*no complete trial \(2 fa"):
        compare([failed])
    with pytest.raises(StudyError, match=r"^infeasible cannot be.*5 complete trials, none of wh"):
        compare([make_run("good"), infeasible])


def test_a_single_objective_is_compared_by_its_best_value() -> None:
    only = {"study__objectives": ["accuracy"]}
    comparison = compare(
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
    from optuna_stitch.report.comparison_page import rich_table

    return [str(column.header) for column in rich_table(comparison).columns]


def test_three_objectives_are_compared() -> None:
    three = {"study__objectives": ["accuracy", "macs", "parameters"]}
    runs = [
        make_run("one", [(0.96, 3e6, 7e5)], **three),
        make_run("two", [(0.93, 5e6, 6e5)], study__seed=1, **three),
    ]
    comparison = compare(runs)
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
    comparison = compare(samplers([0.97, 0.96, 0.98], [0.95, 0.94]))
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
