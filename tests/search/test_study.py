from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

import optuna_stitch as st
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.search.space import (
    THRESHOLDS,
    baselines,
    distributions,
    enqueue_starts,
    sparse_genotypes,
)
from optuna_stitch.search.steering import SteeredSampler
from optuna_stitch.stitching.genotype import OUTPUTS, SIDES, Genotype, static_outputs
from optuna_stitch.storage.open import open_storage, rdb_of
from optuna_stitch.utils.errors import ConfigError, DataError, StudyError, StudyNotFoundError
from tests.helpers.interrupts import interruptible, lose_interrupt
from tests.helpers.networks import networks


@pytest.fixture
def objective(supernetwork: st.Supernetwork, data: st.Data) -> st.Objective:
    return st.Objective(supernetwork, data.val.take(60))


def _open(
    objective: st.Objective, url: str, sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    return st.create_study(
        objective,
        study_name="test",
        storage=url,
        sampler=sampler or optuna.samplers.NSGAIISampler(population_size=10, seed=0),
        load_if_exists=True,
        population=10,
    )


def _url(folder: Path) -> str:
    return f"sqlite:///{folder}/study.db"


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE,))


def test_the_space_is_every_switch_and_the_output(supernetwork: st.Supernetwork) -> None:
    space = distributions(supernetwork)
    names = [switch.name for switch in supernetwork.switches]
    assert list(space) == [*names, "output", "threshold"]
    assert space["output"].choices == OUTPUTS  # type: ignore[attr-defined]
    assert space["threshold"] == THRESHOLDS
    # where no network is a cascade, there is no threshold
    assert list(distributions(supernetwork, static_outputs(SIDES))) == [*names, "output"]


def test_sparse_genotypes_are_sparse_distinct_and_repeatable(
    supernetwork: st.Supernetwork,
) -> None:
    drawn = sparse_genotypes(supernetwork, 40, probability=0.05, seed=1)
    assert len(drawn) == len(set(drawn)) == 40
    assert not set(drawn) & set(baselines())
    assert sum(len(genotype.on) for genotype in drawn) / 40 < 4
    assert drawn == sparse_genotypes(supernetwork, 40, probability=0.05, seed=1)
    assert drawn != sparse_genotypes(supernetwork, 40, probability=0.05, seed=2)


def test_parents_and_ensemble_are_the_first_trials(
    objective: st.Objective, tmp_path: Path
) -> None:
    study = _open(objective, _url(tmp_path))
    st.optimize(study, objective, n_trials=12, batch=5)
    trials = _complete(study)
    assert len(trials) == 12
    first = [objective.supernetwork.subnetwork(trial.params).genotype for trial in trials[:3]]
    assert first == baselines()
    parents = objective.evaluate(networks(objective.supernetwork, baselines()))
    assert [tuple(trial.values) for trial in trials[:3]] == [*map(objective.values, parents)]
    assert study.metric_names == ["accuracy", "macs"]
    assert set(trials[0].params) == set(distributions(objective.supernetwork))


def test_one_by_one_or_together_values_are_the_same(
    objective: st.Objective, tmp_path: Path
) -> None:
    together = _open(objective, _url(tmp_path), optuna.samplers.RandomSampler(seed=0))
    st.optimize(together, objective, n_trials=12, batch=6)
    alone = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    enqueue_starts(alone, objective.supernetwork, population=10)
    alone.optimize(objective, n_trials=12)
    assert [t.params for t in alone.trials] == [t.params for t in together.trials]
    assert [t.values for t in alone.trials] == [t.values for t in together.trials]


@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_genetic_sampler_breeds_from_the_sparse_population(
    objective: st.Objective, tmp_path: Path, together: bool
) -> None:
    """It would start from a dense one by itself, in which nearly every network is broken."""
    study = _open(objective, _url(tmp_path))
    if together:
        st.optimize(study, objective, n_trials=40, batch=5)
    else:
        study.optimize(objective, n_trials=40)
    bred = _complete(study)[10:]
    on = [sum(value == "on" for value in trial.params.values()) for trial in bred]
    assert sum(on) / len(on) < len(objective.supernetwork.switches) / 4


def test_one_objective_is_a_number(supernetwork: st.Supernetwork, data: st.Data) -> None:
    objective = st.Objective(supernetwork, data.val.take(60), ["accuracy"])
    study = optuna.create_study(directions=objective.directions)
    enqueue_starts(study, supernetwork, population=3)
    study.optimize(objective, n_trials=3)
    assert study.best_value == max(trial.value for trial in study.trials if trial.value)


