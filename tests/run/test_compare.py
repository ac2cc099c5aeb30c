"""Which runs are compared as what, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial

from optuna_stitch.run.compare import SearchedRun, compare_runs
from optuna_stitch.utils.errors import StudyError
from tests.helpers.searched import PARENTS, make_run


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_runs_of_one_study_file_are_a_group() -> None:
    runs = [
        make_run("a0", study__seed=0, study__trials=50),
        make_run("a1", study__seed=1, study__name="a1", fit__seed=3, evaluation__remember=False),
        make_run(
            "b", study__sampler={"name": "nsga2", "population_size": 30}, study__space="reachable"
        ),
    ]
    comparison = compare_runs(runs)
    assert [(group.name, len(group.results)) for group in comparison.groups] == [
        ("study.space=flat, sampler.name=linkage", 2),
        ("study.space=reachable, sampler.name=nsga2, population_size=30", 1),
    ]
    alone = compare_runs(runs[:2])
    assert [group.name for group in alone.groups] == ["the same study file"]


def test_groups_that_lack_what_others_have_or_differ_in_much_have_names_too() -> None:
    plain = make_run("plain")
    raced = make_run("raced", evaluation__racing={"first": 50})
    bound = make_run("bound", study__constraints={"max_macs": 5e6})
    names = [group.name for group in compare_runs([plain, raced]).groups]
    assert names == [
        "no evaluation.racing",
        "evaluation.racing.error_rate=0.01, first=50, growth=2.0",
    ]
    comparison = compare_runs([plain, bound])
    names = [group.name for group in comparison.groups]
    assert names == ["no study.constraints.max_macs", "study.constraints.max_macs=5000000.0"]
    assert "different bounds (study.constraints.max_macs)" in comparison.notes[0]
    much = make_run("much", evaluation__racing={"first": 50}, fit__kernel=1)
    names = [group.name for group in compare_runs([plain, raced, much]).groups]
    assert names == ["like plain", "like raced", "like much"]


def test_what_comes_beside_a_search_makes_no_other_group() -> None:
    finish = {"trials": "front"}
    runs = [make_run("first"), make_run("second", parents__check=False, finish=finish)]
    assert [group.name for group in compare_runs(runs).groups] == ["the same study file"]


def test_what_else_differs_than_the_search_is_said() -> None:
    first = make_run("first")
    assert compare_runs([first, make_run("alike", study__seed=1)]).notes == []
    fitted = make_run("fitted", content="0123456789abcdef", fit__kernel=1)
    notes = compare_runs([first, fitted]).notes
    assert len(notes) == 1
    assert (
        "2 different supernetworks (edec52af945b0904: first; 0123456789abcdef: fitted)"
        in (notes[0])
    )
    moved = {**PARENTS, "b": (0.92, 4e6)}
    notes = compare_runs([first, make_run("images", parents=moved, data__seed=1)]).notes
    assert len(notes) == 1
    assert "The accuracy of parent b is 0.94 in first, but 0.92 in images" in notes[0]


def test_files_in_other_places_may_be_the_same_files() -> None:
    here = make_run("here", data__root="images")
    copied = make_run("copied", data__root="copy", study__seed=1)
    assert [group.name for group in compare_runs([here, copied]).groups] == ["the same study file"]
    other = make_run("other", data__root="others", parents={**PARENTS, "a": (0.8, 2e6)})
    with pytest.raises(StudyError, match=r"other and here cannot be compared: data\.root is"):
        compare_runs([here, other])


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
        compare_runs(runs)
    assert str(refused.value).startswith("second and first cannot be compared: ")
    assert said in str(refused.value)


def test_other_directions_are_refused() -> None:
    run = make_run("run")
    turned = optuna.create_study(directions=["minimize", "minimize"])
    turned.add_trial(create_trial(values=(0.5, 1e6)))
    with pytest.raises(StudyError, match="minimize, minimize, and maximize, minimize"):
        compare_runs([run, SearchedRun("turned", run.study_file, turned)])


def test_a_study_is_not_counted_twice() -> None:
    run = make_run("run")
    with pytest.raises(StudyError, match="through and run have the same study"):
        compare_runs([run, SearchedRun("through", run.study_file, run.study)])


def test_runs_without_anything_to_compare_are_refused() -> None:
    failed = make_run("failed", [None, None], parents={})
    infeasible = make_run("infeasible", constraints=[1.0])
    with pytest.raises(StudyError, match=r"^failed cannot be compared.*no complete trial \(2 fa"):
        compare_runs([failed])
    with pytest.raises(StudyError, match=r"^infeasible cannot be.*5 complete trials, none of wh"):
        compare_runs([make_run("good"), infeasible])
