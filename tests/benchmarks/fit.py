"""How good, and how fast, the closed-form fit is on real networks and images.

    uv run python tests/benchmarks/fit.py [--quick] [--pair PAIR] [--tune MINUTES] ...

Prints tables of medians over seeds with their spread; the last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.stitching.genotype import Genotype, single_stitch_genotypes
from optuna_stitch.stitching.layer import Stitch
from tests.helpers.networks import networks

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent))
from pairs import DATA, MISSING, Pair, load_pair, say, spread, state

SHAPE = {"fold": False, "context": False}
PLAIN = {"kernel": 1, "rank_loss": None, "budget": None, "by_position": False, **SHAPE}
DEFAULT = "default: + the image's context, of tokens"
POLISHED = "+ polished, one by one"
VARIANTS: dict[str, dict[str, Any]] = {
    "ridge alone": {**PLAIN, "match_variance": False, "recalibrate": 0},
    "+ variance matching": {**PLAIN, "recalibrate": 0},
    "+ BatchNorm statistics": PLAIN,
    "+ neighbours, ranks, positions": SHAPE,
    "+ finer grids folded": {"context": False},
    DEFAULT: {},
}
EXACT = {"rank_loss": None, "budget": None, "match_variance": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    parser.add_argument("--pair", default="cifar", choices=["cifar", "cnn_vit", "imagenet"])
    parser.add_argument("--tune", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--polish", action="store_true", help="each network, on the same images")
    parser.add_argument("--seeds", type=int, help="3; 1 with --quick")
    parser.add_argument(
        "--sample", type=int, help="number of stitches, drawn at random; all, if absent"
    )
    parser.add_argument("--images", type=int, help="to fit on; 400 with --quick, otherwise 1,000")
    parser.add_argument("--probed", type=int, help="number of stitches that AdamW trains too")
    parser.add_argument("--test", type=int, help="number of test images; all, if absent")
    parser.add_argument("--short", action="store_true", help="only the default fit")
    parser.add_argument("--full-size", action="store_true", help="only the fit of a large pair")
    arguments = parser.parse_args()
    if arguments.full_size:
        print(json.dumps(full_size()))
        return
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    images, test, probed = (400, 300, 3) if arguments.quick else (1000, arguments.test, 12)
    images = arguments.images or images
    probed = probed if arguments.probed is None else arguments.probed
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    measured: dict[str, list[dict[str, float]]] = {}
    speeds: list[dict[str, float]] = []
    for seed in range(seeds):
        pair = load_pair(arguments.pair, seed)
        for variant, options in VARIANTS.items():
            if arguments.short and variant != DEFAULT:
                continue
            supernetwork = st.stitch(pair.a, pair.b)
            count = len(supernetwork.switches)
            if arguments.sample is not None and arguments.sample < count:
                drawn = random.Random(seed).sample(range(count), arguments.sample)
                supernetwork = supernetwork.keep(sorted(drawn))
            began = time.perf_counter()
            train = pair.data.train.take(images)
            supernetwork.fit(train, seed=seed, **options)
            seconds = time.perf_counter() - began
            said = judge(supernetwork, pair, test) | {"seconds": seconds}
            measured.setdefault(variant, []).append(said)
            say(f"seed {seed}, {variant}: {said}")
            if variant == DEFAULT and probed:
                speeds.append(against_adamw(pair, images, probed, seconds, seed))
                say(f"seed {seed}, AdamW: {speeds[-1]}")
            if variant == DEFAULT and arguments.polish:
                measured.setdefault(POLISHED, []).append(polished(supernetwork, pair, train, test))
                say(f"seed {seed}, {POLISHED}: {measured[POLISHED][-1]}")
            if variant == DEFAULT and arguments.tune:
                measured.setdefault(f"tuned, {arguments.tune:g} minutes", []).append(
                    tuned(supernetwork, pair, train, arguments.tune, seed, test)
                )
    title = f"{arguments.pair}, {seeds} seed{'s' if seeds > 1 else ''}"
    report(title, measured, speeds, images, test)


def judge(supernetwork: st.Supernetwork, pair: Pair, test: int | None) -> dict[str, float]:
    """All single-stitch networks on test images, against the weaker parent there."""
    parents = [Genotype("a"), Genotype("b")]
    genotypes = [*parents, *single_stitch_genotypes(supernetwork.switches)]
    evaluator = st.Evaluator(supernetwork, pair.data.test.take(test), ["accuracy"])
    found = evaluator.evaluate(networks(supernetwork, genotypes))
    return figures([entry["accuracy"] for entry in found], supernetwork)


def polished(
    supernetwork: st.Supernetwork, pair: Pair, train: Split, test: int | None
) -> dict[str, float]:
    """The same, each with what follows its stitch refitted; says how many gained by it."""
    data = dataclasses.replace(pair.data, train=train, val=pair.data.val.take(300))
    split = pair.data.test.take(test)
    singles = single_stitch_genotypes(supernetwork.switches)
    asked = networks(supernetwork, [Genotype("a"), Genotype("b"), *singles])
    evaluator = st.Evaluator(supernetwork, split, ["accuracy"])
    accuracies = [entry["accuracy"] for entry in evaluator.evaluate(asked)]
    changes: list[float] = []
    seconds = 0.0
    for place, found in enumerate(asked[2:], start=2):
        began = time.perf_counter()
        done = st.finish(found, data, epochs=0, polish=len(train))
        seconds += time.perf_counter() - began
        around = st.Supernetwork.around(done, pair.a, pair.b)
        (judged,) = st.Evaluator(around, split, ["accuracy"]).evaluate([done])
        changes.append(judged["accuracy"] - accuracies[place])
        accuracies[place] = judged["accuracy"]
        say(f"{found.stitches[0]}: {changes[-1]:+.3f}, {seconds:.0f} s in all")
    better, worse = (sum(sign * change > 0 for change in changes) for sign in (1, -1))
    p_value = binomtest(better, better + worse).pvalue if better + worse else 1.0
    say(
        f"polished, {better} of {len(changes)} networks are better and {worse} worse "
        f"(sign test: p = {p_value:.2g}); the median gains {100 * statistics.median(changes):.2f}"
    )
    return figures(accuracies, supernetwork) | {"seconds": seconds}


def figures(accuracies: Sequence[float], supernetwork: st.Supernetwork) -> dict[str, float]:
    """What a table says of both parents and of all single-stitch networks, in that order."""
    a, b, *crossed = accuracies
    losses = [min(a, b) - accuracy for accuracy in crossed]
    return {
        # a loss of exactly two points is a difference of two rounded numbers
        "within_2_points_share": sum(loss <= 0.02 + 1e-9 for loss in losses) / len(losses),
        "median_loss": 100 * statistics.median(losses),
        "macs": statistics.median(stitch.macs for stitch in supernetwork.stitches) / 1e6,
    }


def tuned(
    supernetwork: st.Supernetwork,
    pair: Pair,
    train: Split,
    minutes: float,
    seed: int,
    test: int | None,
) -> dict[str, float]:
    """Tune for about so long; the number of steps is estimated from a few."""
    fitted = copy.deepcopy(supernetwork.supergraph.stitches.state_dict())
    few = 10
    times = []
    for steps in (1, few):
        began = time.perf_counter()
        supernetwork.tune(train, st.Tuning(steps=steps, seed=seed))
        times.append(time.perf_counter() - began)
        supernetwork.supergraph.stitches.load_state_dict(fitted)
    a_step = max(times[1] - times[0], 1e-3) / (few - 1)
    steps = max(few, int((60 * minutes - times[0]) / a_step))
    began = time.perf_counter()
    supernetwork.tune(train, st.Tuning(steps=steps, seed=seed))
    seconds = time.perf_counter() - began
    said = judge(supernetwork, pair, test) | {"seconds": seconds}
    say(f"seed {seed}, tuned for {steps} steps: {said}")
    return said


def against_adamw(
    pair: Pair, images: int, probed: int, seconds: float, seed: int
) -> dict[str, float]:
    """Our fit against gradients: some stitches, the same shapes, the same images.

    AdamW is given the features, and pays for its steps only; ours pays for reading the features
    too. Its settings are the founding paper's (lr 1e-3, weight decay 1e-5, batch 32). It stops
    when its error is within 1% of ours, asked every 10 epochs, and after 240 epochs otherwise, so
    that the ratio of times is too small rather than too large. Errors are mean squared errors on
    validation images, ours at full rank and before variance matching; our time is that of the
    default fit.
    """
    supernetwork = st.stitch(pair.a, pair.b)
    supernetwork.fit(pair.data.train.take(images), seed=seed, **EXACT)
    count = len(supernetwork.switches)
    chosen = [(2 * place + 1) * count // (2 * probed) for place in range(probed)]
    train = read(supernetwork, pair.data.train.take(images), chosen)
    val = read(supernetwork, pair.data.val.take(200), chosen)
    not_worse, spent = 0, 0.0
    for index in chosen:
        ours = supernetwork.stitches[index]
        theirs = Stitch(ours.source, ours.target, **ours.form)
        goal = error(ours, *val[index])
        for seconds_, reached in adamw(theirs, *train[index], seed, *val[index]):
            spent += seconds_
            if reached <= 1.01 * goal:
                break
        not_worse += goal <= reached
    return {
        "time_ratio": (spent / probed) / (seconds / count),
        "error_not_worse_share": not_worse / probed,
    }


def read(
    supernetwork: st.Supernetwork, split: Split, chosen: Sequence[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Source and target features by stitch."""
    ends = {}
    for index in chosen:
        switch = supernetwork.switches[index]
        other = "a" if switch.into == "b" else "b"
        ends[index] = ((other, switch.source), (switch.into, switch.target))
    wanted = list(dict.fromkeys(end for both in ends.values() for end in both))
    program = supernetwork.supergraph.parents_program(wanted)
    kept: list[list[Tensor]] = [[] for _ in wanted]
    with torch.no_grad():
        for batch in split.batches(supernetwork.views, supernetwork.batch_size):
            for column, value in zip(kept, program.run(batch.images), strict=True):
                column.append(value)
    features = dict(zip(wanted, map(torch.cat, kept), strict=True))
    return {index: (features[x], features[y]) for index, (x, y) in ends.items()}


