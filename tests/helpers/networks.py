"""Subnetworks by their genotypes."""

from __future__ import annotations

from collections.abc import Iterable

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype


def networks(supernetwork: st.Supernetwork, genotypes: Iterable[Genotype]) -> list[st.Subnetwork]:
    return [supernetwork.subnetwork(genotype) for genotype in genotypes]
