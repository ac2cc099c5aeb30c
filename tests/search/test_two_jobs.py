from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest

import optuna_stitch as st
from optuna_stitch.evaluation.stitch_quality import best_stitches, measure_stitches
from optuna_stitch.search.space import Space, distributions
from optuna_stitch.stitching.fit import StitchFit


@pytest.fixture(scope="module")
def qualities(two_jobs: st.Supernetwork, pair: st.DataPair) -> list:  # type: ignore[type-arg]
    fits = [StitchFit(switch.name, 0.9, 1e-3, 1, 1, 1) for switch in two_jobs.switches]
    return measure_stitches(two_jobs, fits, pair.val.take(50))


def test_stitches_are_held_to_the_parent_that_they_lead_into(
    two_jobs: st.Supernetwork,
    pair: st.DataPair,
    qualities: list,  # type: ignore[type-arg]
) -> None:
    metrics = ["accuracy_a", "accuracy_b", "macs"]
    evaluator = st.TwoJobEvaluator(two_jobs, pair.val.take(50), metrics)
    (whole,) = evaluator.evaluate([two_jobs.subnetwork({"output": "both"})])
    for quality in qualities:
        subnetwork = two_jobs.subnetwork({"output": "both", quality.switch: "on"})
        (found,) = evaluator.evaluate([subnetwork])
        own = f"accuracy_{quality.into}"
        assert quality.quality == found[own]
        assert quality.drop == pytest.approx(whole[own] - found[own])
        assert quality.macs == subnetwork.macs
    least = min(qualities, key=lambda quality: quality.drop)
    assert qualities[best_stitches(qualities, best=1)[0]].drop == least.drop


@pytest.mark.parametrize("space", ["flat", "reachable"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: optuna.samplers.NSGAIISampler(population_size=4, seed=0),
        lambda: optuna.samplers.TPESampler(n_startup_trials=4, seed=0),
        lambda: st.LocalSearchSampler(seed=0),
    ],
    ids=["linkage", "nsga2", "tpe", "local_search"],
)
def test_a_search_begins_with_both_parents_and_every_stitch(
    two_jobs: st.Supernetwork,
    pair: st.DataPair,
    qualities: list,  # type: ignore[type-arg]
    space: Space,
    make: Callable[[], optuna.samplers.BaseSampler | None],
) -> None:
    objective = st.Objective(two_jobs, pair.val.take(30), space=space)
    study = st.create_study(objective, sampler=make(), population=3, stitch_qualities=qualities)
    starts = 1 + len(two_jobs.switches)
    st.optimize(study, objective, n_trials=starts + 4, batch=8)
    networks = [two_jobs.subnetwork(trial.params) for trial in study.trials]
    assert networks[0] == two_jobs.subnetwork({"output": "both"})
    assert study.trials[0].values == [1.0, networks[0].macs]
    assert {tuple(one.stitches) for one in networks[1:starts]} == {
        (switch.name,) for switch in two_jobs.switches
    }
    assert study.metric_names == ["retained", "macs"]
    assert all(trial.params["output"] == "both" for trial in study.trials)
    assert "threshold" not in distributions(two_jobs, objective.outputs)


def test_constraints_and_objectives_have_sides(
    two_jobs: st.Supernetwork, pair: st.DataPair
) -> None:
    objective = st.Objective(
        two_jobs,
        pair.val.take(30),
        ["accuracy_a", "cross_entropy_b", "macs"],
        constraints={"min_retained": 0.99, "min_accuracy_b": 0.5},
    )
    assert objective.directions == ["maximize", "minimize", "minimize"]
    study = optuna.create_study(directions=objective.directions)
    study.enqueue_trial(two_jobs.subnetwork({"output": "both"}).params)
    study.optimize(objective, n_trials=2)
    first = study.trials[0]
    assert first.system_attrs["constraints"][0] == pytest.approx(0.99 - 1)
    assert len(first.values) == 3
