"""Why stitch? What a search finds, beside parents, ensemble and cascades of the whole parents.

    uv run python tests/benchmarks/value.py [PAIR ...] [--seeds 5] [--trials 400] [--quick]

Pairs are `cifar`, `cnn_vit`, `imagenet` and `digits`. Each seed orders the images anew, fits the
stitches, searches with validation images, and evaluates the front on the test split. Networks are
chosen by what validation images say, at a fixed cost no higher than the dearer parent's, and at
average costs from 1.1 to 2 times the cheaper parent's; of these the rival is the cascade of the
whole parents at the same average cost on the test images. P-values are McNemar's, corrected by
Holm over all rows of a pair and a seed.

The last line is JSON, by pair medians over seeds: `fixed_gain` (points over the dearer parent),
`average_gain` (points over the plain cascade, mean over the costs), `worst_ratio` (worst-case cost
over the plain cascade's, median over the costs), `optimism` (points by which the front looked
better on validation images, median over the front). Contenders are confirmed: a network is judged
on 250 validation images, and on all of them where it is not behind those that cost no more.
`--no-racing` judges all networks on half the images, which takes about as long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.evaluation.accumulator import Hits
from optuna_stitch.evaluation.cascades import tune_exit, with_share
from optuna_stitch.evaluation.significance import holm, paired_p_value
from optuna_stitch.evaluation.stitch_quality import measure_stitches
from optuna_stitch.report.entries import Entry
from optuna_stitch.stitching.genotype import FIRST, SIDES, Genotype
from optuna_stitch.utils.text import markdown_table, p_value_text

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, Pair, load_pair, say, spread, state

LEVELS = (1.1, 1.2, 1.3, 1.5, 1.75, 2.0)

# Images to fit on, to search with, and to report on; None for all.
IMAGES: dict[str, tuple[int, int | None, int | None]] = {
    "cifar": (500, None, 4000),
    "cnn_vit": (500, None, 4000),
    "imagenet": (600, None, None),
    "digits": (500, None, None),
}

# The same with `--quick`, and trials.
QUICK: dict[str, tuple[int, int, int]] = {
    "cifar": (60, 500, 1000),
    "cnn_vit": (60, 500, 1000),
    "imagenet": (30, 50, 100),
    "digits": (60, 500, 1000),
}

FIGURES = ("fixed_gain", "average_gain", "worst_ratio", "optimism")


@dataclass
class Row:
    """One network that validation images chose, and its rival on the test images."""

    what: str
    entry: Entry
    rival: Hits
    rival_macs: float
    worst_ratio: float
    p_value: float

    @property
    def gain(self) -> float:
        return 100 * (self.entry.quality - self.rival.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", default=list(IMAGES), metavar="PAIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--test", type=int, help="test images, in place of 4,000 or all")
    parser.add_argument("--no-racing", action="store_true", help="judge all on half the images")
    parser.add_argument("--quick", action="store_true", help="under 8 minutes on 2 cores")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{state()}\n")
    result: dict[str, dict[str, float]] = {}
    for name in arguments.pairs:
        if name != "digits" and not DATA.is_dir():
            sys.exit(f"The pair {name} {MISSING}.")
        seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
        found = [measure(name, seed, arguments) for seed in seeds]
        result[name] = {
            figure: round(statistics.median(each[figure] for each in found), 3)
            for figure in FIGURES
        }
        for figure in FIGURES:
            say(f"{name}: {figure} {spread([each[figure] for each in found])}")
    print(json.dumps(result))


@dataclass
class Searched:
    """A pair, its images, and a study of it."""

    pair: Pair
    test: st.data.splits.Split
    objective: st.Objective
    study: optuna.Study


def search(name: str, seed: int, arguments: argparse.Namespace) -> Searched:
    """Fit the stitches of a pair, and search with validation images."""
    begin = time.perf_counter()
    fit_images, val_images, test_images = IMAGES[name]
    trials = arguments.trials
    if arguments.quick:
        trials, val_images, test_images = QUICK[name]
    pair = load_pair(name, seed)
    data = pair.data
    val = data.val.take(min(val_images or len(data.val), len(data.val)))
    test_images = arguments.test or test_images
    racing = (
        None if arguments.no_racing else st.Racing(error_rate=0.5, first=250, growth=8, seed=seed)
    )
    if arguments.no_racing:
        val = val.take(len(val) // 2)
    test = data.test.take(min(test_images or len(data.test), len(data.test)))
    supernetwork = st.stitch(pair.a, pair.b)
    fits = supernetwork.fit(data.train.take(min(fit_images, len(data.train))), seed=seed)
    qualities = measure_stitches(supernetwork, fits, val.take(min(300, len(val))))
    say(f"{name}, seed {seed}: fitted after {time.perf_counter() - begin:.0f} s")
    objective = st.Objective(supernetwork, val, racing=racing)
    study = st.create_study(
        objective,
        stitch_qualities=qualities,
        sampler=st.LinkageSampler(key=objective.key, seed=seed),
        seed=seed,
    )
    st.optimize(study, objective, n_trials=trials)
    done = study.get_trials(deepcopy=False)
    images = sum(trial.user_attrs.get("images", len(val)) for trial in done) / len(done)
    say(
        f"{name}, seed {seed}: searched after {time.perf_counter() - begin:.0f} s, "
        f"{images:.0f} of {len(val)} images per trial"
    )
    return Searched(pair, test, objective, study)


def measure(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    begin = time.perf_counter()
    searched = search(name, seed, arguments)
    objective, study, test = searched.objective, searched.study, searched.test
    front = st.evaluate_front(study, objective, test)
    say(f"{name}, seed {seed}: reported after {time.perf_counter() - begin:.0f} s")
    rows, optimism = _rows(front, objective, test)
    for row, p_value in zip(rows, holm([row.p_value for row in rows]), strict=True):
        row.p_value = p_value
    _print(name, seed, front, rows, optimism)
    average = rows[1:]
    return {
        "fixed_gain": rows[0].gain,
        "average_gain": statistics.mean(row.gain for row in average),
        "worst_ratio": statistics.median(row.worst_ratio for row in average),
        "optimism": optimism,
    }


def _rows(
    front: st.Front, objective: st.Objective, test: st.data.splits.Split
) -> tuple[list[Row], float]:
    known = [entry for entry in front.entries if entry.values]
    parents = sorted(
        (entry for entry in known if entry.kind == "parent"), key=lambda e: e.test["macs"]
    )
    cheaper, dearer = parents[0], parents[-1]
    assert isinstance(dearer.result, Hits)
    # a stitch may cost a thousandth
    budget = 1.001 * dearer.test["macs"]
    fixed = [e for e in known if not e.is_cascade and e.test["macs"] <= budget]
    best = max(fixed, key=lambda entry: entry.values["accuracy"])
    rows = [_row("fixed cost", best, dearer.result, dearer.test["macs"], dearer.test["macs"])]
    plain = _plain_cascades(objective, test)
    worst = plain[-1][0]
    for level in LEVELS:
        budget = level * cheaper.test["macs"]
        some = [entry for entry in known if entry.values["macs"] <= budget]
        best = max(some, key=lambda entry: entry.values["accuracy"])
        # of the plain cascades the first that costs no less on the test images
        macs, rival = next(one for one in plain if one[0] >= best.test["macs"] or one is plain[-1])
        rows.append(_row(f"{level} × the cheaper parent", best, rival, macs, worst))
    differences = [
        100 * (entry.values["accuracy"] - entry.quality) for entry in known if entry.trial
    ]
    return rows, statistics.median(differences)


def _row(what: str, entry: Entry, rival: Hits, macs: float, worst: float) -> Row:
    assert isinstance(entry.result, Hits)
    same = torch.equal(entry.result.right, rival.right)
    p_value = 1.0 if same else paired_p_value(entry.result, rival)
    own = entry.worst.get("macs", entry.test["macs"])
    return Row(what, entry, rival, macs, own / worst, p_value)


def _plain_cascades(
    objective: st.Objective, test: st.data.splits.Split
) -> list[tuple[float, Hits]]:
    """Cascades of the whole parents by rising cost: average MACs and hits on the test images."""
    supernetwork = objective.supernetwork
    settings = objective.evaluator.settings.cascades
    graphs = supernetwork.graphs
    cheaper = min(SIDES, key=lambda side: graphs[side].macs)
    (output,) = [output for output, first in FIRST.items() if first == cheaper]
    cascade = supernetwork.subnetwork(Genotype(output, threshold=0.5))
    first = SIDES.index(cheaper)
    tuning, judging = (
        st.Evaluator(supernetwork, split, (), kernels="plain").logits([cascade])[0]
        for split in (objective.evaluator.split, test)
    )
    found = tune_exit(tuning, objective.evaluator.split.targets, first, settings)
    sure = found.sure(tuning[:, first])
    points: list[tuple[float, Hits]] = []
    for percent in range(101):
        some = with_share(found, sure, percent / 100)
        share = float(some.asks_second(judging).double().mean())
        right: Tensor = some.answer(judging).argmax(dim=1) == test.targets
        cost = cascade.average(cascade.first.worst_macs, cascade.worst_macs, share)
        points.append((cost, Hits(right)))
    return points


def _print(name: str, seed: int, front: st.Front, rows: list[Row], optimism: float) -> None:
    parents = ", ".join(
        f"{entry.name} {entry.quality:.1%} at {entry.test['macs'] / 1e6:.1f} M"
        for entry in front.entries
        if entry.kind in ("parent", "ensemble", "duo")
    )
    print(f"**{name}, seed {seed}**: {parents}\n")
    lines = []
    for row in rows:
        subnetwork, entry = row.entry.subnetwork, row.entry
        assert subnetwork is not None
        lines.append(
            {
                "cost": row.what,
                "output": subnetwork.output,
                "stitches": ", ".join(subnetwork.stitches) or "none",
                "M MACs": f"{entry.test['macs'] / 1e6:.1f}",
                "worst case": f"{entry.worst.get('macs', entry.test['macs']) / 1e6:.1f}",
                "accuracy, %": f"{100 * entry.quality:.1f}",
                "rival's M MACs": f"{row.rival_macs / 1e6:.1f}",
                "rival's accuracy, %": f"{100 * row.rival.figure:.1f}",
                "gain, points": f"{row.gain:+.2f}",
                "p": p_value_text(row.p_value),
            }
        )
    print(markdown_table(list(lines[0]), [list(line.values()) for line in lines]))
    print(f"\n{front.headline} Optimism: {optimism:.2f} points.\n", flush=True)


if __name__ == "__main__":
    main()
