from __future__ import annotations

import random
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

import optuna_stitch as st
from optuna_stitch.evaluation.stitch_quality import measure_stitches
from optuna_stitch.search.space import (
    THRESHOLDS,
    baselines,
    enqueue_starts,
    suggest,
    threshold_values,
)
from optuna_stitch.search.worker import optimize
from optuna_stitch.stitching.genotype import FIRST, OUTPUT, OUTPUTS, Genotype


def _drawn(supernetwork: st.Supernetwork, count: int, largest: int) -> list[Genotype]:
    rng = random.Random(0)
    places = range(len(supernetwork.switches))
    return [
        Genotype(
            output := rng.choice(OUTPUTS),
            frozenset(rng.sample(places, rng.randint(0, largest))),
            rng.choice(threshold_values()) if output in FIRST else None,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("pair", ["supernetwork", pytest.param("cnn_vit", marks=pytest.mark.slow)])
def test_both_spaces_give_the_same_canonical_genotypes(
    request: pytest.FixtureRequest, pair: str
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(pair)
    every = len(supernetwork.switches)
    for genotype in _drawn(supernetwork, 3, every):
        params = {"threshold": 0.5, **genotype.params(supernetwork.switches)}
        flat = suggest(optuna.trial.FixedTrial(params), supernetwork)
        trial = optuna.trial.FixedTrial(params)
        reached = suggest(trial, supernetwork, "reachable")
        assert reached == flat == supernetwork.subnetwork(genotype)
        asked = {supernetwork.switches[i].name for i in range(every)} & set(trial.distributions)
        for index, switch in enumerate(supernetwork.switches):
            if switch.name not in asked:  # it cannot be felt
                flipped = replace(genotype, on=genotype.on ^ {index})
                assert supernetwork.subnetwork(flipped) == reached


def test_the_key_of_a_trial_names_its_network(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    objective = st.Objective(supernetwork, data.val.take(5))
    off, on = (dict.fromkeys((s.name for s in supernetwork.switches), v) for v in ("off", "on"))
    into_b = {s.name: "on" for s in supernetwork.switches if s.into == "b"}
    assert objective.key({**off, "output": "a"}) == Genotype("a")
    # switches into b are not felt at a's output, as long as nothing of b is read
    assert objective.key({**off, **into_b, "output": "a"}) == Genotype("a")
    assert objective.key({**on, "output": "a"}) != Genotype("a")


def test_thresholds_are_choices_of_the_parameter() -> None:
    values = threshold_values()
    assert len(values) == 19
    assert all(THRESHOLDS._contains(THRESHOLDS.to_internal_repr(value)) for value in values)


def test_reachable_asks_for_less(supernetwork: st.Supernetwork) -> None:
    params = Genotype("a").params(supernetwork.switches)
    trial = optuna.trial.FixedTrial(params)
    suggest(trial, supernetwork, "reachable")
    into_a = {switch.name for switch in supernetwork.switches if switch.into == "a"}
    assert set(trial.distributions) == into_a | {OUTPUT}


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.RandomSampler(seed=0),
        optuna.samplers.NSGAIISampler(population_size=8, seed=0),
        optuna.samplers.TPESampler(n_startup_trials=6, seed=0),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_any_sampler_searches_the_reachable_space(
    supernetwork: st.Supernetwork, data: st.Data, sampler: optuna.samplers.BaseSampler
) -> None:
    objective = st.Objective(supernetwork, data.val.take(30), space="reachable")
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    enqueue_starts(study, supernetwork, population=6)
    optimize(study, objective, n_trials=10, batch=5)
    study.optimize(objective, n_trials=4)
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    assert len(trials) == 14
    names = [switch.name for switch in supernetwork.switches]
    assert min(len(trial.params) for trial in trials) < len(names)
    for trial in trials:
        subnetwork = supernetwork.subnetwork(trial.params)
        assert supernetwork.subnetwork(subnetwork.genotype) == subnetwork
        judged = objective.evaluate([subnetwork])[0]
        assert tuple(trial.values) == objective.values(judged)


@pytest.mark.parametrize("outputs", [["a", "b"], ["ensemble"], ["b then both"]])
def test_a_study_starts_with_its_own_outputs_only(
    supernetwork: st.Supernetwork, data: st.Data, outputs: list[str]
) -> None:
    objective = st.Objective(supernetwork, data.val.take(5), outputs=outputs)
    study = st.create_study(objective, population=10, genotypes=[Genotype("a"), Genotype("b")])
    assert len(study.trials) == 10
    assert {trial.params[OUTPUT] for trial in study.trials} == set(outputs)
    st.optimize(study, objective, n_trials=4)


@pytest.mark.slow
def test_the_best_single_stitch_networks_are_among_the_first(
    a: st.Parent, b: st.Parent, data: st.Data
) -> None:
    supernetwork = st.stitch(a, b)
    fits = supernetwork.fit(data.train.take(60))
    stitch_qualities = measure_stitches(supernetwork, fits, data.val.take(60))
    objective = st.Objective(supernetwork, data.val.take(20))
    study = optuna.create_study(directions=objective.directions)
    enqueue_starts(study, supernetwork, population=12, stitch_qualities=stitch_qualities)
    waiting = study.get_trials(states=(TrialState.WAITING,))
    starts = [supernetwork.subnetwork(trial.params).genotype for trial in waiting]
    assert len(set(starts)) == len(starts)
    assert starts[:3] == baselines()
    # cascades of the whole parents, either first
    assert [(g.output, g.on) for g in starts[3:5]] == [(output, frozenset()) for output in FIRST]
    best = sorted(stitch_qualities, key=lambda stitch_quality: -stitch_quality.quality)
    index = {switch.name: i for i, switch in enumerate(supernetwork.switches)}
    # for every stitch the ensemble whose second head goes on from the first one's features, and
    # the cascade, where these are not the same as one that came before
    continuing = [supernetwork.subnetwork(g).genotype for g in starts[5 : -len(best[:6])]]
    for quality in best:
        for output in ("ensemble", "a then both"):
            one = Genotype(output, frozenset([index[quality.switch]]), None)
            if output in FIRST:
                costs = {s: supernetwork.subnetwork(replace(one, output=s)).macs for s in "ab"}
                cheaper = min(costs, key=costs.__getitem__)
                one = replace(one, output=f"{cheaper} then both", threshold=0.25)
            assert supernetwork.subnetwork(one).genotype in continuing
    expected = [Genotype(c.into, frozenset([index[c.switch]])) for c in best[:6]]
    assert starts[-6:] == expected
