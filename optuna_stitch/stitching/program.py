"""Run a list of operations, and free every value after its last use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from optuna_stitch.stitching.supergraph import Operation


class Program:
    """Operations in order of computation.

    Args:
        operations: The supernetwork's operations.
        steps: (operation, the steps whose values it reads), in order.
        outputs: The steps whose values are returned.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        steps: Sequence[tuple[int, tuple[int, ...]]],
        outputs: Sequence[int],
    ) -> None:
        self.outputs = list(outputs)
        self._steps = [(operations[place], reads) for place, reads in steps]
        self._freed = _last_uses(steps, set(outputs))

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image of all steps."""
        return sum(operation.macs for operation, _ in self._steps)

    def run(self, images: Sequence[Tensor]) -> list[Any]:
        """Compute the outputs on one batch.

        Args:
            images: One tensor ``(N, C, H, W)`` per view of the supernetwork.
        """
        values: dict[int, Any] = {}
        for step, (operation, reads) in enumerate(self._steps):
            if operation.owner == "input":
                values[step] = images[operation.number]
            else:
                values[step] = operation.run(*[values[read] for read in reads])
            for dead in self._freed[step]:
                del values[dead]
        return [values[output] for output in self.outputs]


def _last_uses(steps: Sequence[tuple[int, tuple[int, ...]]], kept: set[int]) -> list[list[int]]:
    """By step, the values that nothing needs any more afterwards."""
    last = list(range(len(steps)))
    for step, (_, reads) in enumerate(steps):
        for read in reads:
            last[read] = step
    freed: list[list[int]] = [[] for _ in steps]
    for value, step in enumerate(last):
        if value not in kept:
            freed[step].append(value)
    return freed
