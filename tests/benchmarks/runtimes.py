"""Accuracy and milliseconds of exported networks, by format: does a file keep what was found?

    uv run python tests/benchmarks/runtimes.py [PAIR ...] [--quick]

Pairs are `digits` (with `--quick` the only one) and `cifar`. A short search finds a front; three
of its stitched networks (the most accurate one at fixed cost, the cheapest one, and the most
accurate cascade) and both parents are exported in every format that runs here. Each file is judged
on the test images in its own runtime, by a paired test against the network that was judged, and
timed for one image in turns with the others. Int8 chooses its ranges on train images.

*added* is what `latency: {runtime: onnxruntime}` adds up for the network, beside `onnx` in one
piece (of a cascade the file that stops early). The last line is JSON, by pair: points lost by
format, the mean over the networks and the most, and times as fast as `python`, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import optuna

import optuna_stitch as st
from optuna_stitch.evaluation.latency import measure_latency
from optuna_stitch.evaluation.settings import LatencySettings
from optuna_stitch.export.proof import Proof, read_proofs
from optuna_stitch.utils.text import markdown_table, p_value_text, percent_text, points_text

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, Pair, load_pair, say, state

FORMATS = ("python", "program", "onnx", "onnx-float16", "onnx-int8", "openvino", "tensorrt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", default=["digits", "cifar"], metavar="PAIR")
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    result = {}
    for name in ["digits"] if arguments.quick else arguments.pairs:
        if name != "digits" and not DATA.is_dir():
            sys.exit(f"The pair {name} {MISSING}.")
        pair = load_pair(name)
        result[name] = measure(name, pair, trials=40 if arguments.quick else 100)
    print(json.dumps(result))


def measure(name: str, pair: Pair, trials: int) -> dict[str, dict[str, float]]:
    began = time.perf_counter()
    data = pair.data
    val, test = data.val.take(1000), data.test.take(2000)
    supernetwork = st.stitch(pair.a, pair.b)
    supernetwork.fit(data.train.take(500))
    latencies = measure_latency(supernetwork.supergraph, LatencySettings(runtime="onnxruntime"))
    say(f"{name}: fitted and timed in pieces after {time.perf_counter() - began:.0f} s")
    proofs: dict[str, list[Proof]] = {}
    added: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, subnetwork in networks(supernetwork, val, trials).items():
            to = subnetwork.export(
                Path(folder) / label.replace(" ", "-"),
                formats=FORMATS,
                validation=test,
                train=data.train,
            )
            proofs[label], added[label] = read_proofs(to), latencies(subnetwork)
            say(f"{name}: {label} after {time.perf_counter() - began:.0f} s")
    print(f"{state()}: {pair.a.name} × {pair.b.name}, {len(test)} test images\n")
    print(table(proofs, added), end="\n\n")
    return {
        form: {
            "lost": round(statistics.mean(100 * one.drop for one in of(proofs, form)), 3),
            "most_lost": round(max(100 * one.drop for one in of(proofs, form)), 3),
            "times_as_fast": round(
                statistics.median(
                    plain.latency_ms / one.latency_ms
                    for plain, one in zip(of(proofs, "python"), of(proofs, form), strict=True)
                ),
                2,
            ),
        }
        for form in FORMATS
    } | {
        "added_over_whole": {
            "median": round(
                statistics.median(
                    added[label] / one.latency_ms
                    for label, one in zip(proofs, of(proofs, "onnx"), strict=True)
                ),
                2,
            )
        }
    }


def networks(supernetwork: st.Supernetwork, val: object, trials: int) -> dict[str, st.Subnetwork]:
    """Both parents, and three stitched networks of a front on validation images."""
    objective = st.Objective(supernetwork, val, ["accuracy", "macs"])  # type: ignore[arg-type]
    study = st.create_study(objective, sampler=optuna.samplers.NSGAIISampler(seed=0))
    st.optimize(study, objective, n_trials=trials, batch=10)
    found = {}
    for trial in study.get_trials(deepcopy=False):
        subnetwork = objective.subnetwork(trial.params)
        if subnetwork.on and trial.values:
            found[subnetwork] = trial.values
    front = [
        one
        for one, (accuracy, macs) in found.items()
        if not any(
            a >= accuracy and m <= macs and (a, m) != (accuracy, macs) for a, m in found.values()
        )
    ]
    fixed = [one for one in front if not one.is_cascade] or [
        one for one in found if not one.is_cascade
    ]
    best = max(fixed, key=lambda one: found[one][0])
    cheapest = min((one for one in fixed if one != best), key=lambda one: found[one][1])
    cascade = max((one for one in front if one.is_cascade), key=lambda one: found[one][0])
    return {
        "parent a": supernetwork.subnetwork({"output": "a"}),
        "parent b": supernetwork.subnetwork({"output": "b"}),
        "most accurate": best,
        "cheapest": cheapest,
        "cascade": cascade,
    }


def of(proofs: dict[str, list[Proof]], form: str) -> list[Proof]:
    """The file of a format for each network; of a cascade the one that stops early."""
    return [[one for one in some if one.format == form][-1] for some in proofs.values()]


def table(proofs: dict[str, list[Proof]], added: dict[str, float]) -> str:
    rows = []
    for label, some in proofs.items():
        for one in some:
            kept = one.answers[""]
            rows.append(
                [
                    label,
                    one.file,
                    percent_text(kept.quality, sign=""),
                    points_text(kept.difference),
                    p_value_text(kept.p_value),
                    percent_text(kept.agreement, sign=""),
                    f"{one.latency_ms:.3g}",
                    f"{added[label]:.3g}"
                    if one == of(proofs, "onnx")[list(proofs).index(label)]
                    else "",
                    f"{one.bytes / 1e6:.3g}",
                ]
            )
    head = ["network", "file", "accuracy, %", "difference", "p", "same answers, %", "ms", "added"]
    return markdown_table([*head, "MB"], rows, align="llr")


if __name__ == "__main__":
    main()
