"""What a trial costs, beside sampling and judging it, by storage and number of parameters.

CPU milliseconds of the worker's process, and commits (or fsyncs of a journal), to create a trial
with all its parameters and to store its result, in a study that has 1,000 trials already. The
baseline is Optuna's own storage in the same study, which writes parameters one by one. A server's
own work is not counted.

    uv run python tests/benchmarks/trial_cost.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import create_trial
from rich.table import Table

from optuna_stitch.search.space import STATE_CHOICES
from optuna_stitch.storage.buffered import buffered_storage
from optuna_stitch.storage.open import open_storage
from optuna_stitch.storage.rdb import prepare, with_driver
from optuna_stitch.utils.progress import console

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.storages import storage_url
from tests.helpers.writes import counted

TRIALS = 1000
WIDEST = 200
BATCH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials and widths")
    quick = parser.parse_args().quick
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    measured, plain = (40, 10) if quick else (200, 30)
    table = Table("storage", "parameters", "CPU ms", "writes", "Optuna's own: CPU ms", "writes")
    result: dict[str, dict[str, float]] = {}
    for name in ("sqlite", "journal", "postgresql"):
        for width in [WIDEST] if quick else [50, WIDEST, 400]:
            with storage_url(name) as url:
                fill(url, width)
                ours = measure(open_storage(url), width, measured, batch=BATCH)
                theirs = measure(their_storage(url), width, plain, batch=1)
            table.add_row(name, str(width), *shown(ours), *shown(theirs))
            if width == WIDEST:
                writes = "fsyncs" if name == "journal" else "commits"
                cpu, written = (statistics.median(column) for column in zip(*ours, strict=True))
                result[name] = {"cpu_ms": round(cpu, 2), writes: round(written, 2)}
    console.print(table)
    print(json.dumps(result))


def shown(figures: list[tuple[float, float]]) -> list[str]:
    """Median and range of CPU ms, mean of writes."""
    cpu = [entry[0] for entry in figures]
    writes = statistics.mean(entry[1] for entry in figures)
    return [f"{statistics.median(cpu):.1f} ({min(cpu):.1f} to {max(cpu):.1f})", f"{writes:.1f}"]


def their_storage(url: str) -> BaseStorage:
    """Optuna's own storage, on the same data with the same settings of the database."""
    if url.startswith("journal"):
        return JournalStorage(JournalFileBackend(url.removeprefix("journal:///")))
    storage = optuna.storages.RDBStorage(with_driver(url))
    prepare(storage.engine)
    return optuna.storages.get_storage(storage)


def space(width: int) -> dict[str, BaseDistribution]:
    choices: dict[str, BaseDistribution] = {
        f"a.layer{i // 10}.{i % 10} -> b.blocks.{i // 10}.{i % 10}": STATE_CHOICES
        for i in range(width - 1)
    }
    return {**choices, "output": CategoricalDistribution(("a", "b", "ensemble"))}


class Drawn(optuna.samplers.BaseSampler):
    """Draws all parameters at once, so that next to nothing of what is measured is sampling."""

    def __init__(self, width: int) -> None:
        self.space = space(width)
        self.rng = random.Random(0)

    def draw(self) -> dict[str, Any]:
        drawn = {name: self.rng.choice(("off", "on")) for name in self.space}
        return {**drawn, "output": "a"}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return self.draw()

    def sample_independent(self, *_: Any) -> Any:
        raise AssertionError("all parameters are relative")


def fill(url: str, width: int) -> None:
    """A study with as many trials as one in the middle of a search has."""
    study = optuna.create_study(
        study_name="cost", storage=open_storage(url), directions=["maximize", "minimize"]
    )
    sampler = Drawn(width)
    for _ in range(TRIALS):
        values = [random.random(), random.random()]
        study.add_trial(
            create_trial(params=sampler.draw(), distributions=sampler.space, values=values)
        )


def measure(
    storage: BaseStorage, width: int, trials: int, *, batch: int
) -> list[tuple[float, float]]:
    """CPU ms and writes by trial, one entry a batch."""
    study = optuna.load_study(study_name="cost", storage=storage, sampler=Drawn(width))
    found: list[tuple[float, float]] = []
    with counted() as writes:
        for number in range(trials // batch + 1):
            begin, before = time.process_time(), writes()
            asked = [study.ask(space(width)) for _ in range(batch)]
            held = buffered_storage(study)
            if held is not None:
                held.write(asked)
            for trial in asked:
                study.tell(trial, [random.random(), random.random()])
            if number > 0:  # the first reads the trials that are there
                spent = (time.process_time() - begin) * 1e3
                found.append((spent / batch, (writes() - before) / batch))
    return found


if __name__ == "__main__":
    main()
