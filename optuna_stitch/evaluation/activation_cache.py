"""Keep values of earlier plans that are expensive to compute and small to hold.

A search asks for near-copies of what it judged before, so that most of a new subnetwork is a path
that an earlier one had too. What a point holds under a genotype depends on nothing but the
stitches on the way to it; a value is known by these. What is worth its room is decided as in
GreedyDual-Size (Cao and Irani, "Cost-aware WWW proxy caching algorithms", USITS 1997): by the
multiply-accumulates that led to it over its size, with what was not used for long giving way.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supergraph import Supergraph

_BYTES = 4  # of a number

# A point, and the stitches on the way to it, one bit each.
_Key = tuple[int, int]


@dataclass
class KeptValue:
    """A value on all images, batch by batch: those of the split, and of the calibration."""

    size: int
    worth: float
    batches: list[Tensor] = field(default_factory=list)
    calibration: list[Tensor] = field(default_factory=list)


class ActivationCache:
    """ActivationCache at points, kept within a budget.

    Args:
        supergraph: The operations.
        budget: Bytes.
        images: Images in the split and in the calibration.

    Attributes:
        kept: Values by point and by the stitches on the way to it.
        points: The places whose values may be kept.
    """

    def __init__(self, supergraph: Supergraph, budget: float, images: int) -> None:
        self.points = supergraph.points
        self._macs = [operation.macs for operation in supergraph.operations]
        self._budget = budget
        self._images = images
        self.kept: dict[_Key, KeptValue] = {}
        self._age = 0.0

    def reuse(self, program: Program) -> Reuse:
        """Give a program what is kept, and ask it for what is worth keeping.

        Args:
            program: What is to be run; its given values and its outputs change.
        """
        cost: list[int] = []
        at_points: dict[int, _Key] = {}
        for step, place in enumerate(program.places):
            before = [cost[read] for read in program.reads[step]]
            cost.append(self._macs[place] + (max(before) if before else 0))
            if place in self.points:
                at_points[step] = place, program.paths[step]
        program.given = frozenset(s for s, key in at_points.items() if key in self.kept)
        running = set(program.steps)
        given: dict[int, KeptValue] = {}
        asked: dict[_Key, tuple[int, KeptValue]] = {}
        for step, key in at_points.items():
            size = _BYTES * program.operations[step].elements * self._images
            if step not in running or not size:
                continue
            worth = self._age + cost[step] / size
            if step in program.given:
                given[step] = self.kept[key]
                given[step].worth = worth  # used again: as young as a new one
            else:
                asked[key] = step, KeptValue(size, worth)
        every = {**self.kept, **{key: kept for key, (_, kept) in asked.items()}}
        chosen = self._choose(every)
        new = {asked[key][0]: (key, kept) for key, kept in chosen.items() if key in asked}
        program.outputs = [*program.outputs, *new]
        return Reuse(self, chosen, given, new)

    def give_way(self, *, wholly: bool) -> bool:
        """Forget what is kept, and keep half as much from now on.

        Args:
            wholly: Whether to keep nothing from now on.

        Returns:
            Whether something was, or would have been, kept.
        """
        had, self.kept = self._budget > 0, {}
        self._budget = 0.0 if wholly else self._budget / 2
        return had

    def _choose(self, every: Mapping[_Key, KeptValue]) -> dict[_Key, KeptValue]:
        """The most worthy that fit."""
        chosen: dict[_Key, KeptValue] = {}
        used = 0
        for key, kept in sorted(every.items(), key=lambda item: -item[1].worth):
            if kept.size > self._budget:
                continue
            if used + kept.size > self._budget:
                self._age = max(self._age, kept.worth)
                break
            chosen[key] = kept
            used += kept.size
        return chosen


class Reuse:
    """What one run takes from the values that are kept, and what it adds to them.

    Args:
        values: Where they are kept.
        chosen: What shall be kept after the run.
        given: What the run takes, by step.
        new: What it adds, by step.
    """

    def __init__(
        self,
        values: ActivationCache,
        chosen: dict[_Key, KeptValue],
        given: dict[int, KeptValue],
        new: dict[int, tuple[_Key, KeptValue]],
    ) -> None:
        self._values = values
        self._chosen = chosen
        self._given = given
        self._new = new

    @property
    def steps(self) -> list[int]:
        """The steps whose values are to be kept, in the order in which `add` takes them."""
        return list(self._new)

    def given(self, batch: int) -> dict[int, Tensor]:
        """The values that are known for a batch of the split, by step.

        Args:
            batch: Number of the batch.
        """
        return {step: kept.batches[batch] for step, kept in self._given.items()}

    def calibration(self, batch: int) -> dict[int, Tensor]:
        """The values that are known for a batch of the calibration, by step.

        Args:
            batch: Number of the batch.
        """
        return {step: kept.calibration[batch] for step, kept in self._given.items()}

    def add(self, values: Sequence[Tensor]) -> None:
        """Keep the values of a batch of the split.

        Args:
            values: One per entry of `steps`, in its order.
        """
        for (_, kept), value in zip(self._new.values(), values, strict=True):
            kept.batches.append(_own(value))

    def add_calibration(self, values: Sequence[Tensor]) -> None:
        """Keep the values of a batch of the calibration.

        Args:
            values: One per entry of `steps`, in its order.
        """
        for (_, kept), value in zip(self._new.values(), values, strict=True):
            kept.calibration.append(_own(value))

    def only(self, steps: Container[int]) -> None:
        """Keep nothing but what these steps compute anyway; the others stopped.

        Args:
            steps: What is computed anyway.
        """
        dropped = [step for step in self._new if step not in steps]
        for step in dropped:
            key, _ = self._new.pop(step)
            del self._chosen[key]

    def finish(self) -> None:
        """All images were run: what was chosen takes the place of what was kept."""
        self._values.kept = self._chosen


def _own(value: Tensor) -> Tensor:
    """A value without the rest of what it may be a part of."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
