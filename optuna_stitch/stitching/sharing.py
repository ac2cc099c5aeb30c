"""Many subnetworks as one program.

A value is identified by the operation that makes it and by the values it reads. Whatever several
subnetworks have in common, anywhere, is therefore one value, computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supergraph import Supergraph


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
    step_of = [0] * len(supergraph.operations)
    for genotype in genotypes:
        resolved = supergraph.resolve(genotype)
        for place, reads in resolved.steps:
            key = (place, tuple([step_of[read] for read in reads]))
            step = known.get(key)
            if step is None:
                step = known[key] = len(steps)
                steps.append(key)
            step_of[place] = step
        outputs.append(step_of[resolved.output])
    order = _depth_first(steps)
    place_of = [0] * len(order)
    for place, step in enumerate(order):
        place_of[step] = place
    ordered = [(steps[step][0], tuple([place_of[r] for r in steps[step][1]])) for step in order]
    return Program(supergraph, ordered, [place_of[output] for output in outputs])


def _depth_first(steps: Sequence[tuple[int, tuple[int, ...]]]) -> list[int]:
    """An order that ends what it began before it begins another branch, to keep few values alive.

    Of the steps that a value makes ready, the one with the shortest way to its end goes first.
    """
    readers: list[list[int]] = [[] for _ in steps]
    waiting = [0] * len(steps)
    for step, (_, reads) in enumerate(steps):
        distinct = set(reads) if len(reads) > 1 else reads
        waiting[step] = len(distinct)
        for read in distinct:
            readers[read].append(step)
    way = [0] * len(steps)
    for step in range(len(steps) - 1, -1, -1):
        if readers[step]:
            way[step] = 1 + max([way[reader] for reader in readers[step]])
    ready = [step for step, count in enumerate(waiting) if not count]
    ready.sort(key=way.__getitem__, reverse=True)
    order: list[int] = []
    while ready:
        step = ready.pop()
        order.append(step)
        freed = []
        for reader in readers[step]:
            waiting[reader] -= 1
            if not waiting[reader]:
                freed.append(reader)
        if len(freed) > 1:
            freed.sort(key=way.__getitem__, reverse=True)
        ready.extend(freed)
    return order