def adamw(
    stitch: Stitch, source: Tensor, target: Tensor, seed: int, val_source: Tensor, val: Tensor
) -> Iterator[tuple[float, float]]:
    """Train by gradients; yields seconds and error every 10 epochs."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(stitch.parameters(), lr=1e-3, weight_decay=1e-5)
    for _ in range(24):
        for parameter in stitch.parameters():
            parameter.requires_grad_(True)
        began = time.perf_counter()
        for _ in range(10):
            for chosen in torch.randperm(len(source), generator=generator).split(32):
                optimizer.zero_grad()
                F.mse_loss(stitch(source[chosen]), target[chosen]).backward()
                optimizer.step()
        seconds = time.perf_counter() - began
        for parameter in stitch.parameters():
            parameter.requires_grad_(False)
        yield seconds, error(stitch, val_source, val)


@torch.no_grad()
def error(stitch: Stitch, source: Tensor, target: Tensor) -> float:
    return float(F.mse_loss(stitch(source), target))


def full_size() -> dict[str, float]:
    """Every stitch of ResNet-152 × EfficientNet-B4 (random weights), 64 images of noise."""
    view = st.View((3, 224, 224))
    a, b = (st.load_parent(name, view=view) for name in ("resnet152", "efficientnet_b4"))
    supernetwork = st.stitch(a, b, points="all")
    part = {"images": 64}
    data = st.load_data("noise/1000", train=part, val={"images": 1}, test={"images": 1})
    began = time.perf_counter()
    supernetwork.fit(data.train, show_progress_bar=True)
    return {
        "stitches": len(supernetwork.switches),
        "minutes": (time.perf_counter() - began) / 60,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
    }


def report(
    name: str,
    measured: dict[str, list[dict[str, float]]],
    speeds: list[dict[str, float]],
    images: int,
    test: int | None,
) -> None:
    print(
        f"\n{name}: fitted on {images} train images, judged on "
        f"{test or 'all'} test images, {state()}\n"
    )
    print("| fit | within 2 points, % | median loss, points | M MACs a stitch | seconds |")
    print("|---|---|---|---|---|")
    for variant, rows in measured.items():
        cells = [
            spread([100 * row["within_2_points_share"] for row in rows]),
            spread([row["median_loss"] for row in rows]),
            spread([row["macs"] for row in rows]),
            spread([row["seconds"] for row in rows]),
        ]
        print(f"| {variant} | {' | '.join(cells)} |")
    last: dict[str, Any] = {
        "pair": name,
        "within_2_points_share": statistics.median(
            row["within_2_points_share"] for row in measured[DEFAULT]
        ),
        "median_loss": statistics.median(row["median_loss"] for row in measured[DEFAULT]),
    }
    if speeds:
        ratio = [row["time_ratio"] for row in speeds]
        not_worse = [row["error_not_worse_share"] for row in speeds]
        print(
            f"\nAdamW takes {spread(ratio)} times as long to come within 1% of our held-out "
            f"error; ours is not worse on {spread([100 * share for share in not_worse])}% of the "
            "stitches probed."
        )
        last["time_ratio"] = statistics.median(ratio)
        last["error_not_worse_share"] = statistics.median(not_worse)
    print()
    print(json.dumps(last))


if __name__ == "__main__":
    main()
