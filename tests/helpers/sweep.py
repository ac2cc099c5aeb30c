"""Sweeps over timm's zoo with random weights, one row a network or pair, kept as they go."""

from __future__ import annotations

import csv
import random
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.models.parent import load_parent
from optuna_stitch.stitching.cascade import Exit
from optuna_stitch.stitching.genotype import FIRST, OUTPUTS, SIDES, Genotype

CLASSES = 10
Row = dict[str, Any]


def keep_rows(path: Path, keys: Iterable[str], make: Callable[[str], Row]) -> list[Row]:
    """Make a row for each key, append it to a CSV file at once, and skip the keys that it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Row] = {}
    if path.is_file():
        with path.open(newline="") as file:
            rows = {row["key"]: row for row in csv.DictReader(file)}
    for key in keys:
        if key in rows:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = {"key": key, **make(key)}
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not rows:
                writer.writeheader()
            writer.writerow(row)
        rows[key] = {name: str(value) for name, value in row.items()}
    return [rows[key] for key in keys]


def smallest(family: str) -> str:
    """The architecture of a family that has the fewest parameters."""

    def parameters(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())

    return min(timm.list_models(module=family), key=parameters)


def random_images(parent: st.Parent, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *parent.view.input_size, generator=generator)


def capture_row(name: str) -> Row:
    """Capture one network, and compare it with eager at another batch size than the traced one."""
    torch.manual_seed(0)
    row: Row = {"exact": False, "captured_by": "", "seconds": "", "points": 0, "dominators": 0}
    row |= {"blocks": 0, "layouts": "", "excluded": 0, "error": ""}
    try:
        parent = load_parent(name, num_classes=CLASSES)
        start = time.perf_counter()
        graph = parent.graph()
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["captured_by"] = graph.captured_by
        row["points"] = len(graph.points)
        row["dominators"] = sum(point.dominator for point in graph.points)
        row["blocks"] = sum(point.block for point in graph.points)
        row["layouts"] = " ".join(sorted({point.layout.kind for point in graph.points}))
        row["excluded"] = len(graph.excluded)
        images = random_images(parent, 2)
        with torch.inference_mode():
            row["exact"] = torch.equal(graph.module(images), parent.module(images))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def pair_row(pair: str) -> Row:
    """Stitch one pair; check both parents, and five random genotypes."""
    first, second = pair.split(" × ")
    torch.manual_seed(0)
    row: Row = {"matches": 0, "parents_exact": False, "genotypes_finite": 0, "error": ""}
    try:
        a, b = load_parent(first, num_classes=CLASSES), load_parent(second, num_classes=CLASSES)
        supernetwork = st.stitch(a, b)
        row["matches"] = len(supernetwork.matches)
        for stitch in supernetwork.stitches:
            randomize(stitch)
        rng = np.random.default_rng(0)
        with torch.inference_mode():
            views = {view: random_images(parent, 2) for parent in (a, b) for view in [parent.view]}
            images = [views[view] for view in supernetwork.views]
            row["parents_exact"] = all(
                torch.equal(
                    run(supernetwork, Genotype(side), images), parent.module(views[parent.view])
                )
                for side, parent in (("a", a), ("b", b))
            )
            for _ in range(5):
                on = np.flatnonzero(rng.random(len(supernetwork.switches)) < 0.1)
                output = OUTPUTS[rng.integers(len(OUTPUTS))]
                threshold = 0.5 if output in FIRST else None
                genotype = Genotype(output, frozenset(on.tolist()), threshold)
                logits = run(supernetwork, genotype, images)
                row["genotypes_finite"] += int(
                    logits.isfinite().all() and logits.shape == (2, CLASSES)
                )
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def run(supernetwork: st.Supernetwork, genotype: Genotype, images: list[Tensor]) -> Tensor:
    """Run a subnetwork, extracted, on the views that it needs."""
    subnetwork = supernetwork.subnetwork(genotype)
    if genotype.first is not None:
        # random answers to many classes are not sure, so that all go on
        found = Exit(SIDES.index(genotype.first), "probability", 1.0, 1.0)
        subnetwork = subnetwork.with_exit(found)
    network: Any = subnetwork.extract()
    graph = (network if genotype.first is None else network.first).graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(supernetwork.views) == 1:
        return network(*images)  # type: ignore[no-any-return]
    needed = [int(node.name.rsplit("_", 1)[1]) for node in inputs]
    return network(*(images[view] for view in needed))  # type: ignore[no-any-return]


def randomize(stitch: torch.nn.Module) -> None:
    """Give a stitch random weights that keep the scale of what it reads."""
    for parameter in stitch.parameters():
        torch.nn.init.normal_(parameter, std=max(parameter.shape[-1], 1) ** -0.5)


def random_pairs(names: list[str], count: int, seed: int = 0) -> list[str]:
    """Distinct pairs of different networks."""
    rng = random.Random(seed)
    pairs: dict[str, None] = {}
    while len(pairs) < count:
        pairs[" × ".join(rng.sample(names, 2))] = None
    return list(pairs)
