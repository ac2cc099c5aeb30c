"""How much memory an evaluation takes beside the supernetwork, against its budget.

    uv run python tests/benchmarks/memory.py [--memory GIB ...]

ResNet-50 × ResNeXt-50 with random weights, 24 random subnetworks on 20 images of 224 pixels, for
several budgets. What counts is the growth of the process's resident memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from tests.helpers.networks import networks

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import sparse
from pairs import state

IMAGES, NETWORKS = 20, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=float, nargs="+", default=[4.0, 0.6, 0.2])
    arguments = parser.parse_args()
    a, b = (
        st.load_parent(timm.create_model(name), name=name, input_size=224)
        for name in ("resnet50", "resnext50_32x4d")
    )
    supernetwork = st.stitch(a, b)
    split = st.load_data("noise/1000", train={"images": IMAGES}, val={"images": IMAGES}).val
    genotypes = sparse(supernetwork, NETWORKS)
    taken: dict[str, float] = {}
    print(f"{state()}\n\n| budget, GiB | taken, GiB |\n|---|---|")
    for memory in arguments.memory:
        evaluator = st.Evaluator(supernetwork, split, memory=memory, batch_size=IMAGES)
        evaluator.evaluate(
            networks(supernetwork, [Genotype("ensemble")])
        )  # makes what is made once
        with watched() as grown:
            evaluator.evaluate(networks(supernetwork, genotypes))
        taken[str(memory)] = round(grown[0], 3)
        print(f"| {memory:g} | {grown[0]:.2f} |")
    print("\n" + json.dumps({"taken_gib": taken}))


@contextmanager
def watched() -> Iterator[list[float]]:
    """Watch by how many GiB the process grows, at most; in the list's only entry."""
    before, grown, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            grown[0] = max(grown[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()


def resident() -> float:
    """GiB of memory that the process holds (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


if __name__ == "__main__":
    main()