@pytest.mark.parametrize(
    ("name", "value"), [("population", -3), ("probability", 3.0), ("probability", float("nan"))]
)
def test_first_trials_that_cannot_be(objective: st.Objective, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` is {value}"):
        st.create_study(objective, **{name: value})


def test_an_interrupted_batch_is_taken_up_again(
    objective: st.Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _open(objective, _url(tmp_path))
    evaluate = objective.evaluate
    calls = 0

    def interrupted(genotypes: list[Genotype]) -> list[tuple[float, ...]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return evaluate(genotypes)

    monkeypatch.setattr(objective, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        st.optimize(study, objective, until=10, batch=4)
    states = [trial.state for trial in study.get_trials()]
    assert states.count(TrialState.COMPLETE) == 4
    assert states.count(TrialState.FAIL) == 4
    assert TrialState.RUNNING not in states
    lost = [trial.params for trial in study.get_trials(states=(TrialState.FAIL,))]

    again = _open(objective, _url(tmp_path))
    st.optimize(again, objective, until=10, batch=4)
    assert len(_complete(again)) == 10
    done = [trial.params for trial in _complete(again)]
    assert all(params in done for params in lost)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_python_loses_ends_the_search(
    objective: st.Objective, tmp_path: Path
) -> None:
    study = _open(objective, _url(tmp_path))

    def lose(_: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 0:
            lose_interrupt()

    with interruptible(), pytest.raises(KeyboardInterrupt):
        st.optimize(study, objective, n_trials=20, batch=4, callbacks=[lose])
    assert len(_complete(study)) == 4
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_trials_that_a_killed_worker_left_running_are_taken_up(
    objective: st.Objective, tmp_path: Path
) -> None:
    killed = _open(objective, _url(tmp_path))
    left = killed.ask(distributions(objective.supernetwork))
    again = _open(objective, _url(tmp_path))
    st.optimize(again, objective, until=10, batch=5, grace=0.5)
    assert again.trials[left.number].state == TrialState.FAIL
    assert len(_complete(again)) == 10
    assert left.params in [trial.params for trial in _complete(again)]


def test_a_study_of_another_supernetwork_is_refused(
    objective: st.Objective, data: st.Data, tmp_path: Path
) -> None:
    _open(objective, _url(tmp_path))
    other = objective.supernetwork.keep([0, 1])
    with pytest.raises(StudyError, match="was made for the supernetwork") as caught:
        _open(st.Objective(other, data.val), _url(tmp_path))
    with pytest.raises(StudyError, match="was made for the supernetwork"):
        st.load_study(st.Objective(other, data.val), study_name="test", storage=_url(tmp_path))
    assert other.content_hash() in str(caught.value)
    assert objective.supernetwork.content_hash() in str(caught.value)


def test_other_objectives_are_refused(
    objective: st.Objective, supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    _open(objective, _url(tmp_path))
    other = st.Objective(supernetwork, data.val, ["cross_entropy", "macs"])
    with pytest.raises(StudyError, match="has the objectives"):
        _open(other, _url(tmp_path))
    with pytest.raises(StudyError, match="has the objectives"):
        st.load_study(other, study_name="test", storage=_url(tmp_path))


def test_a_study_is_created_once(objective: st.Objective, tmp_path: Path) -> None:
    made = _open(objective, _url(tmp_path))
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        st.create_study(objective, study_name="test", storage=_url(tmp_path))
    joined = st.create_study(
        objective, study_name="test", storage=open_storage(_url(tmp_path)), load_if_exists=True
    )
    assert [trial.params for trial in joined.trials] == [trial.params for trial in made.trials]
    assert isinstance(joined.sampler, st.LinkageSampler)


def test_a_study_in_memory(objective: st.Objective) -> None:
    study = st.create_study(objective, population=6)
    assert study.metric_names == ["accuracy", "macs"]
    sampler = SteeredSampler(study.sampler, top=0.5, trials=8)
    study.sampler = sampler  # it needs a storage through which it can look
    st.optimize(study, objective, n_trials=8, batch=4)
    assert len(_complete(study)) == 8
    assert st.create_study(objective).study_name != study.study_name


@pytest.mark.parametrize("named", [True, False])
def test_a_study_is_loaded_as_it_is(objective: st.Objective, tmp_path: Path, named: bool) -> None:
    made = _open(objective, _url(tmp_path))
    name = "test" if named else None
    for storage in (_url(tmp_path), open_storage(_url(tmp_path))):
        loaded = st.load_study(objective, study_name=name, storage=storage)
        assert loaded.study_name == "test"
        assert [trial.params for trial in loaded.trials] == [t.params for t in made.trials]
    st.optimize(loaded, objective, n_trials=12, batch=6)
    assert len(_complete(made)) == 12


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_loading_makes_no_storage(tmp_path: Path, kind: str) -> None:
    url = f"{kind}:///{tmp_path}/study.db"
    with pytest.raises(StudyNotFoundError, match=r"no storage .*study\.db yet"):
        st.load_study(study_name="test", storage=url)
    assert list(tmp_path.iterdir()) == []
    open_storage(url)
    with pytest.raises(StudyNotFoundError, match="no study 'test' in this storage"):
        st.load_study(study_name="test", storage=url)
    with pytest.raises(StudyNotFoundError, match="no study in this storage"):
        st.load_study(study_name=None, storage=url)


def test_an_empty_database_is_left_empty(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("CREATE TABLE mine (number INTEGER)")
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(StudyNotFoundError, match="no storage"):
        st.load_study(study_name="test", storage=_url(tmp_path))
    assert (tmp_path / "study.db").read_bytes() == before


def test_which_study_must_be_said_where_there_are_several(
    objective: st.Objective, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        st.create_study(objective, study_name=name, storage=_url(tmp_path), population=3)
    with pytest.raises(StudyError, match="the storage has one, two"):
        st.load_study(study_name=None, storage=_url(tmp_path))


def test_a_start_that_was_interrupted_is_made_again(
    objective: st.Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: optuna.Study) -> None:
        raise KeyboardInterrupt

    options = {"study_name": "test", "storage": _url(tmp_path), "population": 6}
    with pytest.raises(KeyboardInterrupt):
        st.create_study(objective, **options, prepare=interrupt)
    with pytest.raises(StudyNotFoundError, match="interrupted"):
        st.load_study(study_name="test", storage=_url(tmp_path))
    study = st.create_study(objective, **options, load_if_exists=True)
    assert len(study.trials) == 6
    assert st.load_study(objective, study_name="test", storage=_url(tmp_path))


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////no/such/folder/study.db",
        "nonsense",
        "postgresql://user:secret@127.0.0.1:1/none",
        "nosuchdialect://x/y",
    ],
)
def test_a_storage_that_cannot_be_reached(url: str) -> None:
    with pytest.raises(StudyError, match="cannot be opened") as caught:
        open_storage(url, retry_timeout=0.5)
    assert "secret" not in str(caught.value)


def test_samplers_by_name_and_by_path() -> None:
    made = make_sampler("nsga2", {"population_size": 7}, seed=1)
    assert isinstance(made, optuna.samplers.NSGAIISampler)
    path = "optuna.samplers.BruteForceSampler"
    assert isinstance(make_sampler(path, {}, seed=1), optuna.samplers.BruteForceSampler)
    with pytest.raises(ConfigError, match="no sampler 'nsga9'"):
        make_sampler("nsga9", {}, seed=1)
    with pytest.raises(ConfigError, match=r"takes no size; it takes .*population_size"):
        make_sampler("nsga2", {"size": 7}, seed=1)
    with pytest.raises(ConfigError, match="is no optuna sampler"):
        make_sampler("optuna.Study", {}, seed=1)
    with pytest.raises(ConfigError, match="cannot be made"):
        make_sampler("nsga2", {"population_size": -1}, seed=1)


@pytest.mark.parametrize("name", ["linkage", "local_search", "nsga3", "tpe"])
@pytest.mark.parametrize("metrics", [["accuracy"], ["accuracy", "macs", "parameters"]])
def test_one_objective_or_three(
    supernetwork: st.Supernetwork, data: st.Data, name: str, metrics: list[str]
) -> None:
    objective = st.Objective(supernetwork, data.val.take(30), metrics)
    options = {"population_size": 6} if name == "nsga3" else {}
    study = optuna.create_study(
        directions=objective.directions, sampler=make_sampler(name, options, seed=0)
    )
    enqueue_starts(study, supernetwork, population=6)
    st.optimize(study, objective, n_trials=16, batch=4)
    assert len(_complete(study)) == 16
    assert all(len(trial.values) == len(metrics) for trial in study.trials)


def test_how_long_to_search_must_be_said(objective: st.Objective, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="how long"):
        st.optimize(_open(objective, _url(tmp_path)), objective)


def test_optimize_adds_trials_as_optuna_does(objective: st.Objective, tmp_path: Path) -> None:
    study = _open(objective, _url(tmp_path))
    st.optimize(study, objective, n_trials=5, batch=3)
    st.optimize(study, objective, n_trials=5, batch=3)
    assert len(_complete(study)) == 10
    st.optimize(study, objective, n_trials=50, until=12, batch=5)
    assert len(_complete(study)) == 12


@pytest.mark.slow
def test_a_full_disk_ends_the_search_with_a_message(
    objective: st.Objective, tmp_path: Path
) -> None:
    storage = open_storage(_url(tmp_path))
    study = st.create_study(objective, study_name="test", storage=storage, population=10)
    st.optimize(study, objective, n_trials=6, batch=3)
    rdb = rdb_of(storage)
    assert rdb is not None
    engine = rdb.engine

    @sqlalchemy.event.listens_for(engine, "connect")
    def full(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # as many as there are already

    engine.dispose()
    with pytest.raises(StudyError, match="full"):
        st.optimize(study, objective, n_trials=200, batch=20)
    again = _open(objective, _url(tmp_path))
    assert len(_complete(again)) >= 6
    st.optimize(again, objective, until=len(_complete(again)) + 2, batch=2)
    assert TrialState.RUNNING not in [trial.state for trial in again.trials]


def test_a_study_from_before_cascades_goes_on_as_it_was(
    supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    """Its output has three choices, which Optuna does not let change."""
    before = st.Objective(supernetwork, data.val.take(20), outputs=static_outputs(SIDES))
    study = _open(before, _url(tmp_path))
    st.optimize(study, before, n_trials=12)
    assert not any("threshold" in trial.params for trial in study.trials)
    objective = st.Objective(supernetwork, data.val.take(20))
    again = _open(objective, _url(tmp_path))
    st.optimize(again, objective, n_trials=8)
    again.optimize(objective, n_trials=2)
    finished = again.get_trials(states=(TrialState.COMPLETE,))
    assert len(finished) == 22
    for trial in finished:
        assert trial.distributions["output"].choices == static_outputs(SIDES)  # type: ignore[attr-defined]
        assert "threshold" not in trial.params


@pytest.mark.parametrize("outputs", [(), ("a", "c")])
def test_unknown_outputs_are_named(
    supernetwork: st.Supernetwork, data: st.Data, outputs: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="may answer with a, b, ensemble, a then both"):
        st.Objective(supernetwork, data.val, outputs=outputs)  # type: ignore[arg-type]


def test_other_thresholds_of_a_cascade_are_tried(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    """Those that join the front are enqueued, whatever sampler the study has."""
    # the more images go on, the more often a cascade answers as the ensemble does
    settings = CascadeSettings(answer="mean")
    objective = st.Objective(
        supernetwork, data.val.take(60), ["agreement", "macs"], cascades=settings
    )
    study = st.create_study(objective, sampler=optuna.samplers.RandomSampler(seed=0), population=5)
    st.optimize(study, objective, n_trials=6, batch=5)
    *first, asked = study.trials  # nothing is enqueued that nobody would try
    assert [trial.state for trial in study.trials] == 6 * [TrialState.COMPLETE]
    known = [objective.key(trial.params) for trial in first]
    assert objective.key(asked.params) not in known
    heads = supernetwork.subnetwork(asked.params).heads
    assert heads in {replace(genotype, threshold=None) for genotype in known}
    quality, macs = asked.values
    assert not any(trial.values[0] >= quality and trial.values[1] <= macs for trial in first)


def test_a_study_that_cannot_be_is_refused(supernetwork: st.Supernetwork, data: st.Data) -> None:
    with pytest.raises(ConfigError, match="The space is flat or reachable, not 'all'"):
        st.Objective(supernetwork, data.val, space="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="constraint max_macs needs a number, not 'few'"):
        st.Objective(supernetwork, data.val, constraints={"max_macs": "few"})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="0 images cannot be taken"):
        data.val.take(0)
    with pytest.raises(StudyError, match="threshold is from 0 to 1, not 7"):
        supernetwork.subnetwork(Genotype("a then both", threshold=7))
