"""A study that was searched and evaluated on test images, once for all tests of reports."""

from __future__ import annotations

import optuna
import pytest

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from tests.helpers.published import two_on_front


@pytest.fixture(scope="session")
def shown(data: st.Data) -> Split:
    """Test images, as many as tests need."""
    return data.test.take(400)


@pytest.fixture(scope="session")
def front(study: optuna.Study, objective: st.Objective, shown: Split) -> st.Front:
    """Of all trials: which of them are on the front hangs on how the parents were trained."""
    every = [trial.number for trial in study.trials]
    return st.evaluate_front(study, objective, shown, only=every)


@pytest.fixture(scope="session")
def searched(
    study: optuna.Study, objective: st.Objective, shown: Split
) -> tuple[optuna.Study, st.Front]:
    """The study, and a front on which are both parents and two stitched networks of three."""
    return study, two_on_front(study, objective, shown)
