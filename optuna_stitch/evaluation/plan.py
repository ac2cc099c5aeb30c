"""Many subnetworks as one program.

A value is identified by the operation that makes it and by the values it reads. Whatever several
subnetworks have in common, anywhere, is therefore one value, computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supergraph import Supergraph


def plan(supergraph: Supergraph, genotypes: Sequence[Genotype]) -> Program:
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
    return Program(supergraph.operations, steps, outputs)
