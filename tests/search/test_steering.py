from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

import optuna_stitch as st
from optuna_stitch.evaluation.accumulator import Evaluation
from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.search.space import enqueue_starts
from optuna_stitch.search.steering import SteeredSampler
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.errors import ConfigError

SPACE = {f"x{i}": optuna.distributions.CategoricalDistribution(("off", "on")) for i in range(12)}


class Looking(optuna.samplers.RandomSampler):
    """Remembers what it saw of a study."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.saw: list[FrozenTrial] = []

    def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]
        self.saw = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {}


def _study(
    sampler: optuna.samplers.BaseSampler, directions: Sequence[str] = ("maximize", "minimize")
) -> optuna.Study:
    storage = BufferedStorage(optuna.storages.InMemoryStorage())
    return optuna.create_study(storage=storage, sampler=sampler, directions=directions)


def _objective(trial: optuna.Trial) -> tuple[float, float]:
    """Many cheap and useless points: quality and cost are the number of switches on."""
    on = sum(trial.suggest_categorical(name, ("off", "on")) == "on" for name in SPACE)
    return on / len(SPACE), on


def test_the_floor_rises_in_a_line_and_stays() -> None:
    sampler = SteeredSampler(Looking(), top=0.8, trials=100)
    assert sampler.floor(0) == 0
    assert sampler.floor(50) == pytest.approx(0.4)
    assert sampler.floor(100) == sampler.floor(1000) == pytest.approx(0.8)
    floors = [sampler.floor(finished) for finished in range(120)]
    assert floors == sorted(floors)


def test_only_the_sampler_sees_trials_below_the_floor_as_infeasible() -> None:
    looking = Looking()
    study = _study(SteeredSampler(looking, top=0.5, trials=4))
    for value in (0.1, 0.4, 0.6, 0.9):
        study.add_trial(create_trial(values=[value, value], system_attrs={"constraints": [-1.0]}))
    study.ask(SPACE)
    seen = [trial.system_attrs["constraints"] for trial in looking.saw]
    assert [first for first, _ in seen] == [-1.0] * 4
    assert [below > 0 for _, below in seen] == [True, True, False, False]
    assert [trial.system_attrs["constraints"] for trial in study.trials[:4]] == [[-1.0]] * 4
    assert len(study.best_trials) == 4  # the front is what it is


@pytest.mark.parametrize("name", ["nsga2", "linkage", "local_search"])
def test_a_steered_search_keeps_to_the_upper_part(name: str) -> None:
    arguments = {"population_size": 10} if name == "nsga2" else {}
    found: dict[bool, list[float]] = {}
    for steered in (False, True):
        sampler = make_sampler(name, arguments, seed=1)
        if steered:
            sampler = SteeredSampler(sampler, top=0.75, trials=60)
        study = _study(sampler)
        study.optimize(_objective, n_trials=150)
        found[steered] = [trial.values[0] for trial in study.trials[90:]]
    useless = {key: sum(v < 0.6 for v in values) / len(values) for key, values in found.items()}
    assert useless[False] > 0.2
    assert useless[True] < useless[False] / 2


def test_what_cannot_be_steered_is_said() -> None:
    steered = SteeredSampler(Looking(), top=0.5, trials=4)
    with pytest.raises(ConfigError, match="open_storage"):
        optuna.create_study(directions=["maximize"] * 2, sampler=steered).ask(SPACE)
    with pytest.raises(ConfigError, match="is to be large"):
        _study(steered, ["minimize"] * 2).ask(SPACE)


def test_constraints_on_cost_spare_the_images(
    supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    limit = supernetwork.subnetwork(Genotype("b")).macs * 0.9
    objective = st.Objective(
        supernetwork,
        data.val.take(30),
        constraints={"max_macs": limit, "min_accuracy": 0.5},
    )
    run: list[st.Subnetwork] = []
    evaluate = objective.evaluator.evaluate

    def spy(subnetworks: list[st.Subnetwork], **kwargs: bool) -> list[Evaluation]:
        run.extend(subnetworks)
        return evaluate(subnetworks, **kwargs)

    objective.evaluator.evaluate = spy  # type: ignore[assignment]
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(directions=objective.directions, storage=storage)
    enqueue_starts(study, supernetwork, population=20)
    st.optimize(study, objective, n_trials=20, batch=6)
    study.optimize(objective, n_trials=4)
    states = {trial.state for trial in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    for subnetwork in run:  # parents and ensemble are what others are compared with
        assert not subnetwork.on or subnetwork.macs <= limit
    for trial in study.trials:
        by_name = {k: v for k, v in trial.system_attrs.items() if k.startswith("constraints:")}
        excess = supernetwork.subnetwork(trial.params).macs - limit
        if hasattr(trial, "constraints"):
            assert by_name["constraints:max_macs"] == excess
        if trial.state == TrialState.PRUNED:
            assert excess > 0
            assert "constraints:min_accuracy" not in by_name
        else:
            # what Optuna 4 and optuna-dashboard read
            assert trial.system_attrs["constraints"] == [excess, 0.5 - trial.values[0]]
    for trial in study.best_trials:
        assert trial.values[0] >= 0.5
        assert trial.values[1] <= limit
