"""Judge every setting of a small real supernetwork once, as a table to search in.

    uv run python tests/benchmarks/table.py

The pair is ResNet-20 × ResNet-56 on CIFAR-10 with 8 of its matches, spread evenly over the depth,
stitched both ways: 16 switches and an output, so 3 × 2^16 settings, on the 2,000 validation
images. Few of them differ: walking back from an output, each match asks for one switch, that of
the parent one is in, which makes 2^8 networks a side; an ensemble's probabilities are the mean of
two of those. Writes ``tests/data/table.npz``; ``tests/tabulated.py`` reads it.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import torch

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.stitching.genotype import OUTPUTS, Genotype
from tests.helpers.networks import networks

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, ROOT, load_pair, say, state

TABLE = ROOT / "tests" / "data" / "table.npz"
MATCHES, IMAGES, FITTED_ON, CHECKED = 8, 2000, 400, 20


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"This script {MISSING}.")
    pair = load_pair("cifar", 0)
    whole = st.stitch(pair.a, pair.b)
    whole.fit(pair.data.train.take(FITTED_ON))
    small = whole.keep(spread_evenly(len(whole.matches)))
    val = pair.data.val.take(IMAGES)
    say(f"{len(small.switches)} of {len(whole.switches)} switches, {len(val)} images, {state()}")

    canonical = canonical_settings(small)
    distinct = np.unique(canonical[:2])
    say(f"{len(distinct)} networks with one output, {len(np.unique(canonical[2]))} ensembles")
    evaluator = st.Evaluator(small, val)
    probabilities: dict[int, torch.Tensor] = {}
    for start in range(0, len(distinct), 64):
        part = [int(setting) for setting in distinct[start : start + 64]]
        logits = evaluator.logits(networks(small, [genotype(small, setting) for setting in part]))
        for setting, answers in zip(part, logits, strict=True):
            probabilities[setting] = answers.softmax(1)
        say(f"{len(probabilities)} of {len(distinct)} judged")
    labels = torch.cat(
        [labels for labels, _ in evaluator.answers(networks(small, [Genotype("a")]))]
    )

    correct = np.zeros(canonical.shape, np.uint16)
    macs = np.zeros(canonical.shape, np.int64)
    known: dict[int, tuple[int, int]] = {}
    for output in range(3):
        for bits in range(canonical.shape[1]):
            setting = int(canonical[output, bits])
            if setting not in known:
                if output < 2:
                    answers = probabilities[setting]
                else:
                    sides = [probabilities[int(canonical[side, bits])] for side in (0, 1)]
                    answers = (sides[0] + sides[1]) / 2
                right = int((answers.argmax(1) == labels).sum())
                known[setting] = right, small.subnetwork(genotype(small, setting)).macs
            correct[output, bits], macs[output, bits] = known[setting]
    check(small, val, correct, macs)
    np.savez_compressed(
        TABLE,
        correct=correct,
        macs=macs.astype(np.uint32),
        canonical=canonical.astype(np.uint32),
        switches=np.array([switch.name for switch in small.switches]),
        images=np.array(len(val)),
    )
    parents = [f"{correct[o, 0] / len(val):.4f} at {macs[o, 0] / 1e6:.1f} M" for o in range(3)]
    print(f"{TABLE.name}: {TABLE.stat().st_size / 2**10:.0f} KiB; a, b, ensemble: {parents}")


def spread_evenly(matches: int) -> list[int]:
    """Both switches of matches that are spread evenly over the depth."""
    chosen = np.linspace(0, matches - 1, MATCHES + 2)[1:-1].round().astype(int)
    return [int(2 * match + way) for match in chosen for way in (0, 1)]


def genotype(supernetwork: st.Supernetwork, setting: int) -> Genotype:
    """The genotype with this number: the output's, then one bit a switch."""
    output, bits = divmod(setting, 1 << len(supernetwork.switches))
    on = (index for index in range(len(supernetwork.switches)) if bits >> index & 1)
    return Genotype(OUTPUTS[output], frozenset(on))


def canonical_settings(supernetwork: st.Supernetwork) -> np.ndarray:
    """For every output and every setting of the switches the number of its canonical form."""
    size = 1 << len(supernetwork.switches)
    found = np.zeros((3, size), np.int64)
    for output in range(3):
        for bits in range(size):
            form = supernetwork.subnetwork(genotype(supernetwork, output * size + bits)).genotype
            found[output, bits] = output * size + sum(1 << index for index in form.on)
    return found


def check(
    supernetwork: st.Supernetwork, split: Split, correct: np.ndarray, macs: np.ndarray
) -> None:
    """Ensembles were put together from their halves: judge some as a search would."""
    size = correct.shape[1]
    settings = random.Random(0).sample(range(2 * size, 3 * size), CHECKED)
    found = st.Evaluator(supernetwork, split).evaluate(
        networks(supernetwork, [genotype(supernetwork, setting) for setting in settings])
    )
    for setting, figures in zip(settings, found, strict=True):
        place = divmod(setting, size)
        right = round(figures["accuracy"] * len(split))
        if right != correct[place] or figures["macs"] != macs[place]:
            sys.exit(f"{setting}: the table has {correct[place]} right, the evaluator {right}.")


if __name__ == "__main__":
    main()
