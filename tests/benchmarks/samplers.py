"""How soon samplers find the front of a small supernetwork of which every setting is known.

    uv run python tests/benchmarks/samplers.py [--quick] [--cold] [--seeds 20] [--out plot.png]
    uv run python tests/benchmarks/samplers.py --width 200

Reports the hypervolume as a share of the exact front's after so many trials, and the trials needed
for 99%, over seeds. Every sampler starts from the same 50 enqueued trials, as in a study: parents,
ensemble, single-stitch and sparse random networks; with ``--cold`` from both parents and their
ensemble alone. The last line is JSON: for each sampler the median of the trials needed, or null.
``--width`` measures the CPU time of a proposal instead, in a space of so many switches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.tabulated import DIRECTIONS, OUTPUTS, STATES, Tabulated, shares

Make = Callable[[int, "Tabulated | None"], optuna.samplers.BaseSampler]

AT, LONGEST, GOAL = (500, 1000, 2000), 8000, 0.99
# Its proposals take so long that fewer seeds and trials must do.
SLOW = {"tpe": (5, 1000)}
MAKERS: dict[str, Make] = {
    "nsga2": lambda seed, _: optuna.samplers.NSGAIISampler(seed=seed),
    "nsga3": lambda seed, _: optuna.samplers.NSGAIIISampler(seed=seed),
    "tpe": lambda seed, _: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "random": lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
    "linkage": lambda seed, table: LinkageSampler(seed=seed, key=table and table.key),
    "local_search": lambda seed, table: LocalSearchSampler(seed=seed, key=table and table.key),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes: 5 seeds, no TPE")
    parser.add_argument("--cold", action="store_true", help="start from the parents alone")
    parser.add_argument("--seeds", type=int, default=None, help="20, or 5 if quick")
    parser.add_argument("--out", type=Path, default=None, help="plot to write")
    parser.add_argument("--samplers", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--width", type=int, help="measure time in a space of so many switches")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if arguments.width is not None:
        print(json.dumps(times(arguments.width, arguments.samplers)))
        return
    table = Tabulated()
    seeds = arguments.seeds or (5 if arguments.quick else 20)
    names = [n for n in arguments.samplers if not (arguments.quick and n in SLOW)]
    longest = AT[-1] if arguments.quick else LONGEST
    histories = {
        name: search(table, name, seeds, longest, 3 if arguments.cold else 50) for name in names
    }
    needed = report(histories, longest)
    if arguments.out is not None:
        plot(histories, arguments.out)
    print(json.dumps(needed))


def search(table: Tabulated, name: str, seeds: int, longest: int, start: int) -> list[list[float]]:
    """For each seed the share after every trial: 2,000, and on until 99% or the longest."""
    seeds, trials = min(seeds, SLOW.get(name, (seeds, 0))[0]), SLOW.get(name, (0, AT[-1]))[1]
    began = time.process_time()
    found: list[list[float]] = []
    for seed in range(seeds):
        sampler = MAKERS[name](seed, table)
        found.append(shares(table, sampler, trials, seed, start=start, longest=longest))
    print(f"{name}: {time.process_time() - began:.0f} CPU s", file=sys.stderr)
    return found


def first(history: Sequence[float], goal: float) -> float:
    """The trial with which a goal was reached; infinite, if it was not."""
    return next((n for n, share in enumerate(history, 1) if share >= goal), np.inf)


def report(histories: dict[str, list[list[float]]], longest: int) -> dict[str, int | None]:
    """Print medians with quartiles."""
    columns = " | ".join(f"after {trials:,}" for trials in AT)
    print(f"| sampler | seeds | {columns} | trials to 99% | to 100% |")
    print("|---|---|" + "---|" * (len(AT) + 2))
    needed: dict[str, int | None] = {}
    for name, runs in histories.items():
        cells = [name, str(len(runs))]
        for trials in AT:
            reached = [run[trials - 1] for run in runs if len(run) >= trials]
            low, middle, high = np.percentile(reached, (25, 50, 75)) if reached else [np.nan] * 3
            cells.append(f"{middle:.2%} ({low:.2%} to {high:.2%})" if reached else "–")
        for goal in (GOAL, 1 - 1e-9):
            own = sorted(first(run, goal) for run in runs)
            # Whole trials, so that one that never came does not spoil a quartile.
            low, middle, high = (own[int(q * (len(own) - 1))] for q in (0.25, 0.5, 0.75))
            shown = [f"{value:,}" if value < np.inf else "never" for value in (low, middle, high)]
            cells.append(f"{shown[1]} ({shown[0]} to {shown[2]})")
            if goal == GOAL:
                needed[name] = int(middle) if middle < np.inf else None
        print("| " + " | ".join(cells) + " |")
    print(f"\nMedians and quartiles; never: not within {longest:,} trials.")
    return needed


def plot(histories: dict[str, list[list[float]]], path: Path) -> None:
    """The median share against trials, with quartiles."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, runs in histories.items():
        length = min(AT[-1], min(map(len, runs)))
        together = np.array([run[:length] for run in runs])
        low, middle, high = np.percentile(together, (25, 50, 75), axis=0)
        numbers = np.arange(1, length + 1)
        (line,) = axes.plot(numbers, middle, label=name)
        axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.axhline(GOAL, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="trials", ylabel="share of the exact front's hypervolume")
    axes.set(xlim=(20, AT[-1]), ylim=(0.9, 1.002))
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def times(width: int, names: Sequence[str], trials: int = 1000) -> dict[str, float]:
    """CPU ms of a proposal, with the trial it makes, in the last 100 of so many trials."""
    space: dict[str, BaseDistribution] = {
        f"s{place}": CategoricalDistribution(STATES) for place in range(width)
    }
    space["output"] = CategoricalDistribution(OUTPUTS)
    rng = np.random.default_rng(0)
    worth, costs = rng.random((width, width)) - 0.5, rng.random(width)
    print(f"| sampler | CPU ms a proposal, {width} switches, after {trials - 100:,} trials |")
    print("|---|---|")
    found: dict[str, float] = {}
    for name in names:
        study = optuna.create_study(directions=DIRECTIONS, sampler=MAKERS[name](0, None))
        for on in rng.random((50, width)) < 0.05:
            params = {f"s{place}": STATES[int(bit)] for place, bit in enumerate(on)}
            study.enqueue_trial({**params, "output": OUTPUTS[rng.integers(3)]})
        taken: list[float] = []
        slow = name in SLOW
        own = optuna.samplers.NSGAIISampler(seed=0) if slow else study.sampler
        for number in range(trials - 80 if slow else trials):
            if slow:  # the trials before are another's
                study.sampler = own if number < trials - 100 else MAKERS[name](0, None)
            began = time.process_time()
            trial = study.ask(space)
            if isinstance(study.sampler, optuna.samplers.BaseGASampler):
                frozen = study.get_trials(deepcopy=False)[trial.number]
                study.sampler.get_trial_generation(study, frozen)
            if number >= trials - 100:
                taken.append(1e3 * (time.process_time() - began))
            params = trial.params  # a copy at every access
            bits = np.array([params[f"s{place}"] == "on" for place in range(width)], float)
            study.tell(trial, (float(bits @ worth @ bits), float(costs @ bits)))
        found[name] = statistics.fmean(taken)
        print(f"| {name} | {found[name]:.1f} |", flush=True)
    return found


if __name__ == "__main__":
    main()
