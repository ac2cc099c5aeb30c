"""Programs of several subnetworks, as an evaluation runs them with plain kernels."""

from __future__ import annotations

from collections.abc import Sequence

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.program import Program


def plan(supernetwork: st.Supernetwork, genotypes: Sequence[Genotype]) -> Program:
    """One program for all, with the BatchNorm statistics of every path."""
    program = supernetwork.supergraph.program(genotypes)
    supernetwork.supergraph.recalibrate(program)
    return program
