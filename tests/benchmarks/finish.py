"""What is a short training worth, with stitching and without?

    uv run python tests/benchmarks/finish.py [--minutes 10] [--seed 0] [--trials 400] \\
        [--polish 400] [--quick]

The pair `cifar` is searched as by `value.py`. Three networks of the front, chosen by validation
images, are finished: the best that costs the same for every image and no more than the dearer
parent, the cheapest within a point of it, and the best cascade of no higher average cost. Both
parents are finished in exactly the same way: same images, teacher and steps, as many as fit into
the minutes for the first network. All are judged on the same test images, all there are but for
`--quick`; p-values are McNemar's, corrected by Holm over the rows.

The last line is JSON: `best` (which finished network validation images say is best), `gain` (its
points over the dearer parent, finished) with its `p_value`, `steps`, and accuracies `before` and
`after` by network.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial

import optuna_stitch as st
from optuna_stitch.evaluation.significance import holm, paired_p_value
from optuna_stitch.report.entries import Entry
from optuna_stitch.stitching.genotype import SIDES, Genotype
from optuna_stitch.utils.text import markdown_table, p_value_text

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, say, state
from value import Searched, search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="for each network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--polish", type=int, default=400, help="train images to polish on first")
    parser.add_argument("--quick", action="store_true", help="under 8 minutes on 2 cores")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    arguments.test, arguments.no_racing = None if arguments.quick else 8000, False
    minutes = 0.75 if arguments.quick else arguments.minutes
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{state()}\n")
    searched = search("cifar", arguments.seed, arguments)
    supernetwork, data = searched.objective.supernetwork, searched.pair.data
    images = dataclasses.replace(data, val=data.val.take(500))
    chosen = _chosen(searched)
    if not chosen:
        sys.exit("No stitched network is on the front; search for more trials.")
    settings = st.Finishing(
        epochs=1000,
        minutes=minutes,
        flip=True,
        shift=0.1,
        learning_rate=arguments.rate,
        polish=arguments.polish,
    )
    finished: dict[int | str, st.Subnetwork] = {}
    steps = None
    for trial in chosen:
        begin = time.perf_counter()
        network = supernetwork.subnetwork(trial.params)
        done = st.finish(network, images, settings, steps=steps)
        assert done.finished is not None
        finished[trial.number], steps = done, done.finished.planned
        say(f"trial {trial.number}: {steps} steps, {time.perf_counter() - begin:.0f} s")
    for side in SIDES:
        begin = time.perf_counter()
        parent = supernetwork.subnetwork(Genotype(side))
        finished[f"parent {side}"] = st.finish(parent, images, settings, steps=steps)
        say(f"parent {side}: {time.perf_counter() - begin:.0f} s")
    front = st.evaluate_front(
        searched.study,
        searched.objective,
        searched.test,
        only=[trial.number for trial in chosen],
        finished=finished,
    )
    validated = {trial.number: _validated(finished[trial.number], searched) for trial in chosen}
    _print(front, validated, steps or 0)


def _chosen(searched: Searched) -> list[FrozenTrial]:
    """Three trials of the front, by validation images; fewer, where they are the same."""
    supernetwork = searched.objective.supernetwork
    dearest = 1.001 * max(graph.macs for graph in supernetwork.graphs.values())
    complete = searched.study.get_trials(
        deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)
    )
    stitched = [t for t in complete if supernetwork.subnetwork(t.params).on]
    within = [t for t in stitched if t.values[1] <= dearest]
    fixed = [t for t in within if not supernetwork.subnetwork(t.params).is_cascade]
    cascades = [t for t in within if supernetwork.subnetwork(t.params).is_cascade]
    found: list[FrozenTrial] = []
    if fixed:
        best = max(fixed, key=lambda t: t.values[0])
        near = [t for t in fixed if t.values[0] >= best.values[0] - 0.01]
        found += [best, min(near, key=lambda t: t.values[1])]
    if cascades:
        found.append(max(cascades, key=lambda t: t.values[0]))
    return list({t.number: t for t in found}.values())


def _validated(network: st.Subnetwork, searched: Searched) -> float:
    """Accuracy on validation images."""
    pair = searched.pair
    around = st.Supernetwork.around(network, pair.a, pair.b)
    return st.Evaluator(around, pair.data.val, ["accuracy"]).evaluate([network])[0]["accuracy"]


def _print(front: st.Front, validated: dict[int, float], steps: int) -> None:
    by_name = {entry.name: entry for entry in front.entries}
    names = [f"trial {number}" for number in validated]
    best = f"trial {max(validated, key=lambda number: validated[number])}"
    controls = [f"parent {side}" for side in SIDES]
    dearer = max((by_name[name] for name in controls), key=lambda e: e.test["macs"])
    rival = by_name[f"{dearer.name} finished"]
    p_values = holm([_p_value(by_name[f"{name} finished"], rival) for name in names])
    told = dict(zip(names, p_values, strict=True))
    rows = []
    for name in [*controls, *names]:
        before, after = by_name[name], by_name[f"{name} finished"]
        gain = after.quality - rival.quality
        rows.append(
            [
                name,
                before.subnetwork.output if before.subnetwork else "",
                f"{after.test['macs'] / 1e6:.1f}",
                f"{100 * before.quality:.2f}",
                f"{100 * after.quality:.2f}",
                f"{100 * gain:+.2f}",
                p_value_text(told[name]) if name in told else "",
            ]
        )
    head = ["network", "output", "M MACs", "before, %", "after, %", f"over {rival.name}", "p"]
    print(markdown_table(head, rows))
    print(f"\n{steps} steps each, {front.images} test images. {front.headline}")
    result = {
        "best": best,
        "gain": round(100 * (by_name[f"{best} finished"].quality - rival.quality), 2),
        "p_value": told[best],
        "steps": steps,
        "before": {row[0]: float(row[3]) for row in rows},
        "after": {row[0]: float(row[4]) for row in rows},
    }
    print(json.dumps(result))


def _p_value(entry: Entry, rival: Entry) -> float:
    assert entry.result is not None
    assert rival.result is not None
    same = torch.equal(entry.result.right, rival.result.right)  # type: ignore[union-attr]
    return 1.0 if same else paired_p_value(entry.result, rival.result)


if __name__ == "__main__":
    main()
