from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from optuna_stitch.report.hypervolume import (
    Outcomes,
    front_of,
    hypervolume,
    hypervolume_history,
    hypervolume_over_trials,
    read_outcomes,
    reference_point,
)
from optuna_stitch.utils.errors import StudyError
from tests.helpers.tabulated import Tabulated
from tests.helpers.tabulated import hypervolume as staircase

BOTH = ("maximize", "minimize")


def _study(
    values: Sequence[Sequence[float] | None],
    directions: Sequence[str] = BOTH,
    **of_last: Any,
) -> optuna.Study:
    """A study of these values; None is a pruned trial. The last trial has what else is given."""
    study = optuna.create_study(directions=list(directions))
    for place, row in enumerate(values):
        last = place == len(values) - 1
        state = TrialState.COMPLETE if row is not None else TrialState.PRUNED
        study.add_trial(
            optuna.trial.create_trial(state=state, values=row, **(of_last if last else {}))
        )
    return study


def _cells(losses: np.ndarray, reference: int) -> int:
    """How many unit cells some whole losses dominate, up to the same reference everywhere."""
    cells = itertools.product(range(reference), repeat=losses.shape[1])
    return sum(bool((losses <= np.array(cell)).all(axis=1).any()) for cell in cells)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_history_is_the_hypervolume_of_every_beginning(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    losses = rng.integers(0, 8, (40, objectives)).astype(float)  # some beyond the reference
    losses[[0, 7, 20]] = np.nan
    history = hypervolume_history(losses, np.full(objectives, 6.0))
    counted = [
        _cells(losses[:end][np.isfinite(losses[:end]).all(axis=1)], 6)
        for end in range(1, len(losses) + 1)
    ]
    assert history == pytest.approx(counted)
    assert history[-1] == pytest.approx(hypervolume(losses, np.full(objectives, 6.0)))
    assert history[0] == 0 < history[-1]


def test_a_real_table_has_the_hypervolume_it_was_tuned_by() -> None:
    table = Tabulated()
    worst, budget = table.reference
    places = np.random.default_rng(0).integers(0, table.accuracy.size, 300)
    points = list(zip(table.accuracy.ravel()[places], table.macs.ravel()[places], strict=True))
    losses = np.array([(-accuracy, macs) for accuracy, macs in points])
    found = hypervolume(losses, np.array([-worst, budget]))
    assert found == pytest.approx(staircase(points, table.reference))
    front = np.array([(-accuracy, macs) for accuracy, macs in table.front])
    everything = np.stack([-table.accuracy.ravel(), table.macs.ravel()], axis=1)
    distinct = np.unique(everything, axis=0)
    assert sorted(front_of(distinct).tolist()) == sorted(front.tolist())


@pytest.mark.timeout(120)  # half a second, if no trial makes its front anew
def test_the_history_of_thousands_of_trials_rises() -> None:
    rng = np.random.default_rng(0)
    macs = rng.random(5000)
    wrong = np.exp(-3 * macs) + 0.3 * rng.random(5000) * np.linspace(1, 0.05, 5000)
    losses = np.stack([np.round(wrong, 3), macs], axis=1)
    history = hypervolume_history(losses, np.array([1.5, 1.1]))
    assert (np.diff(history) >= 0).all()
    assert len(np.unique(history)) > 300


def test_the_front_has_every_network_once() -> None:
    losses = np.array([[2.0, 1], [1, 2], [2, 2], [1, 2], [np.nan, 0]])
    assert front_of(losses).tolist() == [[1, 2], [2, 1]]
    assert front_of(losses[4:]).shape == (0, 2)


def test_only_what_may_be_used_counts() -> None:
    study = _study([(0.9, 5.0), None, (0.8, 3.0)])
    study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
    broken = [0.5, -1.0]
    study.add_trial(
        optuna.trial.create_trial(values=(1.0, 1.0), system_attrs={"constraints": broken})
    )
    study.add_trial(optuna.trial.create_trial(values=(float("inf"), 1.0)))
    found = read_outcomes(study)
    assert found.numbers.tolist() == [0, 1, 2, 5, 6]
    assert found.signs.tolist() == [-1, 1]
    assert np.isnan(found.losses).all(axis=1).tolist() == [False, True, False, True, True]
    assert found.losses[[0, 2]].tolist() == [[-0.9, 5], [-0.8, 3]]
    assert found.baselines == {}


@pytest.mark.skipif(
    not hasattr(optuna.Trial, "set_constraint"),
    reason="needs constraints by name: pip install 'optuna>=5'",
)
def test_constraints_are_read_where_optuna_5_keeps_them() -> None:
    study = optuna.create_study()
    for bound in (1.0, 0.0):
        trial = study.ask()
        trial.set_constraint("max_macs", bound)  # type: ignore[attr-defined]
        study.tell(trial, 3.0)
    assert np.isfinite(read_outcomes(study).losses[:, 0]).tolist() == [False, True]


def test_parents_and_ensemble_are_known_by_their_switches() -> None:
    choices = {
        "s": optuna.distributions.CategoricalDistribution(("off", "on")),
        "output": optuna.distributions.CategoricalDistribution(("a", "b", "ensemble")),
    }
    study = optuna.create_study(directions=BOTH)
    for state, output, accuracy in (
        ("on", "a", 0.5),
        ("off", "a", 0.9),
        ("off", "a", 0.1),
        ("off", "ensemble", 0.95),
    ):
        study.add_trial(
            optuna.trial.create_trial(
                params={"s": state, "output": output},
                distributions=choices,
                values=(accuracy, 7.0),
                # both are known, though neither may be used
                system_attrs={"constraints": [1.0 if state == "off" else 0.0]},
            )
        )
    found = read_outcomes(study)
    assert {name: row.tolist() for name, row in found.baselines.items()} == {
        "parent a": [-0.9, 7],
        "ensemble": [-0.95, 7],
    }
    assert np.isfinite(found.losses[:, 0]).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (_study([]), "no complete trial (none at all)"),
        (_study([None, None]), "no complete trial (2 pruned)"),
        (
            _study([(0.9, 1.0)], system_attrs={"constraints": [1.0]}),
            "1 complete trials, none of which is within its constraints",
        ),
    ],
)
def test_a_study_without_values_is_refused(study: optuna.Study, said: str) -> None:
    with pytest.raises(StudyError) as refused:
        read_outcomes(study)
    assert said in str(refused.value)
    assert study.study_name in str(refused.value)


