"""Whole studies of a real pair by sampler: how good is the front after so many trials?

    uv run python tests/benchmarks/studies.py [--trials 500] [--seeds 3] [--quick] [--out FILE]

ResNet-20 × ResNet-56 on CIFAR-10, all 44 switches, 300 validation images; every study has the same
enqueued starts, as `optuna-stitch` makes them. The hypervolume of accuracy and MACs is a share of
that of the front of all studies together, which is the best that is known: the whole space is not.
The last line is JSON: the median share after all trials, by sampler.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import optuna
from rich.table import Table

import optuna_stitch as st
from optuna_stitch.evaluation.stitch_quality import measure_stitches
from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.search.space import enqueue_starts
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.utils.progress import console
from tests.helpers.networks import networks

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, load_pair

from tests.helpers.tabulated import Point, hypervolume

SAMPLERS = {"nsga2": {"population_size": 50}, "linkage": {}, "local_search": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    parser.add_argument("--out", type=Path, help="file for the values of all trials")
    arguments = parser.parse_args()
    trials, seeds = (120, 1) if arguments.quick else (arguments.trials, arguments.seeds)
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pair = load_pair("cifar")
    supernetwork = st.stitch(pair.a, pair.b)
    fits = supernetwork.fit(pair.data.train.take(400))
    val = pair.data.val.take(300)
    stitch_qualities = measure_stitches(supernetwork, fits, val)

    found: dict[str, list[list[Point]]] = {name: [] for name in SAMPLERS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for name, options in SAMPLERS.items():
                # figures are remembered from study to study: only the trials differ
                objective = st.Objective(
                    supernetwork, val, result_cache=f"sqlite:///{folder}/records.db"
                )
                study = optuna.create_study(
                    directions=objective.directions,
                    sampler=make_sampler(name, options, seed=seed, key=objective.key),
                )
                enqueue_starts(study, supernetwork, stitch_qualities=stitch_qualities, seed=seed)
                st.optimize(study, objective, n_trials=trials, batch=10)
                points = [(t.values[0], t.values[1]) for t in study.get_trials(deepcopy=False)]
                found[name].append(points)
                console.print(f"seed {seed}, {name}: {len(points)} trials")
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps(found))
    report(found, trials, objective, supernetwork)


def report(
    found: dict[str, list[list[Point]]],
    trials: int,
    objective: st.Objective,
    supernetwork: st.Supernetwork,
) -> None:
    weaker = min(
        objective.evaluate(networks(supernetwork, [Genotype(side)]))[0]["accuracy"]  # type: ignore[arg-type]
        for side in ("a", "b")
    )
    reference = (weaker - 0.05, 1.01 * supernetwork.subnetwork(Genotype("ensemble")).macs)
    everything = [point for runs in found.values() for points in runs for point in points]
    best = hypervolume(everything, reference)
    at = [count for count in (100, 200, 300, 500, 1000, 2000) if count <= trials]
    table = Table(
        "sampler", *(f"after {count}" for count in at), "best accuracy at parent b's MACs"
    )
    budget = supernetwork.subnetwork(Genotype("b")).macs
    result: dict[str, float] = {}
    for name, runs in found.items():
        cells = []
        for count in at:
            shares = [hypervolume(points[:count], reference) / best for points in runs]
            median = float(np.median(shares))
            cells.append(f"{median:.2%} ({min(shares):.2%} to {max(shares):.2%})")
        result[name] = round(median, 4)
        cheap = [max(point[0] for point in points if point[1] <= budget) for points in runs]
        table.add_row(name, *cells, f"{np.median(cheap):.1%}")
    console.print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
