"""How many subnetworks a minute are judged, against each one alone in a loop.

    uv run python tests/benchmarks/evaluate.py [--quick] [--record]

The subnetworks are those that an NSGA-II study of the pair ResNet-20 × ResNet-56 on CIFAR-10 asked
for (population 50, 1,000 trials), kept in ``candidates.json``; ``--record`` runs that study again.
The baseline extracts each as a plain module, and runs it in eager mode on the same batches. Prints
medians with their spread; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Evaluation
from optuna_stitch.evaluation.engine import Engine
from optuna_stitch.evaluation.kernels import _Folded
from optuna_stitch.search.space import enqueue_starts
from optuna_stitch.search.worker import optimize
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.layer import Stitch, read_part
from optuna_stitch.stitching.program import Program
from tests.helpers.networks import networks

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, Pair, load_pair, say, spread, state

CANDIDATES = Path(__file__).with_name("candidates.json")
POPULATION, TRIALS, IMAGES, BATCH = 50, 1000, 1000, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    parser.add_argument("--record", action="store_true", help="run the study again")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    pair = load_pair("cifar")
    supernetwork = st.stitch(pair.a, pair.b)
    supernetwork.fit(pair.data.train.take(400))
    if arguments.record:
        record(supernetwork, pair)
    candidates = read(supernetwork)
    val = pair.data.val.take(IMAGES)
    next(val.batches(supernetwork.views, BATCH))  # decodes them all

    print(f"\nresnet20 × resnet56, {IMAGES} validation images, batches of {BATCH}, {state()}\n")
    alone, floor, together = against_loop(
        supernetwork,
        val,
        candidates,
        generations=3 if arguments.quick else 6,
        quick=arguments.quick,
    )
    raced = whole_search(supernetwork, val, candidates, statistics.median(alone), arguments.quick)
    last: dict[str, Any] = {
        "throughput_ratio": statistics.median(together["fast"]),
        "throughput_ratio_plain": statistics.median(together["plain"]),
        **raced,
        "floor_ratio": statistics.median(floor),
    }
    last["overhead_ms"] = growth(arguments.quick)
    print(json.dumps(last))


def record(supernetwork: st.Supernetwork, pair: Pair) -> None:
    """Run the study, and write down what it asked for."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = st.Objective(supernetwork, pair.data.val.take(300))
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=0)
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    enqueue_starts(study, supernetwork, population=POPULATION)
    optimize(study, objective, n_trials=TRIALS, batch=POPULATION, show_progress_bar=True)
    asked = [supernetwork.subnetwork(trial.params).genotype for trial in study.trials]
    lines = [" ".join([g.output, *map(str, sorted(g.on))]) for g in asked]
    switches = [switch.name for switch in supernetwork.switches]
    CANDIDATES.write_text(json.dumps({"switches": switches, "candidates": lines}, indent=0) + "\n")


def read(supernetwork: st.Supernetwork) -> list[Genotype]:
    held = json.loads(CANDIDATES.read_text())
    if held["switches"] != [switch.name for switch in supernetwork.switches]:
        sys.exit("The pair is stitched in other places than it was; run this with --record.")
    parts = [line.split() for line in held["candidates"]]
    return [Genotype(output, frozenset(map(int, on))) for output, *on in parts]


