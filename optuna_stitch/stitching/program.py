"""Run a list of operations, and free every value after its last use.

A value is identified by the operation that makes it and by the values it reads. Whatever several
subnetworks have in common, anywhere, is therefore one value, computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.normalization import BatchNorm
from optuna_stitch.stitching.supergraph import Resolved, Supergraph

# Told of a step that is a BatchNorm and of its inputs, before it runs.
Observer = Callable[[int, BatchNorm, Sequence[Any]], None]


class Program:
    """Operations in order of computation.

    Args:
        supergraph: The supernetwork's operations.
        steps: (operation, the steps whose values it reads), in order.
        outputs: The steps whose values are returned.

    Attributes:
        outputs: As given.
        places: The operation of every step.
        stitched_norms: The steps that are BatchNorms downstream of a stitch.
        statistics: Mean and variance that steps were given by `normalize`.
    """

    def __init__(
        self,
        supergraph: Supergraph,
        steps: Sequence[tuple[int, tuple[int, ...]]],
        outputs: Sequence[int],
    ) -> None:
        self.outputs = list(outputs)
        self.places = [place for place, _ in steps]
        self.statistics: dict[int, tuple[Tensor, Tensor]] = {}
        self._operations = [supergraph.operations[place] for place in self.places]
        self._runs = [operation.run for operation in self._operations]
        self._reads = [reads for _, reads in steps]
        self._freed = _last_uses(steps, set(outputs))
        stitched: list[bool] = []
        for operation, (_, reads) in zip(self._operations, steps, strict=True):
            stitched.append(operation.owner == "stitch" or any(stitched[read] for read in reads))
        self.stitched_norms = {
            step
            for step, operation in enumerate(self._operations)
            if stitched[step] and operation.norm is not None
        }

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image of all steps."""
        return sum(operation.macs for operation in self._operations)

    def normalize(self, step: int, mean: Tensor, variance: Tensor) -> None:
        """Give a BatchNorm other statistics, ``(C,)`` each."""
        norm = self._operations[step].norm
        assert norm is not None, step
        self.statistics[step] = mean, variance
        self._runs[step] = norm.run(mean, variance)

    def run(self, images: Sequence[Tensor], observe: Observer | None = None) -> list[Any]:
        """Compute the outputs on one batch.

        Args:
            images: One tensor ``(N, C, H, W)`` per view of the supernetwork.
            observe: Called before every BatchNorm; it may `normalize` that step.
        """
        values: dict[int, Any] = {}
        for step, operation in enumerate(self._operations):
            if operation.owner == "input":
                values[step] = images[operation.number]
            else:
                inputs = [values[read] for read in self._reads[step]]
                if observe is not None and operation.norm is not None:
                    observe(step, operation.norm, inputs)
                values[step] = self._runs[step](*inputs)
            for dead in self._freed[step]:
                del values[dead]
        return [values[output] for output in self.outputs]


def program_of(
    supergraph: Supergraph, resolved: Resolved, outputs: Sequence[int] | None = None
) -> Program:
    """The program of one genotype.

    Args:
        supergraph: The supernetwork's operations.
        resolved: What the genotype computes.
        outputs: Operations whose values are wanted; the genotype's own output, if None.
    """
    wanted = [resolved.output] if outputs is None else list(outputs)
    reads_of = dict(resolved.steps)
    needed = set(wanted)
    for place, reads in reversed(resolved.steps):
        if place in needed:
            needed.update(reads)
    step_of = {
        place: step
        for step, place in enumerate(place for place, _ in resolved.steps if place in needed)
    }
    steps = [(place, tuple(step_of[read] for read in reads_of[place])) for place in step_of]
    return Program(supergraph, steps, [step_of[place] for place in wanted])


def shared_program(supergraph: Supergraph, genotypes: Sequence[Genotype]) -> Program:
    """What a set of genotypes computes, each distinct value once.

    Args:
        supergraph: The supernetwork's operations.
        genotypes: The subnetworks.

    Returns:
        A program with one output per genotype; equal subnetworks share one.
    """
    steps: list[tuple[int, tuple[int, ...]]] = []
    outputs: list[int] = []
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    for genotype in genotypes:
        resolved = supergraph.resolve(genotype)
        step_of: dict[int, int] = {}
        for place, reads in resolved.steps:
            key = (place, tuple([step_of[read] for read in reads]))
            step = known.get(key)
            if step is None:
                step = known[key] = len(steps)
                steps.append(key)
            step_of[place] = step
        outputs.append(step_of[resolved.output])
    return Program(supergraph, steps, outputs)


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
