"""Many subnetworks as one program, and how many fit into memory together."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.sharing import shared_program
from optuna_stitch.stitching.supernetwork import Supernetwork

_BYTES = 4  # of a number


@contextmanager
def no_collection() -> Iterator[None]:
    """Hold the garbage collector back: planning makes many small objects, and no cycles.

    A full collection amid them looks through every object of the process, for longer than the
    planning takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class Plan:
    """Subnetworks that are computed together.

    Args:
        genotypes: The subnetworks.
        program: Computes them, one output each; BatchNorms have their parents' statistics.
    """

    genotypes: list[Genotype]
    program: Program


def divide(
    supernetwork: Supernetwork,
    genotypes: Sequence[Genotype],
    *,
    budget: float = math.inf,
    batch_size: int,
    kept: int = 0,
) -> list[Plan]:
    """Divide genotypes among plans that stay within a memory budget.

    Subnetworks that share much stay together. A single one is never refused.

    Args:
        supernetwork: Whose genotypes.
        genotypes: The subnetworks.
        budget: Bytes of the values that are alive at once, and of what is kept.
        batch_size: Images per batch.
        kept: Numbers that are kept of each subnetwork, besides.

    Returns:
        As few plans as halving gives.
    """
    program = shared_program(supernetwork.supergraph, genotypes)
    needed = _BYTES * (program.elements * batch_size + kept * len(genotypes))
    if needed <= budget or len(genotypes) == 1:
        return [Plan(list(genotypes), program)]
    # subnetworks that end next to each other have most of their way in common
    ends = dict(zip(genotypes, program.outputs, strict=True))
    ordered = sorted(genotypes, key=ends.__getitem__)
    half = len(ordered) // 2
    return [
        part
        for some in (ordered[:half], ordered[half:])
        for part in divide(supernetwork, some, budget=budget, batch_size=batch_size, kept=kept)
    ]
