"""Which settings are good: fronts, how crowded they are, and scalarizations.

Losses are minimized throughout. What violates constraints less is better, whatever its losses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
Places = NDArray[np.int64]


def first_front(losses: Losses) -> Places:
    """Those that no other dominates.

    Args:
        losses: ``(n, m)``.

    Returns:
        Their places; of equal ones all.
    """
    left = np.lexsort(losses.T[::-1])
    found: list[NDArray[np.int64]] = []
    while len(left):
        # The smallest in lexicographic order: whatever dominates it would come before it.
        best = losses[left[0]]
        own = losses[left]
        equal = (own == best).all(axis=1)
        found.append(left[equal])
        left = left[(own < best).any(axis=1)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def best_places(losses: Losses, violations: NDArray[np.float64], count: int) -> list[Places]:
    """The best settings, front by front, until there are enough.

    Args:
        losses: ``(n, m)``.
        violations: ``(n,)``; those above zero come after all others, by their size.
        count: How many at least, if there are as many.

    Returns:
        Places of every front. A front of those that violate constraints is of equal violation.
    """
    fronts: list[Places] = []
    left = np.flatnonzero(violations <= 0)
    while len(left) and count > 0:
        front = left[first_front(losses[left])]
        fronts.append(front)
        count -= len(front)
        left = np.setdiff1d(left, front, assume_unique=True)
    if count > 0:
        wrong = np.flatnonzero(violations > 0)
        wrong = wrong[np.argsort(violations[wrong], kind="stable")][:count]
        fronts += [wrong[violations[wrong] == v] for v in np.unique(violations[wrong])]
    return fronts


def crowding(losses: Losses) -> NDArray[np.float64]:
    """How far apart neighbours on a front are: the crowding distance of NSGA-II.

    Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, section
    III.B.

    Args:
        losses: Of a front, ``(n, m)``.

    Returns:
        ``(n,)``, infinite at an objective's ends.
    """
    found = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        own = column[order]
        width = own[-1] - own[0]
        if not (np.isfinite(width) and width > 0):
            continue
        found[order[1:-1]] += (own[2:] - own[:-2]) / width
        found[order[[0, -1]]] = np.inf
    return found


def normalized(losses: Losses) -> Losses:
    """Each objective between 0, its best, and 1; infinite losses are 1 or 0."""
    finite = np.where(np.isfinite(losses), losses, np.nan)
    known = np.isfinite(losses).any(axis=0)
    low = np.where(known, np.nanmin(np.where(known, finite, 0.0), axis=0), 0.0)
    high = np.where(known, np.nanmax(np.where(known, finite, 0.0), axis=0), 1.0)
    width = np.where(high > low, high - low, 1.0)
    return np.asarray(np.clip((losses - low) / width, 0.0, 1.0))


def tchebycheff(losses: Losses, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weighted Tchebycheff scalarization, ``max_j w_j f_j``, augmented by a little of the sum.

    Steuer and Choo, "An interactive weighted Tchebycheff procedure", 1983; the sum orders those
    that are equal by the maximum.

    Args:
        losses: Normalized, ``(n, m)``.
        weights: ``(m,)``.
    """
    weighted = losses * weights
    return np.asarray(
        weighted.max(axis=1) + 1e-3 * weighted.sum(axis=1) + 1e-6 * losses.sum(axis=1)
    )
