"""What both samplers do with the trials that there are."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState

from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler
from optuna_stitch.search.samplers.linkage.ranking import best_places, first_front
from optuna_stitch.search.samplers.linkage.space import CommonSpace, Space
from tests.helpers.landscapes import bits_of, distributions, params_of

SAMPLERS = [LinkageSampler, LocalSearchSampler]
WIDTH = 12
both = pytest.mark.parametrize("make", SAMPLERS)
# What the tests ask for, in the order of the directions.
DIRECTIONS = ["maximize", "minimize"]


def values(params: Mapping[str, Any]) -> tuple[float, float]:
    bits = bits_of(params)
    return float((bits * np.arange(1, WIDTH + 1)).sum()), float((bits * np.arange(2, 14)).sum())


def started(sampler: optuna.samplers.BaseSampler, trials: int = 30) -> optuna.Study:
    """A study with sparse settings that are judged already."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    rng = np.random.default_rng(0)
    for _ in range(trials):
        params = params_of((rng.random(WIDTH) < 0.15).astype(int))
        study.add_trial(
            optuna.create_trial(
                params=params, distributions=distributions(WIDTH), values=values(params)
            )
        )
    return study


def ask(study: optuna.Study, count: int) -> list[dict[str, Any]]:
    return [study.ask(distributions(WIDTH)).params for _ in range(count)]


def test_common_parameters_are_those_that_optuna_finds() -> None:
    study = optuna.create_study()
    ours, theirs = CommonSpace(), IntersectionSearchSpace()
    rng = np.random.default_rng(0)
    assert ours.follow([]) == {}
    sizes, running = set(), []
    for _ in range(60):
        trial = study.ask()
        for name in rng.choice(list("abcdefgh"), 8 - int(rng.random() < 0.1), replace=False):
            trial.suggest_float(name, 0, 1 + int(name == "c" and rng.random() < 0.05))
        running.append(trial)
        for _ in range(rng.integers(3)):
            if running:
                told = running.pop(rng.integers(len(running)))
                failed = rng.random() < 0.2
                study.tell(told, None if failed else 0.0, TrialState.FAIL if failed else None)
        found = ours.follow(study.get_trials(deepcopy=False))
        assert list(found.items()) == list(theirs.calculate(study).items())
        sizes.add(len(found))
    assert len(sizes) > 1  # parameters fell away


@both
def test_batch_without_results_is_distinct_and_new(make: Any) -> None:
    study = started(make(seed=0))
    before = {tuple(trial.params.values()) for trial in study.trials}
    asked = [tuple(params.values()) for params in ask(study, 64)]
    assert len(set(asked)) == 64
    assert not before & set(asked)


@both
def test_batch_stays_near_what_is_good(make: Any) -> None:
    study = started(make(seed=0))
    on = [bits_of(params).sum() for params in ask(study, 64)]
    assert np.mean(on) < 0.4 * WIDTH  # at random it would be half


