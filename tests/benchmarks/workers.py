"""What several workers on one machine are worth: trials a minute, and how good a front they find.

    uv run python tests/benchmarks/workers.py [--quick] [--storage journal] [--repeats 5]

Studies have the same enqueued starts, over a small pair on scanned digits. Each worker is a
process with one thread and a sampler of its own seed, and remembers only what itself judged. The
rate is of finished trials, from when every worker has finished one to the last trial of all, so
that loading programs and parents does not count. The hypervolume of accuracy and MACs on the
validation images, after the first 300 finished trials, is a share of that of the front of all runs
together. The runs of one worker differ by their seed only, and so tell what is chance. A trial
takes some 10 ms, so that workers ask more of the storage than in any real search; give it a core
for each worker, and an idle machine. How long workers compute for a trial tells, on a
machine that is not idle, whether more of them cost more. The last line is JSON: the median of the
trials a minute, by number of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

import optuna_stitch as st
from optuna_stitch.search.heartbeat import WORKER
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.progress import console

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.storages import KINDS, storage_url
from tests.helpers.tabulated import Point, hypervolume
from tests.helpers.working import CPU, NAME, workers

COUNTS = (1, 2, 4)
IMAGES, BATCH = 200, 10
# The hypervolume is that of so many trials.
JUDGED = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores: 3 runs")
    parser.add_argument("--storage", choices=KINDS, default="sqlite")
    parser.add_argument("--trials", type=int, default=None, help="1200, or 800 if quick")
    parser.add_argument("--repeats", type=int, default=None, help="5, or 3 if quick")
    arguments = parser.parse_args()
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    trials = arguments.trials or (800 if arguments.quick else 1200)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    costs: dict[int, list[float]] = {count: [] for count in COUNTS}
    points: dict[int, list[list[Point]]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        for repeat in range(repeats):
            for count in COUNTS:  # in turn, so that a machine that slows down is fair
                done, seconds = search(count, Path(folder), arguments.storage, trials, 10 * repeat)
                rates[count].append(rate(done, count))
                costs[count].append(1000 * seconds / len(done))
                points[count].append([(t.values[0], t.values[1]) for t in done[:JUDGED]])
                console.print(
                    f"run {repeat + 1} of {repeats}, workers: {count}, "
                    f"trials a minute: {rates[count][-1]:.0f}, "
                    f"CPU ms a trial: {costs[count][-1]:.1f}"
                )
    found = shares(points)
    cores = len(os.sched_getaffinity(0))
    table = Table(
        "workers",
        "runs",
        "trials a minute",
        "times one",
        "CPU ms a trial",
        f"hypervolume after {JUDGED}, %",
        title=f"{trials} trials, {arguments.storage}, {cores} cores: median (range)",
    )
    one = statistics.median(rates[1])
    for count in COUNTS:
        middle, share = statistics.median(rates[count]), found[count]
        table.add_row(
            str(count),
            str(repeats),
            shown(rates[count], ".0f"),
            f"{middle / one:.2f}",
            shown(costs[count], ".1f"),
            shown([100 * value for value in share], ".2f"),
        )
    console.print(table)
    spread = statistics.stdev(found[1]) if repeats > 1 else float("nan")
    for count in COUNTS[1:]:
        difference = statistics.mean(found[count]) - statistics.mean(found[1])
        console.print(
            f"{count} workers find {100 * difference:+.2f} points of hypervolume beside one "
            f"(means); one worker's standard deviation by seed is {100 * spread:.2f}."
        )
    print(json.dumps({str(count): round(statistics.median(rates[count])) for count in COUNTS}))


def build(folder: Path) -> None:
    """The pair of the tests, saved for the workers."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = st.load_data("sklearn/digits", train={"images": 300}, val={"images": 200})
    parents = []
    for name, epochs in (("test_resnet", 4), ("test_efficientnet", 6)):
        parent = st.load_parent(name, num_classes=10, view=st.View((3, 32, 32)))
        st.train_parent(parent, data.train, st.Recipe(epochs=epochs, learning_rate=4e-3))
        parents.append(parent)
    supernetwork = st.stitch(*parents)
    supernetwork.fit(data.train)
    supernetwork.save(folder)


def search(
    count: int, folder: Path, kind: str, trials: int, seed: int
) -> tuple[list[FrozenTrial], float]:
    """The finished trials of a study by so many workers, in their order, and the CPU seconds."""
    options = {"images": IMAGES, "first_seed": seed, "until": trials, "batch": BATCH}
    with storage_url(kind) as url:
        open_storage(url)  # makes its tables
        with workers(count, folder, url, **options) as started:
            for process in started:
                process.join()
                if process.exitcode != 0:
                    sys.exit(f"A worker ended with exit code {process.exitcode}.")
        study = optuna.load_study(study_name=NAME, storage=open_storage(url))
        done = study.get_trials(states=(TrialState.COMPLETE,))
        seconds = sum(value for key, value in study.user_attrs.items() if key.startswith(CPU))
        return sorted(done, key=ended), seconds


def ended(trial: FrozenTrial) -> float:
    assert trial.datetime_complete is not None
    return trial.datetime_complete.timestamp()


def rate(trials: Sequence[FrozenTrial], count: int) -> float:
    """Finished trials a minute, while all workers were at it."""
    ends: dict[str, list[float]] = {}
    for trial in trials:
        ends.setdefault(trial.user_attrs[WORKER], []).append(ended(trial))
    if len(ends) < count:
        sys.exit("A worker came too late to finish a trial; ask for more `--trials`.")
    begin = max(min(own) for own in ends.values())
    later = [end for own in ends.values() for end in own if end > begin]
    return 60 * len(later) / (max(later) - begin)


def shares(points: dict[int, list[list[Point]]]) -> dict[int, list[float]]:
    """For each run its hypervolume, as a share of that of all runs together."""
    every = {point for runs in points.values() for run in runs for point in run}
    front = [
        point
        for point in every
        if not any(
            other[0] >= point[0] and other[1] <= point[1] and other != point for other in every
        )
    ]
    accuracy, macs = zip(*front, strict=True)
    # a point further off would count little but the corner that any search finds at once
    reference = (
        min(accuracy) - 0.1 * (max(accuracy) - min(accuracy)),
        max(macs) + 0.1 * (max(macs) - min(macs)),
    )
    whole = hypervolume(front, reference)
    return {
        count: [hypervolume(run, reference) / whole for run in runs]
        for count, runs in points.items()
    }


def shown(values: Sequence[float], form: str) -> str:
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
