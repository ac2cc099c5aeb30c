"""Landscapes with known optima: whether linkage is learnt shows where it matters.

All are over switches ``s0``, ``s1``, ..., ``off`` or ``on``, and all are to be maximized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

Bits = NDArray[np.int64]


def distributions(width: int) -> dict[str, BaseDistribution]:
    return {f"s{place}": CategoricalDistribution(("off", "on")) for place in range(width)}


def bits_of(params: Mapping[str, Any]) -> Bits:
    return np.array([params[f"s{place}"] == "on" for place in range(len(params))], int)


def params_of(bits: Bits) -> dict[str, str]:
    return {f"s{place}": ("off", "on")[bit] for place, bit in enumerate(bits)}


class Separable:
    """How many are on, and how little those cost that are: ones against whole costs.

    Its front: for every count the cheapest so many.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        self.costs = np.random.default_rng(seed).permutation(width) + 1
        self.width = width

    def __call__(self, params: Mapping[str, Any]) -> tuple[float, float]:
        bits = bits_of(params)
        return float(bits.sum()), float(-(self.costs * bits).sum())

    def front(self) -> list[tuple[float, float]]:
        spent = np.concatenate([[0], np.cumsum(np.sort(self.costs))])
        return [(float(count), float(-cost)) for count, cost in enumerate(spent)]


class Traps:
    """Concatenated deceptive traps, whose blocks are scattered over the switches.

    A block of k with u on is worth k where all are on, else k - 1 - u: every change but all at
    once leads away (Deb and Goldberg, "Analyzing deception in trap functions", 1993). The inverse
    trap, the second objective, counts those that are off.
    """

    def __init__(self, blocks: int, k: int = 4, seed: int = 0) -> None:
        self.k, self.width = k, blocks * k
        places = np.random.default_rng(seed).permutation(self.width)
        self.blocks = places.reshape(blocks, k)

    def single(self, params: Mapping[str, Any]) -> float:
        return float(self._worth(bits_of(params)))

    def __call__(self, params: Mapping[str, Any]) -> tuple[float, float]:
        bits = bits_of(params)
        return float(self._worth(bits)), float(self._worth(1 - bits))

    def _worth(self, bits: Bits) -> int:
        counts = bits[self.blocks].sum(axis=1)
        return int(np.where(counts == self.k, self.k, self.k - 1 - counts).sum())

    def best(self) -> float:
        return float(self.width)

    def front(self) -> list[tuple[float, float]]:
        """Every block all on or all off: k and k - 1, or the other way round."""
        blocks, k = len(self.blocks), self.k
        return [
            (float(on * k + (blocks - on) * (k - 1)), float(on * (k - 1) + (blocks - on) * k))
            for on in range(blocks + 1)
        ]


class NearestNeighbourNK:
    """Overlapping random subfunctions of k neighbouring switches, in a line.

    The optimum is found by dynamic programming over the state of k - 1 switches (Pelikan et al.,
    "Performance of evolutionary algorithms on NK landscapes with nearest neighbor interactions
    and tunable overlap", 2009). The switches are shuffled.
    """

    def __init__(self, width: int, k: int = 5, step: int = 1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.width, self.k = width, k
        self.starts = range(0, width - k + 1, step)
        self.worth = rng.random((len(self.starts), 2**k))
        self.order = rng.permutation(width)

    def __call__(self, params: Mapping[str, Any]) -> float:
        bits = bits_of(params)[self.order]
        powers = 1 << np.arange(self.k)
        return float(
            sum(
                self.worth[number, bits[start : start + self.k] @ powers]
                for number, start in enumerate(self.starts)
            )
        )

    def best(self) -> float:
        """The worth of the best setting, place by place over the last k switches."""
        reached = {0: 0.0}
        numbers = {start: number for number, start in enumerate(self.starts)}
        for place in range(self.width):
            following: dict[int, float] = {}
            for state, value in reached.items():
                for bit in (0, 1):  # the newest is the highest bit of a window
                    window = state >> 1 | bit << (self.k - 1)
                    number = numbers.get(place - self.k + 1)
                    total = value + (0.0 if number is None else float(self.worth[number, window]))
                    following[window] = max(total, following.get(window, -np.inf))
            reached = following
        return max(reached.values())
