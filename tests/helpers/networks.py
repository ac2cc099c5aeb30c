"""Subnetworks by their genotypes."""

from __future__ import annotations

from collections.abc import Iterable

import optuna_stitch as st


def networks(
    supernetwork: st.Supernetwork, genotypes: Iterable[st.Genotype]
) -> list[st.Subnetwork]:
    return [supernetwork.subnetwork(genotype) for genotype in genotypes]
