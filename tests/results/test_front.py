from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
import pytest
from scipy.stats import binomtest

import optuna_stitch as st
from optuna_stitch.errors import StudyError
from optuna_stitch.results.front import Claim, Entry, Front
from optuna_stitch.results.plots import draw_front, write_html, write_png
from optuna_stitch.results.report import headline, rich_table, worth_showing, write_report


@pytest.fixture(scope="module")
def objective(supernetwork: st.Supernetwork, data: st.Data) -> st.Objective:
    return st.Objective(supernetwork, data.val)


@pytest.fixture(scope="module")
def study(objective: st.Objective) -> optuna.Study:
    made = optuna.create_study(directions=objective.directions)
    st.enqueue_starts(made, objective.supernetwork, population=25, probability=0.03)
    made.optimize(objective, n_trials=25)
    return made


@pytest.fixture(scope="module")
def front(study: optuna.Study, objective: st.Objective, data: st.Data) -> st.Front:
    return st.evaluate_front(study, objective, data.test)


def test_figures_agree_with_raw_predictions(
    front: st.Front, supernetwork: st.Supernetwork, data: st.Data
) -> None:
    """Every figure again, from plain networks run one by one."""
    images = next(data.test.batches(supernetwork.views, len(data.test))).images
    right = {
        entry.name: supernetwork.extract(entry.genotype)(*images).argmax(1) == data.test.targets
        for entry in front.entries
    }
    assert front.images == len(data.test)
    for entry in front.entries:
        hits = int(right[entry.name].sum())
        assert entry.test["accuracy"] == pytest.approx(hits / len(data.test))
        interval = binomtest(hits, len(data.test)).proportion_ci(method="wilson")
        assert entry.interval == pytest.approx((interval.low, interval.high))
        for claim in entry.claims:
            other = right[claim.baseline]
            difference = (hits - int(other.sum())) / len(data.test)
            assert claim.difference == pytest.approx(difference, abs=1e-6)
            wins = int((right[entry.name] & ~other).sum())
            losses = int((~right[entry.name] & other).sum())
            raw = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
            assert raw <= claim.p_value + 1e-12


def test_baselines_come_first_and_the_front_is_what_nothing_dominates(front: st.Front) -> None:
    assert [entry.name for entry in front.baselines] == ["parent a", "parent b", "ensemble"]
    assert front.entries[:3] == front.baselines
    assert front.stitched
    points = [(-entry.test["accuracy"], entry.test["macs"]) for entry in front.entries]
    for entry, point in zip(front.entries, points, strict=True):
        dominated = any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in points
        )
        assert entry.on_front != dominated


def test_files(front: st.Front, supernetwork: st.Supernetwork, tmp_path: Path) -> None:
    table = front.table([switch.name for switch in supernetwork.switches])
    table.to_csv(tmp_path / "front.csv", index=False)
    read = pd.read_csv(tmp_path / "front.csv")
    assert list(read["name"]) == [entry.name for entry in front.entries]
    assert {"test_accuracy", "test_accuracy_low", "test_macs", "val_accuracy"} <= set(read)
    write_html(front, "Title", tmp_path / "front.html")
    assert "plotly" in (tmp_path / "front.html").read_text()
    write_png(front, "Title", tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    names = {trace.name for trace in draw_front(front, "Title").data}
    assert {"all trials (validation)", "parent (test, 95% interval)"} <= names
    report = write_report(front, title="Title", facts=[("data", "digits")], commands=["true"])
    assert report.startswith(f"# Title\n\n{headline(front)}\n\n![")
    assert rich_table(front).row_count == len(worth_showing(front))


def test_without_complete_trials(objective: st.Objective, data: st.Data) -> None:
    empty = optuna.create_study(directions=objective.directions)
    with pytest.raises(StudyError, match="no complete trial"):
        st.evaluate_front(empty, objective, data.test)


def _entry(name: str, accuracy: float, macs: float, **claims: tuple[float, float]) -> Entry:
    return Entry(
        name=name,
        kind="stitched" if claims else "ensemble" if name == "ensemble" else "parent",
        trial=0,
        genotype=st.Genotype("a"),
        values={},
        test={"accuracy": accuracy, "macs": macs},
        quality=accuracy,
        interval=(accuracy, accuracy),
        parameters=0,
        on_front=True,
        claims=[Claim(key.replace("_", " "), *value) for key, value in claims.items()],
    )


@pytest.mark.parametrize(
    ("accuracy", "macs", "p_value", "expected"),
    [
        (0.97, 80.0, 0.001, "has a higher accuracy than parent a"),
        (0.951, 80.0, 0.8, "needs 20% fewer multiply-accumulates than parent a; its accuracy"),
        (0.93, 80.0, 0.8, "1 stitched networks lie on the front, but none is cheaper"),
        (0.09, 10.0, 0.0, "1 stitched networks lie on the front, but none is cheaper"),
    ],
)
def test_the_headline_says_what_the_tests_bear_out(
    accuracy: float, macs: float, p_value: float, expected: str
) -> None:
    found = _entry("trial 7", accuracy, macs, parent_a=(accuracy - 0.95, p_value))
    entries = [_entry("parent a", 0.95, 100.0), _entry("parent b", 0.90, 50.0), found]
    text = headline(Front(entries, ["accuracy", "macs"], pd.DataFrame(), 500))
    assert expected in text


def test_the_headline_when_nothing_was_found() -> None:
    entries = [_entry("parent a", 0.95, 100.0), _entry("parent b", 0.90, 50.0)]
    text = headline(Front(entries, ["accuracy", "macs"], pd.DataFrame(), 500))
    assert text == "No stitched network is better than the parents and their ensemble."