@both
def test_starts_before_anything_is_judged(make: Any) -> None:
    """Workers ask for more than what is enqueued, before the first trial is told."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=make(seed=0))
    rng = np.random.default_rng(0)
    for row in rng.random((30, WIDTH)) < 0.1:
        study.enqueue_trial(params_of(row.astype(int)))
    ask(study, 30)
    later = ask(study, 20)
    assert np.mean([bits_of(params).sum() for params in later]) < 0.4 * WIDTH
    assert len({tuple(params.values()) for params in later}) == 20


@both
def test_same_seed_and_trials_same_proposals_in_a_fresh_sampler(make: Any) -> None:
    study = started(make(seed=3))
    for _ in range(40):
        trial = study.ask(distributions(WIDTH))
        study.tell(trial, values(trial.params))
    again = optuna.create_study(directions=DIRECTIONS, sampler=make(seed=3))
    again.add_trials(study.trials)
    changed = optuna.create_study(directions=DIRECTIONS, sampler=make(seed=4))
    changed.add_trials(study.trials)
    carried = optuna.create_study(
        directions=DIRECTIONS, sampler=pickle.loads(pickle.dumps(study.sampler))
    )
    carried.add_trials(study.trials)
    proposals = ask(study, 5)
    assert ask(again, 5) == proposals
    assert ask(carried, 5) == proposals
    assert ask(changed, 5) != proposals


@both
def test_failed_and_pruned_settings_are_taken(make: Any) -> None:
    space = distributions(5)
    study = optuna.create_study(sampler=make(seed=0, n_startup_trials=2))
    seen: set[tuple[str, ...]] = set()
    for number in range(32):
        trial = study.ask(space)
        assert tuple(trial.params.values()) not in seen
        seen.add(tuple(trial.params.values()))
        if number % 3 == 1:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 3 == 2:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, float(bits_of(trial.params).sum()))
    study.tell(study.ask(space), 0.0)  # all 32 have been asked for: any is as good
    assert len(study.trials) == 33


@both
def test_equal_keys_are_the_same_setting(make: Any) -> None:
    """Half of the switches make no difference."""

    def key(params: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(params[f"s{place}"] for place in range(6))

    study = optuna.create_study(sampler=make(seed=0, key=key, n_startup_trials=8))
    seen = set()
    for _ in range(64):
        trial = study.ask(distributions(WIDTH))
        seen.add(key(trial.params))
        study.tell(trial, float(bits_of(trial.params)[:6].sum()))
    assert len(seen) >= 62  # the last few hide among 4,096 settings


@both
@pytest.mark.parametrize("named", [True, False])
def test_what_is_feasible_comes_first(make: Any, named: bool) -> None:
    """At most three may be on, though more would be better."""
    study = optuna.create_study(direction="maximize", sampler=make(seed=0))
    if named and not hasattr(optuna.Trial, "set_constraint"):
        pytest.skip("needs constraints by name: pip install 'optuna>=5'")
    feasible = []
    for _ in range(150):
        trial = study.ask(distributions(WIDTH))
        count = int(bits_of(trial.params).sum())
        if named:
            trial.set_constraint("count", count - 3)
        else:
            study._storage.set_trial_system_attr(trial._trial_id, "constraints", [count - 3])
        study.tell(trial, float(count))
        feasible.append(count <= 3)
    assert np.mean(feasible[-50:]) > 0.15  # at random 7 in 100 are
    best = [t for t, f in zip(study.trials, feasible, strict=True) if f]
    assert max(trial.values[0] for trial in best) == 3


@both
def test_three_objectives_of_mixed_parameters(make: Any) -> None:
    space: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0, 1),
        "rate": FloatDistribution(1e-5, 1, log=True),
        "step": FloatDistribution(0, 1, step=0.25),
        "n": IntDistribution(1, 64, log=True),
        "c": CategoricalDistribution((None, 1, True, "a")),
        "single": CategoricalDistribution(("only",)),
        "one": IntDistribution(3, 3),
    }
    directions = ["minimize", "maximize", "minimize"]
    study = optuna.create_study(directions=directions, sampler=make(seed=0))
    for _ in range(120):
        trial = study.ask(space)
        p = trial.params
        target = (p["x"] - 0.3) ** 2 + (np.log10(p["rate"]) + 3) ** 2
        study.tell(trial, (target, float(p["n"]), float("inf") if p["c"] is None else p["step"]))
    late = [t.values[0] for t in study.trials[60:]]
    assert np.median(late) < np.median([t.values[0] for t in study.trials[:20]])


@both
def test_one_sampler_serves_several_studies(make: Any) -> None:
    sampler = make(seed=0)
    for width in (4, 6):
        study = optuna.create_study(sampler=sampler)
        for _ in range(30):
            trial = study.ask(distributions(width))
            study.tell(trial, float(bits_of(trial.params).sum()))
        assert study.best_value == 0


def test_study_files_know_both() -> None:
    assert isinstance(make_sampler("linkage", {"population_size": 32}, seed=1), LinkageSampler)
    assert isinstance(make_sampler("local_search", {}, seed=1), LocalSearchSampler)


@pytest.mark.parametrize(
    "wrong",
    [{"population_size": 1}, {"niches": 0}, {"mutation": 1.5}, {"neighbours": 1}],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LinkageSampler(**wrong)


def test_fronts_are_those_of_trying_every_pair() -> None:
    rng = np.random.default_rng(0)
    for objectives in (1, 2, 3):
        losses = rng.integers(6, size=(60, objectives)).astype(float)
        beaten = [any((o <= x).all() and (o < x).any() for o in losses) for x in losses]
        assert sorted(first_front(losses)) == np.flatnonzero(~np.array(beaten)).tolist()
    amounts = np.array([0, 2, 0, 1.0])
    fronts = best_places(np.array([[1.0], [0], [0], [0]]), amounts, 4)
    assert [front.tolist() for front in fronts] == [[2], [0], [3], [1]]


def test_rows_stand_for_settings_and_back() -> None:
    space = Space(
        {
            "rate": FloatDistribution(1e-5, 1e-1, log=True),
            "odd": IntDistribution(1, 9, step=2),
            "c": CategoricalDistribution((1, True, 1.0, float("nan"))),
        }
    )
    rng = np.random.default_rng(0)
    for _ in range(50):
        params = space.params(space.drawn(rng))
        row = space.code(params)
        assert row is not None
        back = space.params(row)
        assert back["rate"] == pytest.approx(params["rate"])
        assert back["odd"] == params["odd"]
        assert repr(back["c"]) == repr(params["c"])
    assert space.code({"rate": 1.0, "odd": 1, "c": 1}) is None
