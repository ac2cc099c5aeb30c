"""Many subnetworks as one program, ready to be evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.program import Program, shared_program
from optuna_stitch.stitching.supernetwork import Supernetwork


def plan(supernetwork: Supernetwork, genotypes: Sequence[Genotype]) -> Program:
    """What a set of genotypes computes, each distinct value once.

    Args:
        supernetwork: Whose genotypes.
        genotypes: The subnetworks.

    Returns:
        A program with one output per genotype; equal subnetworks share one. BatchNorms downstream
        of a stitch have the statistics that the supernetwork's calibration images give them.
    """
    program = shared_program(supernetwork.supergraph, genotypes)
    supernetwork.recalibrate(program)
    return program
