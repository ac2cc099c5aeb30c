"""A small real supernetwork of which every setting is known: ``tests/benchmarks/table.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

TABLE = Path(__file__).parents[1] / "data" / "table.npz"
OUTPUTS, STATES = ("a", "b", "ensemble"), ("off", "on")
DIRECTIONS = ("maximize", "minimize")  # of accuracy and multiply-accumulates

Point = tuple[float, float]


class Tabulated:
    """ResNet-20 × ResNet-56 on 2,000 images of CIFAR-10: 16 switches and an output."""

    def __init__(self) -> None:
        with np.load(TABLE) as held:
            images = int(held["images"])
            self.switches: list[str] = held["switches"].tolist()
            self.accuracy: NDArray[np.float64] = held["correct"] / images
            self.macs: NDArray[np.float64] = held["macs"].astype(float)
            self._canonical: NDArray[np.int64] = held["canonical"].astype(np.int64)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """As a study over such a supernetwork has them."""
        space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(STATES) for name in self.switches
        }
        return {**space, "output": CategoricalDistribution(OUTPUTS)}

    def _place(self, params: Mapping[str, Any]) -> tuple[int, int]:
        bits = sum(1 << i for i, name in enumerate(self.switches) if params[name] == "on")
        return OUTPUTS.index(params["output"]), bits

    def key(self, params: Mapping[str, Any]) -> int:
        """Which network this is: settings that compute the same have the same key."""
        return int(self._canonical[self._place(params)])

    def values(self, params: Mapping[str, Any]) -> Point:
        place = self._place(params)
        return float(self.accuracy[place]), float(self.macs[place])

    @property
    def reference(self) -> Point:
        """The front's worst values, each worse by a tenth of the front's width.

        A point further off would count little but the corner that any search finds at once.
        """
        accuracy, macs = zip(*self.front, strict=True)
        return (
            min(accuracy) - 0.1 * (max(accuracy) - min(accuracy)),
            max(macs) + 0.1 * (max(macs) - min(macs)),
        )

    @cached_property
    def front(self) -> list[Point]:
        """All values that nothing is better than."""
        points = np.unique(np.stack([self.accuracy.ravel(), self.macs.ravel()], 1), axis=0)
        found: list[Point] = []
        for accuracy, macs in points[np.lexsort((-points[:, 0], points[:, 1]))].tolist():
            if not found or accuracy > found[-1][0]:
                found.append((accuracy, macs))
        return found

    @cached_property
    def _whole(self) -> float:
        return self._volume(self.front)

    def _volume(self, points: Sequence[Point]) -> float:
        return hypervolume(points, self.reference)

    def share(self, points: Sequence[Point]) -> float:
        """Their hypervolume, as a share of that of the exact front."""
        return self._volume(points) / self._whole

    def enqueue(self, study: optuna.Study, seed: int, population: int = 50) -> None:
        """As `enqueue_starts`: parents, ensemble, single-stitch and sparse random networks."""
        rng = np.random.default_rng(seed)
        off = dict.fromkeys(self.switches, "off")
        starts = [{**off, "output": output} for output in OUTPUTS]
        starts += [
            {**off, name: "on", "output": name.split(" -> ")[1][0]} for name in self.switches
        ]
        starts = starts[:population]
        known = {self.key(start) for start in starts}
        while len(starts) < population:
            on = rng.random(len(self.switches)) < 0.05
            start = {name: STATES[int(o)] for name, o in zip(self.switches, on, strict=True)}
            start["output"] = OUTPUTS[rng.integers(3)]
            if self.key(start) not in known:
                known.add(self.key(start))
                starts.append(start)
        for start in starts:
            study.enqueue_trial(start)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """What points of accuracy, to be large, and MACs, to be small, dominate up to a reference."""
    worst, budget = reference
    total = 0.0
    for accuracy, macs in sorted(points, key=lambda point: (point[1], -point[0])):
        if accuracy > worst and macs < budget:
            total += (accuracy - worst) * (budget - macs)
            worst = accuracy
    return total


def shares(
    table: Tabulated,
    sampler: optuna.samplers.BaseSampler,
    trials: int,
    seed: int,
    *,
    start: int = 50,
    longest: int = 0,
    goal: float = 0.99,
) -> list[float]:
    """Search the table: the share of the hypervolume after every trial.

    Args:
        table: What is searched.
        sampler: By whom.
        trials: How many, start included.
        seed: Of the start.
        start: How many trials are enqueued first.
        longest: How many more there may be, in all, until the goal is reached.
        goal: A share.
    """
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    table.enqueue(study, seed, start)
    space = table.distributions
    found: list[Point] = []
    share = 0.0
    history: list[float] = []
    while len(history) < trials or (len(history) < longest and share < goal):
        trial = study.ask(space)
        if isinstance(sampler, optuna.samplers.BaseGASampler):  # which pass over enqueued trials
            sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[trial.number])
        point = table.values(trial.params)
        study.tell(trial, point)
        if not any(a >= point[0] and m <= point[1] for a, m in found):
            found = [(a, m) for a, m in found if a > point[0] or m < point[1]] + [point]
            share = table.share(found)
        history.append(share)
        if share >= 1 - 1e-9:  # nothing is left to find
            history += [share] * (trials - len(history))
    return history