def _outcomes(losses: Sequence[Sequence[float]], **baselines: Sequence[float]) -> Outcomes:
    rows = np.array(losses, dtype=float)
    known = {name: np.array(row, dtype=float) for name, row in baselines.items()}
    return Outcomes(np.arange(len(rows)), rows, np.ones(rows.shape[1]), known)


def test_the_reference_is_beyond_the_worst_of_all_fronts() -> None:
    first = _outcomes([(1, 20), (2, 15), (9, 30)])
    second = _outcomes([(4, 10), (3, 14)])
    # the front of both is from (1, 20) to (4, 10)
    assert reference_point([first, second]) == pytest.approx([4.3, 21])
    assert reference_point([second, first]) == pytest.approx([4.3, 21])


def test_networks_worse_than_parents_and_ensemble_do_not_move_the_reference() -> None:
    losses = [(1, 20), (2, 15), (4, 10), (90, 1)]  # the last one is cheap, and no good
    parents = {"a": (2, 19), "b": (5, 11), "ensemble": (1.5, 30)}
    assert reference_point([_outcomes(losses, **parents)]) == pytest.approx([4.3, 21])
    # unless there is nothing else
    worse = _outcomes([(90, 1), (80, 2)], **parents)
    assert reference_point([worse]) == pytest.approx([91, 2.1])


def test_a_front_without_width_has_a_reference_that_it_is_better_than() -> None:
    one = _outcomes([(1, 7), (3, 9), (3, 9)])
    assert reference_point([one]) == pytest.approx([1.2, 7.2])  # a tenth of what there is
    same = _outcomes([(1, 7)])
    assert hypervolume(same.losses, reference_point([same])) > 0


def test_one_objective_is_measured_from_the_worst_of_parents_and_ensemble() -> None:
    found = _outcomes([(5,), (3,), (4,), (2,)], a=(5,), b=(4,))
    reference = reference_point([found])
    assert reference.tolist() == [5]
    assert hypervolume_history(found.losses, reference).tolist() == [0, 2, 2, 3]
    # without them, or where nothing is better than they are
    assert reference_point([_outcomes([(5,), (3,), (9,)])]).tolist() == [9]
    assert reference_point([_outcomes([(5,)], a=(5,))])[0] > 5


def test_a_study_by_itself_ends_at_its_own_hypervolume(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = _study([(0.5, 5.0), None, (0.9, 9.0), (0.6, 8.0), (0.7, 4.0)])
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        found = hypervolume_over_trials(study)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.logging.disable_propagation()
    assert not caplog.records
    assert found["trial"].tolist() == [0, 1, 2, 3, 4]
    assert found["share"].iloc[-1] == 1
    assert found["share"].is_monotonic_increasing
    assert found["share"].iloc[2] == found["share"].iloc[3] < 1
