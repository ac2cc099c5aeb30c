"""Where optima are known: linkage is learnt, and neither sampler misses what is easy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest

from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler
from optuna_stitch.search.samplers.linkage.tree import linkage_tree, mutual_information
from tests.helpers.landscapes import (
    NearestNeighbourNK,
    Separable,
    Traps,
    distributions,
    params_of,
)

Values = tuple[float, ...]


def search(
    sampler: optuna.samplers.BaseSampler,
    judge: Callable[..., Any],
    width: int,
    trials: int,
    wanted: Sequence[Any],
) -> tuple[int, int]:
    """How many of the wanted values were found, and after how many trials the last."""
    objectives = len(wanted[0]) if isinstance(wanted[0], tuple) else 1
    study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
    space, left = distributions(width), set(wanted)
    taken = 0
    while left and taken < trials:
        taken += 1
        trial = study.ask(space)
        values = judge(trial.params)
        study.tell(trial, values)
        left.discard(values if objectives > 1 else round(values, 9))
    return len(wanted) - len(left), taken


def linkage(seed: int, **arguments: Any) -> LinkageSampler:
    return LinkageSampler(seed=seed, n_startup_trials=64, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [True, False])
def test_deceptive_traps_are_solved(kernel: bool) -> None:
    traps = Traps(6)
    for seed in range(3):
        sampler = linkage(seed, kernel=kernel)
        assert search(sampler, traps.single, traps.width, 2000, [traps.best()])[0] == 1


@pytest.mark.slow
def test_deceptive_traps_mislead_who_learns_no_linkage() -> None:
    traps = Traps(6)
    for make in (LocalSearchSampler, optuna.samplers.NSGAIISampler):
        solved = [
            search(make(seed=seed), traps.single, traps.width, 1500, [traps.best()])[0]
            for seed in range(2)
        ]
        assert sum(solved) == 0


@pytest.mark.slow
def test_whole_front_of_trap_and_inverse_trap_is_found() -> None:
    traps = Traps(6)
    front = traps.front()
    assert all(
        search(linkage(seed), traps, traps.width, 1500, front)[0] == len(front)
        for seed in range(2)
    )
    for make in (LocalSearchSampler, optuna.samplers.NSGAIISampler):
        assert search(make(seed=0), traps, traps.width, 1500, front)[0] <= len(front) // 2


def test_tree_of_good_solutions_groups_the_blocks() -> None:
    traps = Traps(6)
    bits = np.random.default_rng(0).integers(2, size=(1500, traps.width))
    worth = [traps.single(params_of(row)) for row in bits]
    choices = np.full(traps.width, 2)

    def subsets(rows: np.ndarray) -> set[frozenset[int]]:
        tree = linkage_tree(mutual_information(rows, choices))
        return {frozenset(subset.tolist()) for subset in tree}

    blocks = {frozenset(block.tolist()) for block in traps.blocks}
    assert blocks <= subsets(bits[np.argsort(worth)[-500:]])
    assert not blocks & subsets(bits)  # in what is not selected there is nothing to learn


@pytest.mark.slow
def test_separable_front_is_found_by_local_search() -> None:
    judge = Separable(16)
    front = judge.front()
    found, trials = search(LocalSearchSampler(seed=0), judge, judge.width, 1000, front)
    assert found == len(front)
    found, _ = search(LinkageSampler(seed=0), judge, judge.width, 1000, front)
    assert found >= 0.9 * len(front)
    found, _ = search(optuna.samplers.NSGAIISampler(seed=0), judge, judge.width, trials, front)
    assert found < 0.9 * len(front)


def test_dynamic_programming_finds_the_optimum_that_trying_all_finds() -> None:
    for seed, step in itertools.product(range(3), (1, 2)):
        judge = NearestNeighbourNK(8, k=3, step=step, seed=seed)
        settings = itertools.product((0, 1), repeat=8)
        assert judge.best() == pytest.approx(max(judge(params_of(np.array(s))) for s in settings))


@pytest.mark.slow
def test_optima_of_nearest_neighbour_nk_are_found() -> None:
    for seed in range(2):
        judge = NearestNeighbourNK(24, k=4, seed=seed)
        best = [round(judge.best(), 9)]
        assert search(linkage(seed), judge, judge.width, 1800, best)[0] == 1
        nsga = optuna.samplers.NSGAIISampler(seed=seed)
        assert search(nsga, judge, judge.width, 1800, best)[0] == 0
