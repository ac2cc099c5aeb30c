"""Does a third stage pay: first head, second head, and then the whole other parent?

    uv run python tests/benchmarks/third_stage.py [PAIR ...] [--seeds 0 1] [--quick]

Pairs are `cifar` and `cnn_vit`. Stages are the cheaper parent, the other's rest on its features
(of every stitch), and the dearer parent whole, whose answer is averaged with the first one's. For
average costs from 1.1 to 3 times the cheaper parent's, validation images choose stitch and
thresholds, once of two stages and once of two or three; all images of the validation split tune
and choose, and 4,000 test images judge. P-values are McNemar's. The last line is JSON: by pair and
cost, points that the third stage adds, medians over seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.evaluation.accumulator import Hits
from optuna_stitch.evaluation.cascades import tune_exit
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.evaluation.significance import paired_p_value
from optuna_stitch.search.space import continuing_genotypes
from optuna_stitch.stitching.cascade import confidences
from optuna_stitch.stitching.genotype import FIRST, SIDES, Genotype
from optuna_stitch.utils.text import markdown_table, p_value_text

sys.path.insert(0, str(Path(__file__).parent))
from pairs import arguments_of, load_pair, say, spread, state

LEVELS = (1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)
GRID = [step / 20 for step in range(21)]
TOGETHER = 10


@dataclass
class Stages:
    """What the stages of one stitch say of a split, and what each adds to the cost."""

    right: list[Tensor]
    sure: list[Tensor]
    macs: list[float]

    def answer(self, thresholds: tuple[float, float]) -> tuple[Tensor, float]:
        """Which images are right, and the average MACs."""
        second = self.sure[0] < thresholds[0]
        third = second & (self.sure[1] < thresholds[1])
        right = torch.where(second, self.right[1], self.right[0])
        right = torch.where(third, self.right[2], right)
        shares = [1.0, float(second.double().mean()), float(third.double().mean())]
        return right, sum(s * m for s, m in zip(shares, self.macs, strict=True))


@dataclass
class Choice:
    stitch: int
    thresholds: tuple[float, float]
    accuracy: float
    macs: float


def main() -> None:
    arguments = arguments_of(__doc__, ["cifar", "cnn_vit"])
    print(f"{state()}\n")
    result: dict[str, dict[str, float]] = {}
    for name in arguments.pairs:
        found = [measure(name, seed, quick=arguments.quick) for seed in arguments.seeds]
        gains = {str(level): [each[level] for each in found] for level in LEVELS}
        result[name] = {level: round(statistics.median(some), 2) for level, some in gains.items()}
        for level, some in gains.items():
            say(f"{name}, {level} times the cheaper parent: {spread(some)} points")
    print(json.dumps(result))


def measure(name: str, seed: int, *, quick: bool) -> dict[float, float]:
    """Points that a third stage adds, by cost."""
    pair = load_pair(name, seed)
    supernetwork = st.stitch(pair.a, pair.b)
    supernetwork.fit(pair.data.train.take(500), seed=seed)
    cheaper = min(SIDES, key=lambda side: supernetwork.graphs[side].macs)
    (output,) = [output for output, first in FIRST.items() if first == cheaper]
    switches = range(0, len(supernetwork.switches), 4 if quick else 1)
    cascades = [
        supernetwork.subnetwork(genotype)
        for genotype in [
            Genotype(output, threshold=0.5),
            *continuing_genotypes(supernetwork, switches, [output]),
        ]
    ]
    tuning = pair.data.val.take(500 if quick else 2000)
    judging = pair.data.test.take(1000 if quick else 4000)
    known, new = _stages(supernetwork, cascades, [tuning, judging], name, seed)
    base = min(graph.macs for graph in supernetwork.graphs.values())
    candidates = _candidates(known)
    gains: dict[float, float] = {}
    rows = []
    for level in LEVELS:
        affordable = [one for one in candidates if one.macs <= level * base]
        two = max((c for c in affordable if c.thresholds[1] == 0), key=lambda c: c.accuracy)
        best = max(affordable, key=lambda c: c.accuracy)
        (less, cost), (more, dearer) = (
            new[choice.stitch].answer(choice.thresholds) for choice in (two, best)
        )
        gains[level] = 100 * float(more.double().mean() - less.double().mean())
        p_value = 1.0 if torch.equal(more, less) else paired_p_value(Hits(more), Hits(less))
        rows.append(
            [
                f"{level}",
                f"{cost / 1e6:.1f}",
                f"{100 * float(less.double().mean()):.2f}",
                f"{dearer / 1e6:.1f}",
                f"{100 * float(more.double().mean()):.2f}",
                f"{gains[level]:+.2f}",
                p_value_text(p_value),
            ]
        )
    print(f"**{name}, seed {seed}**\n")
    header = ["cost", "two: M MACs", "accuracy, %", "three: M MACs", "accuracy, %", "gain", "p"]
    print(f"{markdown_table(header, rows)}\n", flush=True)
    return gains


def _stages(
    supernetwork: st.Supernetwork,
    cascades: list[st.Subnetwork],
    splits: list[st.data.splits.Split],
    name: str,
    seed: int,
) -> list[list[Stages]]:
    """The stages of every cascade on both splits; the first split tunes their answers."""
    settings = CascadeSettings()
    evaluators = [st.Evaluator(supernetwork, split, ()) for split in splits]
    whole = [evaluator.logits(cascades[:1])[0] for evaluator in evaluators]
    first = SIDES.index(cascades[0].first.output)
    dearer = max(graph.macs for graph in supernetwork.graphs.values())
    last = tune_exit(whole[0], splits[0].targets, first, settings)
    found: list[list[Stages]] = [[], []]
    for start in range(0, len(cascades), TOGETHER):
        some = cascades[start : start + TOGETHER]
        answers = [evaluator.logits(some) for evaluator in evaluators]
        for place, cascade in enumerate(some):
            known = tune_exit(answers[0][place], splits[0].targets, first, settings)
            macs = [
                cascade.first.worst_macs,
                cascade.worst_macs - cascade.first.worst_macs,
                dearer,
            ]
            for split, heads, both, stages in zip(splits, answers, whole, found, strict=True):
                own = heads[place]
                mean = known.mean(*own.unbind(1))
                said = [own[:, first], mean, last.mean(*both.unbind(1))]
                right = [logits.argmax(1) == split.targets for logits in said]
                sure = [known.sure(own[:, first]), confidences(mean)["margin"]]
                stages.append(Stages(right, sure, macs))
        say(f"{name}, seed {seed}: {start + len(some)} of {len(cascades)} cascades")
    return found


def _candidates(known: list[Stages]) -> list[Choice]:
    """All stitches with all thresholds, as the images say that tune them."""
    found = []
    for stitch, stages in enumerate(known):
        for share in GRID:
            one = _threshold(stages.sure[0], share)
            second = stages.sure[0] < one
            some = stages.sure[1][second]
            # the cascade of the whole parents has nothing left to ask
            for part in GRID[:11] if stitch else [0.0]:
                thresholds = (one, _threshold(some, part) if part and len(some) else 0.0)
                right, macs = stages.answer(thresholds)
                found.append(Choice(stitch, thresholds, float(right.double().mean()), macs))
    return found


def _threshold(sure: Tensor, share: float) -> float:
    """Below it lies this share of the images."""
    if share >= 1:
        return 2.0
    return float(sure.sort().values[round(share * len(sure))]) if share > 0 else 0.0


if __name__ == "__main__":
    main()
