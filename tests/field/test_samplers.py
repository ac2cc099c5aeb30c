"""Samplers that end a search themselves, and samplers that cannot do what is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler
from optuna.trial import FrozenTrial, TrialState

import optuna_stitch as st
from optuna_stitch.search.space import distributions
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call
from tests.helpers.runs import TINY

OUTPUTS = ("a", "b", "ensemble")


@pytest.fixture(scope="module")
def small(supernetwork: st.Supernetwork, data: st.Data) -> st.Objective:
    """A space of six."""
    return st.Objective(supernetwork.keep([0]), data.val.take(10), outputs=OUTPUTS)


def _grid(objective: st.Objective) -> GridSampler:
    space = distributions(objective.supernetwork, OUTPUTS)
    return GridSampler({name: list(found.choices) for name, found in space.items()})  # type: ignore[attr-defined]


EXHAUSTIVE: dict[str, Callable[[st.Objective], BaseSampler]] = {
    "brute force": lambda _: BruteForceSampler(seed=0),
    "patient brute force": lambda _: BruteForceSampler(seed=0, avoid_premature_stop=True),
    "grid": _grid,
}


@pytest.mark.parametrize(
    ("kind", "batch"), [("brute force", 5), ("patient brute force", 7), ("grid", 50)]
)
def test_a_sampler_that_has_tried_everything_ends_the_search(
    kind: str, batch: int, small: st.Objective
) -> None:
    study = optuna.create_study(directions=small.directions, storage=open_storage("sqlite://"))
    for limit in ({"n_trials": 90}, {"until": 90}):  # the second time there is nothing left
        study.sampler = EXHAUSTIVE[kind](small)
        st.optimize(study, small, batch=batch, **limit)  # type: ignore[arg-type]
        asked = Counter(tuple(sorted(trial.params.items())) for trial in study.trials)
        assert len(asked) == 6
        assert set(asked.values()) == {1}
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize("kind", ["brute force", "grid"])
def test_enqueued_trials_take_nothing_from_what_is_to_be_tried(
    kind: str, small: st.Objective
) -> None:
    study = st.create_study(small, sampler=EXHAUSTIVE[kind](small), population=5)
    st.optimize(study, small, n_trials=90, batch=4)
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == 6
    assert len(study.trials) <= 5 + 6


@pytest.mark.parametrize("moment", ["before_trial", "sample_independent", "after_trial"])
def test_a_sampler_may_stop_the_search_at_any_moment(moment: str, small: st.Objective) -> None:
    class Stopping(optuna.samplers.RandomSampler):
        pass

    def stop(self: Any, study: optuna.Study, trial: FrozenTrial, *rest: Any) -> Any:
        if trial.number >= 4:
            study.stop()
        return getattr(optuna.samplers.RandomSampler, moment)(self, study, trial, *rest)

    setattr(Stopping, moment, stop)
    study = optuna.create_study(directions=small.directions, sampler=Stopping(seed=0))
    st.optimize(study, small, n_trials=60, batch=3)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    with pytest.raises(RuntimeError, match="supposed to be invoked inside"):
        study.stop()  # as ever outside a search


@pytest.mark.parametrize("name", ["CmaEsSampler", "of_ones_own.Alone"])
def test_a_sampler_for_one_objective_is_refused_before_anything_is_built(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("of_ones_own.py").write_text(
        "import optuna\n"
        "class Alone(optuna.samplers.RandomSampler):\n"
        "    def infer_relative_search_space(self, study, trial):\n"
        "        study.best_value  # which Optuna refuses where there are several\n"
        "        return {}\n"
    )
    dotted = name if "." in name else f"optuna.samplers.{name}"
    sampler = "sampler: {name: nsga2, population_size: 8}"
    Path("mine.yaml").write_text(TINY.replace(sampler, f"sampler: {{name: {dotted}}}"))
    assert call("run", "mine.yaml") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{name.rpartition('.')[2]} cannot search for 2 objectives at once" in said
    assert "Choose a sampler that can: nsga2, nsga3, tpe, random, linkage, local_search" in said
    assert not Path("runs").exists()


def test_from_python_it_is_refused_too(small: st.Objective) -> None:
    study = st.create_study(small, sampler=optuna.samplers.CmaEsSampler(), population=3)
    with pytest.raises(ConfigError, match="CmaEsSampler cannot search for 2 objectives at once"):
        st.optimize(study, small, n_trials=8)
