"""On a real supernetwork of which every setting is known: see ``benchmarks/samplers.py``."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import optuna
import pytest

from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler
from tests.helpers.tabulated import OUTPUTS, Tabulated, shares

SEEDS = range(100, 105)


@pytest.fixture(scope="module")
def table() -> Tabulated:
    return Tabulated()


def median_after(
    table: Tabulated, trials: int, make: Callable[[int], optuna.samplers.BaseSampler]
) -> float:
    return statistics.median(shares(table, make(seed), trials, seed)[-1] for seed in SEEDS)


@pytest.mark.slow
def test_ours_are_ahead_of_nsga2_at_a_quarter_of_its_trials(table: Tabulated) -> None:
    nsga2 = median_after(table, 1000, lambda seed: optuna.samplers.NSGAIISampler(seed=seed))
    for ours in (LinkageSampler, LocalSearchSampler):
        found = median_after(table, 250, lambda seed: ours(seed=seed, key=table.key))  # noqa: B023
        assert found >= 0.99
        assert found >= nsga2


def test_table_is_whole(table: Tabulated) -> None:
    assert table.accuracy.shape == table.macs.shape == (3, 2**16)
    assert table.share(table.front) == pytest.approx(1)
    parents = [{**dict.fromkeys(table.switches, "off"), "output": o} for o in OUTPUTS]
    accuracies, macs = zip(*map(table.values, parents), strict=True)
    assert macs[2] == pytest.approx(macs[0] + macs[1], rel=1e-3)
    assert accuracies[2] > max(accuracies[:2]) > 0.8
    for accuracy, cost in table.front:
        better = (table.accuracy >= accuracy) & (table.macs < cost)
        assert not better.any()
