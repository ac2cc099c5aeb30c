from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from scipy.stats import binomtest

import optuna_stitch as st
from optuna_stitch.evaluation.significance import holm, retained_interval
from optuna_stitch.report.plots import front_figure
from optuna_stitch.report.tables import front_table
from optuna_stitch.stitching.genotype import SIDES
from optuna_stitch.utils.errors import ConfigError


@pytest.fixture(scope="module")
def front(two_jobs: st.Supernetwork, pair: st.DataPair) -> st.Front:
    objective = st.Objective(two_jobs, pair.val.take(60))
    study = st.create_study(objective, population=1)
    names = [two_jobs.switches[place].name for place in (1, 2, -1)]
    for name in names:
        study.enqueue_trial(two_jobs.subnetwork({"output": "both", name: "on"}).params)
    st.optimize(study, objective, n_trials=4, batch=4)
    with pytest.raises(ConfigError, match="needs the `train` split too"):
        st.evaluate_front(study, objective, pair.test)
    train, test = pair.train.take(100), pair.test.take(150)
    return st.evaluate_front(study, objective, test, train=train, only=[0, 1, 2, 3])


def test_figures_follow_from_the_predictions_of_both_questions(front: st.Front) -> None:
    tables = {side: front.sides[side].predictions() for side in SIDES}
    right = {
        side: table.drop(columns="label").eq(table["label"], axis=0)
        for side, table in tables.items()
        if table is not None
    }
    assert [entry.name for entry in front.entries][:3] == [
        "both parents",
        "probe on a",
        *([front.entries[2].name]),
    ]
    p_values: list[float] = []
    for entry in front.entries:
        hits = {side: right[side][entry.name] for side in SIDES}
        alone = {side: right[side]["both parents"] for side in SIDES}
        shares = [hits[side].mean() / alone[side].mean() for side in SIDES]
        assert entry.test["retained"] == pytest.approx(min(shares))
        assert entry.test["accuracy_a"] == hits["a"].mean()
        low, high = entry.interval
        assert low <= entry.quality <= high
        if entry.name == "both parents":
            continue
        for side in SIDES:
            better = int((hits[side] & ~alone[side]).sum())
            worse = int((alone[side] & ~hits[side]).sum())
            p_values.append(binomtest(better, better + worse).pvalue if better + worse else 1.0)
    found = [one.p_value for entry in front.entries for one in entry.comparisons]
    assert found == pytest.approx(holm(p_values))
    compared = [one.baseline for entry in front.stitched for one in entry.comparisons]
    assert set(compared) == {"parent a", "parent b"}


def test_a_trunk_counts_only_where_no_baseline_dominates_it(front: st.Front) -> None:
    for entry in front.stitched:
        beaten = [
            other
            for other in front.entries
            if other.quality >= entry.quality
            and other.test["macs"] <= entry.test["macs"]
            and (other.quality, other.test["macs"]) != (entry.quality, entry.test["macs"])
        ]
        assert entry.on_front == (not beaten)
    assert front.entries[0].trial == 0
    whole = front.entries[0].test["macs"]
    probes = [entry for entry in front.baselines if entry.kind == "probe"]
    assert {entry.name for entry in probes} >= {"probe on a", "probe on b"}
    assert all(entry.test["macs"] < whole for entry in probes)
    assert not [entry for entry in front.entries if entry.kind == "other"]  # of 10 and 2 classes


def test_a_report_says_what_was_gained_or_that_nothing_was(
    front: st.Front, tmp_path: Path
) -> None:
    assert front.headline.startswith(("A network that answers both questions", "Nothing was"))
    table = front_table(front)
    assert "kept %" in table
    assert "a acc. %" in table
    assert "vs b" in table
    front_figure(front, "two jobs").savefig(tmp_path / "front.png")
    columns = front.table().columns
    assert {"accuracy_a_minus_parent_a", "accuracy_b_minus_parent_b"} <= set(columns)


def test_the_smaller_network_answers_for_both_where_it_can(
    a: st.Parent, b: st.Parent, data: st.Data
) -> None:
    made = st.stitch(a, b, points="blocks", outputs=["both"])
    pair = st.DataPair(data, data)
    made.fit(pair.train, images=40)
    objective = st.Objective(made, pair.val.take(30))
    study = optuna.create_study(directions=objective.directions)
    study.enqueue_trial(made.subnetwork({"output": "both"}).params)
    study.optimize(objective, n_trials=1)
    train, test = pair.train.take(60), pair.test.take(100)
    front = st.evaluate_front(study, objective, test, train=train)
    (alone,) = [entry for entry in front.entries if entry.kind == "other"]
    assert alone.name == "b for both"
    assert alone.test["macs"] == made.graphs["b"].macs
    figures = front.entries[0].test
    shares = [figures["accuracy_b"] / figures[f"accuracy_{side}"] for side in SIDES]
    assert alone.quality == pytest.approx(min(shares))


def test_the_interval_of_what_is_retained_covers_it() -> None:
    from optuna_stitch.evaluation.accumulator import Hits

    generator = torch.Generator().manual_seed(0)
    covered = []
    for seed in range(60):
        alone = torch.rand(400, generator=generator) < 0.9
        own = torch.where(torch.rand(400, generator=generator) < 0.9, alone, ~alone)
        low, high = retained_interval([(Hits(own), Hits(alone))])
        covered.append(low <= 0.82 / 0.9 <= high)
        assert low < high, seed
    assert np.mean(covered) > 0.85