def against_loop(
    supernetwork: st.Supernetwork,
    val: Split,
    candidates: Sequence[Genotype],
    *,
    generations: int,
    quick: bool,
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """Plans of 50 against the loop, generation by generation, and against bare kernels.

    The loop's time for a generation is that of a sample of it, drawn at random, scaled up.
    """
    rng = random.Random(0)
    sample_size = 5 if quick else 16
    alone: list[float] = []
    floor: list[float] = []
    together: dict[str, list[float]] = {"plain": [], "fast": []}
    if not quick:
        together["bfloat16"] = []
    distinct: list[float] = []
    shared: list[float] = []
    places = [round(1 + k * 18 / max(generations - 1, 1)) for k in range(generations)]
    for place in places:
        asked = list(candidates[POPULATION * place : POPULATION * (place + 1)])
        sample = rng.sample(range(POPULATION), sample_size)
        drawn = [asked[i] for i in sample]
        seconds, answers = timed(loop, supernetwork, val, drawn)
        alone.append(seconds / sample_size)
        for kernels, ratios in together.items():
            evaluator = st.Evaluator(supernetwork, val, kernels=kernels, batch_size=BATCH)
            taken, _ = timed(judge, evaluator, asked)
            ratios.append(alone[-1] * POPULATION / taken)
            if kernels == "fast":
                own = list({s.genotype: None for s in networks(supernetwork, asked)})
                floor.append(taken / bare(supernetwork, own))
                distinct.append(len(own))
                macs = sum(supernetwork.subnetwork(genotype).macs for genotype in own)
                shared.append(macs / supernetwork.supergraph.program(own).macs)
            if kernels == "plain":
                exact = evaluator.logits(networks(supernetwork, drawn))
                for logits, expected in zip(exact, answers, strict=True):
                    assert torch.equal(logits, expected), "not exact"
        say(f"generation {place}: loop {alone[-1]:.2f} s a network, {together}")
    print("| 50 candidates in one plan, against the loop | times as many a minute |")
    print("|---|---|")
    for kernels, ratios in together.items():
        exactly = ", bit for bit the loop's logits" if kernels == "plain" else ""
        print(f"| {kernels} kernels{exactly} | {spread(ratios)} |")
    print(
        f"\nOf 50 candidates {spread(distinct)} are distinct; they share {spread(shared)} times "
        f"the work. The plan takes {spread(floor)} times as long as its convolutions and matrix "
        "products run bare.\n"
    )
    return alone, floor, together


def loop(supernetwork: st.Supernetwork, val: Split, genotypes: Sequence[Genotype]) -> list[Tensor]:
    """What anybody would do: take each network out, and run it."""
    answers: list[Tensor] = []
    for genotype in genotypes:
        module = supernetwork.subnetwork(genotype).extract()
        with torch.inference_mode():
            batches = val.batches(supernetwork.views, BATCH)
            answers.append(torch.cat([module(*batch.images) for batch in batches]))
    return answers


def whole_search(
    supernetwork: st.Supernetwork,
    val: Split,
    candidates: Sequence[Genotype],
    alone: float,
    quick: bool,
) -> dict[str, float]:
    """The study's candidates in their order, with memory, with and without racing."""
    seconds: dict[str, float] = {}
    fronts: dict[str, set[Genotype]] = {}
    stopped = 0
    for name, racing in (("memory", None), ("racing", st.Racing())):
        if quick and racing is None:
            continue
        evaluator = st.Evaluator(supernetwork, val, batch_size=BATCH, racing=racing)

        def judge(evaluator: st.Evaluator) -> list[Evaluation]:
            found: list[Evaluation] = []
            for start in range(0, len(candidates), POPULATION):
                found += evaluator.evaluate(
                    networks(supernetwork, candidates[start : start + POPULATION])
                )
            return found

        seconds[name], evaluations = timed(judge, evaluator)
        fronts[name] = front(supernetwork, candidates, evaluations)
        stopped = len({g for g, e in zip(candidates, evaluations, strict=True) if e.stopped})
        say(f"{name}: {seconds[name]:.1f} s")
    ratios = {
        f"throughput_ratio_{name}": alone * len(candidates) / taken
        for name, taken in seconds.items()
    }
    print(
        f"All {len(candidates)} candidates in plans of 50, against the loop: with memory and "
        f"racing {ratios['throughput_ratio_racing']:.3g} times as many a minute; racing stopped "
        f"{stopped} networks."
    )
    if not quick:
        ratios["front_lost"] = len(fronts["memory"] - fronts["racing"])
        print(
            f"Without racing {ratios['throughput_ratio_memory']:.3g} times; of the "
            f"{len(fronts['memory'])} on the front racing lost {ratios['front_lost']}."
        )
    print()
    return ratios


def front(
    supernetwork: st.Supernetwork,
    asked: Sequence[Genotype],
    evaluations: Sequence[Evaluation],
) -> set[Genotype]:
    """Those that no other is at least as good as in both objectives, and better in one."""
    points = {
        supernetwork.subnetwork(genotype).genotype: (-found["accuracy"], found["macs"])
        for genotype, found in zip(asked, evaluations, strict=True)
    }
    return {
        genotype
        for genotype, (error, macs) in points.items()
        if not any(
            e <= error and m <= macs and (e, m) != (error, macs) for e, m in points.values()
        )
    }


def bare(supernetwork: st.Supernetwork, genotypes: Sequence[Genotype]) -> float:
    """Seconds for the convolutions and matrix products of a plan alone, once for every batch.

    Each runs as the plan runs it, on numbers that are at hand; calibration images count too.
    """
    engine = Engine(supernetwork.supergraph, "fast", 4.0, BATCH)
    with torch.no_grad():
        program = engine.prepare(supernetwork.supergraph.program(genotypes))
        images = [torch.randn(BATCH, *view.input_size) for view in supernetwork.views]
        kernels = kernels_of(program, images)
        passes = math.ceil(IMAGES / BATCH) + len(supernetwork.calibration or ()) / BATCH
        return passes * statistics.median(timed(run_all, kernels)[0] for _ in range(3))


def run_all(kernels: Sequence[Callable[[], object]]) -> None:
    for kernel in kernels:
        kernel()


def kernels_of(program: Program, images: Sequence[Tensor]) -> list[Callable[[], object]]:
    """The convolutions and matrix products of a program, each with what it reads."""
    kernels: list[Callable[[], object]] = []
    values: dict[int, Any] = {}
    laid_out = [image.contiguous(memory_format=torch.channels_last) for image in images]
    for step, value in program.values(laid_out):
        values[step] = value
    for step, run, reads, _ in program._laid_out():
        inputs = [values[read] for read in reads]
        if isinstance(run, Stitch):
            grid = read_part(run.source, inputs[0], "grid", run.grid, folded=run.folded)
            kernels.append(
                lambda run=run, grid=grid: F.conv2d(grid, run.weight, padding=run.kernel // 2)
            )
        elif isinstance(run, _Folded):
            run.keep()
            weight, convolution = run._held, run.convolution
            kernels.append(
                lambda convolution=convolution, feature=inputs[0], weight=weight: (
                    convolution._conv_forward(feature, weight, None)
                )
            )
        elif isinstance(run, (nn.Conv2d, nn.Linear)) or program.operations[step].macs:
            kernels.append(lambda run=run, inputs=inputs: run(*inputs))
    return kernels


def growth(quick: bool) -> float:
    """What a subnetwork costs beside its kernels, which are replaced by nothing.

    Args:
        quick: Whether to leave out the largest.

    Returns:
        Milliseconds at 200 switches, in plans of 50.
    """
    names = {"resnet50": 32, "resnext50_32x4d": 32}
    rows = [(50, 50), (200, 10), (200, 50), (200, 200)]
    if not quick:
        names |= {"resnet152": 64, "efficientnet_b4": 64}
        rows += [(200, 1000), (500, 50)]
    loaded = [
        st.load_parent(timm.create_model(name), name=name, input_size=size)
        for name, size in names.items()
    ]
    parents = list(zip(loaded[::2], loaded[1::2], strict=True))
    whole = [st.stitch(a, b, points="all") for a, b in parents]
    noise = st.load_data("noise/1000", train={"images": 10}, val={"images": 10}).test
    split = Split("val", noise.dataset, [0] * IMAGES, "noise")
    print("| switches | networks a plan | ms a network beside kernels | work shared | GiB alive |")
    print("|---|---|---|---|---|")
    at_200 = 0.0
    for switches, count in rows:
        large = next(one for one in whole if len(one.switches) >= switches)
        kept = random.Random(0).sample(range(len(large.switches)), switches)
        supernetwork = large.keep(kept)
        genotypes = sparse(supernetwork, count)
        program = supernetwork.supergraph.program(genotypes)
        ratio = (
            sum(supernetwork.subnetwork(genotype).macs for genotype in genotypes) / program.macs
        )
        alive = 4 * program.elements * BATCH / 2**30
        nothing = torch.zeros(BATCH, 1000)
        graph = supernetwork.supergraph
        graph.operations = [
            replace(o, run=lambda *_, value=nothing: value) for o in graph.operations
        ]
        times: list[float] = []
        for _ in range(3):
            evaluator = st.Evaluator(supernetwork, split, batch_size=BATCH, kernels="plain")
            next(split.batches(supernetwork.views, BATCH))
            taken, _ = timed(judge, evaluator, genotypes)
            times.append(1e3 * taken / count)
        print(f"| {switches} | {count} | {spread(times)} | {ratio:.2f} | {alive:.2f} |")
        if (switches, count) == (200, 50):
            at_200 = statistics.median(times)
    print()
    return at_200


class Answer:
    """An operation that computes nothing."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, *_: Any) -> Tensor:
        return self.value


def sparse(supernetwork: st.Supernetwork, count: int) -> list[Genotype]:
    """Random distinct subnetworks with one to six stitches on."""
    rng = random.Random(1)
    places = range(len(supernetwork.switches))
    found: dict[Genotype, None] = {}
    while len(found) < count:
        on = frozenset(rng.sample(places, rng.randint(1, 6)))
        found[supernetwork.subnetwork(Genotype(rng.choice("ab"), on)).genotype] = None
    return list(found)


def judge(evaluator: st.Evaluator, genotypes: Sequence[Genotype]) -> list[Any]:
    """All that a search does with genotypes, from making the subnetworks to their figures."""
    return evaluator.evaluate(networks(evaluator.supernetwork, genotypes))


def timed(work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work(*args)
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
