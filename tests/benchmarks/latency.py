"""How well added-up latencies rank subnetworks, against timing whole networks.

    uv run python tests/benchmarks/latency.py [--pair PAIR] [--batch-size N] [--threads N]

Kendall's tau over 100 random subnetworks, each timed as an extracted module; what two halves of
these timings agree with each other says how much could be reached. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from scipy.stats import kendalltau

import optuna_stitch as st
from optuna_stitch.evaluation.latency import measure_latency
from optuna_stitch.evaluation.settings import LatencySettings
from optuna_stitch.stitching.genotype import Genotype

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, load_pair, say, state

NETWORKS, ROUNDS = 100, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="cifar", choices=["cifar", "cnn_vit", "imagenet"])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    pair = load_pair(arguments.pair)
    supernetwork = st.stitch(pair.a, pair.b)
    torch.set_num_threads(arguments.threads)
    genotypes = draw(supernetwork)
    began = time.perf_counter()
    latencies = measure_latency(
        supernetwork.supergraph,
        LatencySettings(batch_size=arguments.batch_size, threads=arguments.threads),
    )
    say(f"operations timed in {time.perf_counter() - began:.1f} s")
    added = [latencies(supernetwork.subnetwork(genotype)) for genotype in genotypes]
    modules = [supernetwork.subnetwork(genotype).extract() for genotype in genotypes]
    images = [torch.randn(arguments.batch_size, *view.input_size) for view in supernetwork.views]
    times: list[list[float]] = [[] for _ in modules]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for column, module in zip(times, modules, strict=True):
                began = time.perf_counter()
                module(*images)
                column.append(1e3 * (time.perf_counter() - began))
    whole = [statistics.median(column) for column in times]
    halves = [[statistics.median(column[k::2]) for column in times] for k in (0, 1)]
    macs = [supernetwork.subnetwork(genotype).macs for genotype in genotypes]
    last = {
        "pair": arguments.pair,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "tau": round(float(kendalltau(added, whole).statistic), 3),
        "tau_of_halves": round(float(kendalltau(*halves).statistic), 3),
        "tau_of_macs": round(float(kendalltau(macs, whole).statistic), 3),
        "added_over_whole": round(
            statistics.median(a / w for a, w in zip(added, whole, strict=True)), 3
        ),
    }
    print(f"{state()}: {NETWORKS} subnetworks of {pair.a.name} × {pair.b.name}")
    print(json.dumps(last))


def draw(supernetwork: st.Supernetwork) -> list[Genotype]:
    """Random distinct subnetworks with one to four stitches on."""
    rng = random.Random(0)
    found: dict[Genotype, None] = {}
    while len(found) < NETWORKS:
        on = rng.sample(range(len(supernetwork.switches)), rng.randint(1, 4))
        output = rng.choice(("a", "b", "ensemble"))
        found[supernetwork.subnetwork(Genotype(output, frozenset(on))).genotype] = None
    return list(found)


if __name__ == "__main__":
    main()
