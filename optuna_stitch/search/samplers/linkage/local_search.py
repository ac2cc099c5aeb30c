"""Pareto local search: the neighbours of the best known, where the front is least crowded."""

from __future__ import annotations

import numpy as np

from .archive import Archive
from .base import ArchiveSampler, neighbour
from .ranking import best_places, crowding
from .space import Row


class LocalSearchSampler(ArchiveSampler):
    """Pareto local search, for any number of workers.

    Every setting on the front has neighbours, which differ from it in one parameter; one that
    nobody has asked for is proposed, of the setting whose part of the front is emptier of two
    drawn. When all neighbours of all are known, those at two and three parameters follow.
    Paquete, Chiarandini and Stützle, "Pareto local optimum sets in the biobjective traveling
    salesman problem: an experimental study", 2004, without the pass through whole neighbourhoods:
    each trial is judged by the front of its day, so that no worker waits for another. A strong
    baseline: den Ottelander et al., "Local search is a remarkably strong baseline for neural
    architecture search", 2021.

    Numerical parameters take steps of all sizes.

    Args:
        seed: With the same seed and the same trials, the same is proposed; if None, chance.
        key: Says of two settings whether they are the same: equal keys. If None, every setting
            is different. What it returns must be hashable.
        n_startup_trials: How many trials there are, enqueued ones included, before proposals are
            more than random.

    Example:
        >>> study = optuna.create_study(directions=["maximize", "minimize"],
        ...                             sampler=LocalSearchSampler(seed=0))
    """

    def _propose(self, archive: Archive, rng: np.random.Generator) -> Row | None:
        if not len(archive):
            return neighbour(archive, rng.permutation(archive.running), rng)
        front = best_places(archive.losses, archive.violations, 1)[0]
        apart = crowding(archive.losses[front])
        first, second = rng.permutation(len(front)), rng.permutation(len(front))
        emptier = np.where(apart[first] >= apart[second], first, second)
        order = list(dict.fromkeys([*emptier.tolist(), *first.tolist()]))
        return neighbour(archive, archive.rows[front[order]], rng)
