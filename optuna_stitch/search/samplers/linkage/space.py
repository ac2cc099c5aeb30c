"""A search space as rows of numbers: how settings are coded, drawn and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

Row = NDArray[np.float64]

_BINS = 4  # of a number's range, when what goes with what is learnt


class Space:
    """Settings of parameters as rows of numbers in [0, choices) or [0, 1].

    A categorical parameter is coded by the index of its choice, a numerical one by its place in
    its range, on a logarithmic scale where the distribution has one.

    Args:
        distributions: The parameters.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.distributions = dict(distributions)
        self.names = list(distributions)
        kinds = list(distributions.values())
        self.categorical = np.array([isinstance(k, CategoricalDistribution) for k in kinds], bool)
        self.choices = np.array(
            [len(k.choices) if isinstance(k, CategoricalDistribution) else _BINS for k in kinds],
            int,
        )
        # A setting in the table of indicators begins at its parameter's column.
        self.columns = np.concatenate([[0], np.cumsum(self.choices)])[:-1]
        # By the choice's type too: 1, 1.0 and True are equal, but not the same choice.
        self._index: list[dict[tuple[type, Any], int] | None] = [
            {(type(choice), choice): place for place, choice in enumerate(k.choices)}
            if isinstance(k, CategoricalDistribution)
            else None
            for k in kinds
        ]
        self.free = np.array([not k.single() for k in kinds], bool)

    def __len__(self) -> int:
        return len(self.names)

    def code(self, params: Mapping[str, Any]) -> Row | None:
        """The row of a setting; None, if the setting lies outside of the space."""
        row = np.empty(len(self))
        for place, (name, distribution) in enumerate(self.distributions.items()):
            if name not in params:
                return None
            value, index = params[name], self._index[place]
            if index is not None:
                found = index.get((type(value), value))
                if found is None:  # not a number, or equal to a choice of another type
                    try:
                        found = int(distribution.to_internal_repr(value))
                    except ValueError:
                        return None
                row[place] = found
            else:
                low, high = _ends(distribution)
                at = (_scaled(distribution, value) - low) / (high - low) if high > low else 0.0
                if not -1e-9 <= at <= 1 + 1e-9:
                    return None
                row[place] = min(max(at, 0.0), 1.0)
        return row

    def params(self, row: Row) -> dict[str, Any]:
        """The setting that a row stands for."""
        return {
            name: _value(distribution, number)
            for (name, distribution), number in zip(
                self.distributions.items(), row.tolist(), strict=True
            )
        }

    def draw(self, rng: np.random.Generator, place: int, other: float | None = None) -> float:
        """A random value of one parameter.

        Args:
            rng: Source of chance.
            place: Which parameter.
            other: If given, a categorical parameter takes any other value than this, and a
                number one that is likely near.
        """
        if self.categorical[place]:
            choices = int(self.choices[place])
            if other is None or choices == 1:
                return float(rng.integers(choices))
            return float((int(other) + rng.integers(1, choices)) % choices)
        if other is None or rng.random() < 0.25:
            return float(rng.random())
        # Steps of all sizes, since nobody knows which one matters.
        step = 10.0 ** rng.uniform(-3, 0) * rng.choice([-1.0, 1.0])
        return float(abs(1 - abs(1 - abs(other + step))))  # reflected at both ends

    def others(self, rng: np.random.Generator, place: int, other: float) -> list[float]:
        """All other choices of a parameter in random order; one other value of a number."""
        if not self.categorical[place]:
            return [self.draw(rng, place, other)]
        steps = 1 + rng.permutation(int(self.choices[place]) - 1)
        return [float((int(other) + step) % self.choices[place]) for step in steps]

    def drawn(self, rng: np.random.Generator) -> Row:
        """A random setting."""
        row = rng.random(len(self))
        whole = np.floor(row * self.choices)
        return np.where(self.categorical, np.minimum(whole, self.choices - 1), row)

    def settle(self, row: Row) -> Row:
        """The row of the setting that a row stands for: steps of a range are rounded to."""
        if self.categorical.all():
            return row
        settled = self.code(self.params(row))
        return row if settled is None else settled

    def bins(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Rows, ``(n, d)``, as small whole numbers: a choice's index or a number's bin."""
        scaled = np.where(self.categorical, rows, np.minimum(rows * _BINS, _BINS - 1))
        return scaled.astype(np.int64)

    def distances(self, rows: NDArray[np.float64], row: Row) -> NDArray[np.float64]:
        """How much rows, ``(n, d)``, differ from one: Hamming's for choices, else absolute."""
        apart = np.abs(rows - row)
        return np.asarray(np.where(self.categorical, apart > 0, apart).sum(axis=1))


class CommonSpace:
    """The parameters that all complete trials have, as Optuna's `IntersectionSearchSpace`.

    That looks again, for every question, at all that was finished since the oldest trial that
    still runs or waits; with several workers these are many.
    """

    def __init__(self) -> None:
        self._common: dict[str, BaseDistribution] | None = None
        self._unfinished: list[int] = []
        self._seen = 0

    def follow(self, trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
        """Take in what is new; the parameters by name, in alphabetical order.

        Args:
            trials: All of the study, by number.
        """
        numbers = [*self._unfinished, *range(self._seen, len(trials))]
        self._seen, self._unfinished = max(self._seen, len(trials)), []
        for number in numbers:
            # another thread may have seen more
            if number >= len(trials) or not trials[number].state.is_finished():
                self._unfinished.append(number)
            elif trials[number].state == TrialState.COMPLETE:
                self._take(trials[number].distributions)
        return dict(self._common or {})

    def _take(self, found: Mapping[str, BaseDistribution]) -> None:
        if self._common is None:
            self._common = dict(sorted(found.items()))
        elif found != self._common:  # fast where the objects are the same
            self._common = {n: d for n, d in self._common.items() if found.get(n) == d}


def _ends(distribution: BaseDistribution) -> tuple[float, float]:
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return _scaled(distribution, distribution.low), _scaled(distribution, distribution.high)


def _scaled(distribution: BaseDistribution, value: float) -> float:
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return math.log(value) if distribution.log else float(value)


def _value(distribution: BaseDistribution, number: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(number)]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = _ends(distribution)
    at = low + number * (high - low)
    value = math.exp(at) if distribution.log else at
    if distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + steps * distribution.step
    if isinstance(distribution, IntDistribution):
        value = round(value)
    return min(max(value, distribution.low), distribution.high)


def violations_of(constraints: Mapping[str, float] | Sequence[float] | None) -> float:
    """How much constraints are violated in all: the sum of what is above zero."""
    if constraints is None:
        return 0.0
    amounts = constraints.values() if isinstance(constraints, Mapping) else constraints
    return float(sum(amount for amount in amounts if amount > 0))
