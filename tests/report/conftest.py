"""A study that was searched and reported on, once for all tests of results."""

from __future__ import annotations

import optuna
import pytest

import optuna_stitch as st
from tests.helpers.published import search


@pytest.fixture(scope="session")
def searched(supernetwork: st.Supernetwork, data: st.Data) -> tuple[optuna.Study, st.Front]:
    return search(supernetwork, data)
