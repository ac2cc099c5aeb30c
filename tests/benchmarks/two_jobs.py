"""How much must two networks with different answers compute twice?

    uv run python tests/benchmarks/two_jobs.py [PAIR ...] [--seeds 0 1 2] [--trials 120] [--quick]

Pairs are `animals`, a residual network that tells the ten classes of CIFAR-10 apart, and an
EfficientNet that was trained briefly to tell animals from vehicles; and `resnets`, ResNet-20 and
ResNet-56 as if they had two jobs. Each seed orders the images anew, fits the stitches on
unlabelled train images, searches with validation images, and evaluates the validation front on the
test split, beside both parents whole and linear probes. *kept* is the smaller share of what each
parent reaches alone.

The last line is JSON, by pair medians over seeds: `cost_at_99`, the share of both networks' cost
of the cheapest network of the validation front that keeps 99% on the test images; `chosen_cost`
and `chosen_retained`, of the cheapest that keeps 99% on validation images, which is what one would
take without looking at the test; `probe_retained` and `probe_cost`, of the best linear probe on
the test images, of those that cost no more than the first of these. `small_retained` is what the
smaller of the ResNets keeps if it answers for both, as it could where questions are the same after
all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import optuna
from PIL import Image

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.stitch_quality import measure_stitches
from optuna_stitch.report.entries import Entry
from optuna_stitch.utils.text import markdown_table

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, load_pair, say, spread, state

PAIRS = ("animals", "resnets")

# Birds, cats, deer, dogs, frogs and horses.
ANIMALS = range(2, 8)

# Images to fit on, to search with, and to report on; and with `--quick`.
IMAGES = {False: (1000, 2000, 4000), True: (300, 500, 1000)}

# What is measured of a seed.
FIGURES = (
    *("cost_at_99", "chosen_cost", "chosen_retained", "probe_retained", "probe_cost"),
    "small_retained",
)


class Animals:
    """CIFAR-10 with another question: is it an animal?"""

    class_names = ("vehicle", "animal")
    class_count = 2

    def __init__(self, split: Split) -> None:
        self._split = split

    def filename(self, index: int) -> str:
        return self._split.place_of(index)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self._split.read(index)
        return image, int(label in ANIMALS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", default=list(PAIRS), metavar="PAIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, help="120; with --quick, one for each stitch")
    parser.add_argument("--quick", action="store_true", help="fewer images and trials")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{state()}\n")
    result: dict[str, dict[str, float | None]] = {}
    for name in arguments.pairs:
        found = [measure(name, seed, arguments) for seed in arguments.seeds]
        result[name] = {}
        for figure in FIGURES:
            known = [each[figure] for each in found if figure in each]
            result[name][figure] = round(statistics.median(known), 4) if known else None
            if known:
                say(f"{name}: {figure} {spread(known)}")
    print(json.dumps(result))


def load(name: str, seed: int) -> tuple[st.Parent, st.Parent, st.DataPair]:
    """Both parents, and the data of each."""
    if name == "resnets":
        pair = load_pair("cifar", seed)
        return pair.a, pair.b, st.DataPair(pair.data, pair.data)
    pair = load_pair("cnn_vit", seed)
    splits = [
        Split(split.name, Animals(split), range(len(split)), f"animals in {split.fingerprint}")
        for split in (pair.data.train, pair.data.val, pair.data.test)
    ]
    animals = st.Data(*splits, classes=2, class_names=Animals.class_names)
    b = st.load_parent("test_efficientnet", num_classes=2, view=pair.a.view)
    st.train_parent(b, animals.train, st.Recipe(epochs=6, learning_rate=4e-3, seed=1))
    return pair.a, b, st.DataPair(pair.data, animals)


def measure(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    begin = time.perf_counter()
    fit_images, val_images, test_images = IMAGES[arguments.quick]
    a, b, data = load(name, seed)
    supernetwork = st.stitch(a, b, outputs=["both"] if name == "resnets" else None)
    train, val = data.train.take(fit_images), data.val.take(val_images)
    fits = supernetwork.fit(train, seed=seed)
    qualities = measure_stitches(supernetwork, fits, val.take(300))
    say(f"{name}, seed {seed}: fitted after {time.perf_counter() - begin:.0f} s")
    objective = st.Objective(supernetwork, val)
    study = st.create_study(
        objective,
        stitch_qualities=qualities,
        sampler=st.LinkageSampler(key=objective.key, seed=seed),
        seed=seed,
    )
    trials = arguments.trials or (len(supernetwork.switches) + 20 if arguments.quick else 120)
    st.optimize(study, objective, n_trials=trials)
    say(f"{name}, seed {seed}: searched after {time.perf_counter() - begin:.0f} s")
    front = st.evaluate_front(study, objective, data.test.take(test_images), train=train)
    say(f"{name}, seed {seed}: reported after {time.perf_counter() - begin:.0f} s")
    _print(name, seed, front)
    whole = front.entries[0]
    known = [whole, *front.stitched]

    def share(entry: Entry) -> float:
        return entry.test["macs"] / whole.test["macs"]

    kept = min((e for e in known if e.quality >= 0.99), key=share)
    chosen = min((e for e in known if e.values["retained"] >= 0.99), key=share)
    probes = [e for e in front.entries if e.kind == "probe" and share(e) <= share(kept)]
    probe = max(probes, key=lambda e: e.quality)
    small = {e.name: e.quality for e in front.entries if e.kind == "other"}
    return {
        "cost_at_99": share(kept),
        "chosen_cost": share(chosen),
        "chosen_retained": chosen.quality,
        "probe_retained": probe.quality,
        "probe_cost": share(probe),
        **({"small_retained": max(small.values())} if small else {}),
    }


def _print(name: str, seed: int, front: st.Front) -> None:
    whole = front.entries[0]
    lines = [
        [
            entry.name,
            f"{entry.test['macs'] / whole.test['macs']:.2f}",
            f"{100 * entry.quality:.1f}",
            f"{100 * entry.test['accuracy_a']:.1f}",
            f"{100 * entry.test['accuracy_b']:.1f}",
            "; ".join(entry.stitches),
        ]
        for entry in front.entries
        if entry.quality >= 0.9
    ]
    print(f"**{name}, seed {seed}**\n")
    head = ["network", "cost of both", "kept, %", "accuracy of a, %", "of b, %", "stitches"]
    print(markdown_table(head, lines))
    print(f"\n{front.headline}\n", flush=True)


if __name__ == "__main__":
    main()
