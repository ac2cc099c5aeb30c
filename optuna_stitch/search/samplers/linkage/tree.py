"""What goes with what: mutual information, and the tree of what to exchange together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mutual_information(
    settings: NDArray[np.int64], choices: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Normalized mutual information of every two parameters.

    ``I(X; Y) / H(X, Y)``, which is 0 for independent parameters and 1 for those that determine
    each other: Kvalseth, "Entropy and correlation: some comments", 1987.

    Args:
        settings: ``(n, d)``, whole numbers from 0.
        choices: How many values each parameter has, ``(d,)``.

    Returns:
        ``(d, d)``, symmetric.
    """
    count, width = settings.shape
    starts = np.concatenate([[0], np.cumsum(choices)])
    indicators = np.zeros((count, starts[-1]), np.float32)
    indicators[np.arange(count)[:, None], starts[:-1] + settings] = 1
    together = (indicators.T @ indicators).astype(np.int64)
    # Counts are whole numbers up to n: their entropies are looked up instead of computed.
    shares = np.arange(count + 1) / count
    parts = np.zeros(count + 1)
    parts[1:] = -shares[1:] * np.log(shares[1:])
    terms = parts[together]
    joint = np.add.reduceat(np.add.reduceat(terms, starts[:-1], axis=0), starts[:-1], axis=1)
    alone = joint.diagonal()  # of a parameter with itself the joint entropy is its own
    shared = alone[:, None] + alone[None, :] - joint
    return np.where(joint > 1e-12, shared / np.maximum(joint, 1e-12), 0.0).reshape(width, width)


def linkage_tree(similarity: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Subsets of parameters that belong together, by average linkage (UPGMA).

    Thierens and Bosman, "Optimal mixing evolutionary algorithms", 2011, section 4; the clustering
    is that of Sokal and Michener, 1958.

    Args:
        similarity: Of every two, ``(d, d)``, symmetric.

    Returns:
        Every node of the tree but the root, single parameters first.
    """
    count = len(similarity)
    subsets = [np.array([place], np.int64) for place in range(count)]
    near = similarity.astype(np.float64, copy=True)
    np.fill_diagonal(near, -np.inf)
    node, size = list(range(count)), np.ones(count)
    best = near.argmax(axis=1) if count else np.empty(0, np.int64)
    nearness = near[np.arange(count), best]
    for _ in range(count - 2):
        one = int(nearness.argmax())
        other = int(best[one])
        merged = (size[one] * near[one] + size[other] * near[other]) / (size[one] + size[other])
        merged[[one, other]] = -np.inf
        near[one], near[:, one] = merged, merged
        near[other], near[:, other] = -np.inf, -np.inf
        size[one] += size[other]
        subsets.append(np.concatenate([subsets[node[one]], subsets[node[other]]]))
        node[one] = len(subsets) - 1
        # Only rows whose nearest changed are searched again; none has come nearer than it was.
        stale = np.flatnonzero((best == one) | (best == other))
        stale = np.union1d(stale, [one])
        best[stale] = near[stale].argmax(axis=1)
        nearness[stale] = near[stale, best[stale]]
        nearness[other] = -np.inf
    return subsets
