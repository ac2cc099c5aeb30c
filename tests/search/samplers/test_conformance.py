"""Both samplers do what Optuna asks of any sampler."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest

from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler

conformance = pytest.importorskip(
    "optuna.testing.pytest_samplers",
    reason="needs optuna.testing.pytest_samplers: pip install 'optuna>=5'",
)

Make = Callable[[], optuna.samplers.BaseSampler]


class _Conformance(
    conformance.BasicSamplerTestCase,  # type: ignore[name-defined,misc]
    conformance.RelativeSamplerTestCase,  # type: ignore[name-defined,misc]
    conformance.MultiObjectiveSamplerTestCase,  # type: ignore[name-defined,misc]
):
    pass


class TestLinkageSampler(_Conformance):
    @pytest.fixture
    def sampler(self) -> Make:
        return LinkageSampler


class TestLinkageSamplerFromTheFirst(_Conformance):
    @pytest.fixture
    def sampler(self) -> Make:
        return lambda: LinkageSampler(n_startup_trials=0, seed=0)


class TestLocalSearchSampler(_Conformance):
    @pytest.fixture
    def sampler(self) -> Make:
        return LocalSearchSampler


class TestLocalSearchSamplerFromTheFirst(_Conformance):
    @pytest.fixture
    def sampler(self) -> Make:
        return lambda: LocalSearchSampler(n_startup_trials=0, seed=0)
