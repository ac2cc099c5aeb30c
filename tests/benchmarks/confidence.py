"""How cascades should decide and answer: every measure of confidence, and both kinds of answer.

    uv run python tests/benchmarks/confidence.py [PAIR ...] [--seeds 0 1] [--quick]

Pairs are `cifar` and `cnn_vit`. For the cascade of the whole parents and for that of every stitch,
the cheaper head first, weights and thresholds are tuned on 1,000 validation images, and 10 to 50%
of the images go on. Accuracy is that of 4,000 test images, in points less that of the largest
class probability with the plain mean. The last line is JSON: the same by pair, measure and answer.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import get_args

import torch

import optuna_stitch as st
from optuna_stitch.evaluation.cascades import tune_exit, with_share
from optuna_stitch.evaluation.settings import Answer, CascadeSettings
from optuna_stitch.search.space import continuing_genotypes
from optuna_stitch.stitching.genotype import SIDES, Genotype
from optuna_stitch.stitching.settings import Confidence
from optuna_stitch.utils.text import markdown_table

sys.path.insert(0, str(Path(__file__).parent))
from pairs import arguments_of, load_pair, say, spread, state

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)

# Networks that run as one plan.
TOGETHER = 10

SETTINGS = [
    CascadeSettings(confidence=confidence, answer=answer)
    for confidence in get_args(Confidence)
    for answer in get_args(Answer)
]


def main() -> None:
    arguments = arguments_of(__doc__, ["cifar", "cnn_vit"])
    print(f"{state()}\n")
    result: dict[str, dict[str, float]] = {}
    for name in arguments.pairs:
        found = [measure(name, seed, quick=arguments.quick) for seed in arguments.seeds]
        gains = {key: [each[key] for each in found] for key in found[0]}
        result[name] = {key: round(statistics.median(some), 3) for key, some in gains.items()}
        print(f"**{name}**\n")
        rows = [[*key.split(" "), spread(some)] for key, some in gains.items()]
        print(markdown_table(["confidence", "answer", "points"], rows, align="llr"))
        print(flush=True)
    print(json.dumps(result))


def measure(name: str, seed: int, *, quick: bool) -> dict[str, float]:
    """Points by measure and answer, means over networks and shares."""
    pair = load_pair(name, seed)
    supernetwork = st.stitch(pair.a, pair.b)
    supernetwork.fit(pair.data.train.take(500), seed=seed)
    switches = range(0, len(supernetwork.switches), 4 if quick else 1)
    outputs = ("a then both", "b then both")
    genotypes = [
        Genotype("a then both", threshold=0.5),
        *continuing_genotypes(supernetwork, switches, outputs),
    ]
    cascades = [supernetwork.subnetwork(genotype) for genotype in genotypes]
    tuning, judging = pair.data.val.take(1000), pair.data.test.take(1000 if quick else 4000)
    right: dict[str, list[float]] = {f"{s.confidence} {s.answer}": [] for s in SETTINGS}
    evaluators = [st.Evaluator(supernetwork, split, ()) for split in (tuning, judging)]
    for start in range(0, len(cascades), TOGETHER):
        some = cascades[start : start + TOGETHER]
        answers = zip(some, *(evaluator.logits(some) for evaluator in evaluators), strict=True)
        for cascade, known, new in answers:
            assert cascade.genotype.first is not None
            first = SIDES.index(cascade.genotype.first)
            for settings in SETTINGS:
                found = tune_exit(known, tuning.targets, first, settings)
                sure = found.sure(known[:, first])
                right[f"{settings.confidence} {settings.answer}"] += [
                    accuracy(with_share(found, sure, share).answer(new), judging)
                    for share in SHARES
                ]
        say(f"{name}, seed {seed}: {start + len(some)} of {len(cascades)} cascades")
    plain = statistics.mean(right["probability mean"])
    return {key: 100 * (statistics.mean(some) - plain) for key, some in right.items()}


def accuracy(logits: torch.Tensor, split: st.data.splits.Split) -> float:
    return float((logits.argmax(dim=1) == split.targets).double().mean())


if __name__ == "__main__":
    main()
