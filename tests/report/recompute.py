"""Compute a report's numbers again from its raw predictions, with none of the package's code.

    python tests/report/recompute.py RUN

reads ``predictions.csv`` and ``front.csv`` of a run's folder, and says by how much they differ.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom, norm


def largest_difference(run: Path) -> float:
    """Between what the report says and what follows from the raw predictions."""
    raw = pd.read_csv(run / "predictions.csv", index_col="image")
    said = pd.read_csv(run / "front.csv").set_index("name")
    right = {name: (raw[name] == raw["label"]).to_numpy() for name in said.index}
    differences: list[float] = []
    for name, row in said.iterrows():
        share = right[str(name)].mean()
        low, high = _wilson(share, len(raw))
        differences += [
            abs(row["test_accuracy"] - share),
            abs(row["test_accuracy_low"] - low),
            abs(row["test_accuracy_high"] - high),
        ]
    differences += _claims(said, right)
    return max(differences)


def _claims(said: pd.DataFrame, right: dict[str, np.ndarray]) -> list[float]:
    """Differences to baselines, and their p-values: McNemar's, then Holm's for all together."""
    names = {_column(name): name for name in said.index}
    family: list[tuple[float, float]] = []  # p-value here, and as the report says
    differences = []
    for name, row in said[said["kind"] == "stitched"].iterrows():
        for column in said.columns:
            if not column.startswith("p_value_") or math.isnan(row[column]):
                continue
            rival = names[column.removeprefix("p_value_")]
            one, other = right[str(name)], right[rival]
            only, against = int((one & ~other).sum()), int((~one & other).sum())
            tail = binom.cdf(min(only, against), only + against, 0.5)
            family.append((min(1.0, 2 * tail) if only != against else 1.0, row[column]))
            difference = row[column.replace("p_value_", "accuracy_minus_")]
            differences.append(abs(difference - (one.mean() - other.mean())))
    family.sort()
    largest = 0.0
    for place, (p, reported) in enumerate(family):
        largest = max(largest, min(1.0, p * (len(family) - place)))
        differences.append(abs(largest - reported))
    return differences


def _wilson(share: float, images: int) -> tuple[float, float]:
    z = norm.ppf(0.975)
    middle = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return (middle - half) / (1 + z * z / images), (middle + half) / (1 + z * z / images)


def _column(name: str) -> str:
    return name.replace(" ", "_").replace("%", "")


if __name__ == "__main__":
    print(f"largest difference: {largest_difference(Path(sys.argv[1])):.2g}")
