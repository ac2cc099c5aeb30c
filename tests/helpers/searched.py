"""Runs that found what a test says, without a network: for comparing searches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from optuna_stitch.run.compare import SearchedRun
from optuna_stitch.run.study_file import load_study_file
from optuna_stitch.storage.open import open_storage

DIRECTIONS = {"accuracy": "maximize", "macs": "minimize", "parameters": "minimize"}
SPACE = {
    "s": CategoricalDistribution(("off", "on")),
    "output": CategoricalDistribution(("a", "b", "ensemble")),
}
# Accuracy, and cost, of what every search starts from.
PARENTS = {"a": (0.90, 2e6, 8e5), "b": (0.94, 4e6, 9e5), "ensemble": (0.95, 6e6, 17e5)}
Row = Sequence[float]


def make_run(
    name: str,
    rows: Sequence[Row | None] = ((0.93, 3e6, 7e5), (0.96, 5e6, 9e5)),
    *,
    parents: dict[str, Row] | None = None,
    content: str = "edec52af945b0904",
    constraints: Sequence[float] | None = None,
    begin: bool = True,
    on_disk: bool = False,
    **changes: Any,
) -> SearchedRun:
    """Make the folder of a run that found these values, and open it.

    Args:
        name: The folder.
        rows: Values of the stitched networks, of which a study takes as many as it has
            objectives; None is a trial that failed.
        parents: Values of parents and ensemble, if others.
        content: The supernetwork's hash.
        constraints: Of every trial.
        begin: Whether there is a study.
        on_disk: Whether the study is where the study file says, for others to open; it takes time.
        changes: What the study file says otherwise, by dotted keys with two underscores for dots.
    """
    content_of_file: dict[str, Any] = {
        "parents": {
            side: {"network": f"test_{side}", "random_weights": True} for side in ("a", "b")
        },
        "study": {"name": Path(name).name, "storage": "sqlite:///{run}/study.db", "trials": 100},
    }
    for key, value in changes.items():
        section = content_of_file
        *sections, last = key.split("__")
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = copy.deepcopy(value)
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(content_of_file))
    study_file = load_study_file(folder / "study.yaml")
    objectives = study_file.study.objectives
    url = study_file.study.storage.replace("{run}", name)
    study = optuna.create_study(
        study_name=folder.name if begin else "another",
        storage=open_storage(url) if on_disk else None,
        directions=[DIRECTIONS[objective] for objective in objectives],
    )
    study.set_user_attr("supernetwork", content)
    attrs = {} if constraints is None else {"constraints": list(constraints)}
    starts = [
        ("off", output, row) for output, row in (PARENTS if parents is None else parents).items()
    ]
    for state, output, row in [*starts, *(("on", "a", row) for row in rows)]:
        study.add_trial(
            create_trial(
                state=TrialState.FAIL if row is None else TrialState.COMPLETE,
                params={"s": state, "output": output},
                distributions=SPACE,
                values=None if row is None else list(row)[: len(objectives)],
                system_attrs=attrs,
            )
        )
    return SearchedRun(name, study_file, study)


def climb(end: float, count: int = 12) -> list[Row]:
    """Networks at 3 M MACs that get better, up to an accuracy."""
    return [(0.94 + (end - 0.94) * (n + 1) / count, 3e6, 7e5) for n in range(count)]


def seeds(name: str, ends: Sequence[float], **changes: Any) -> list[SearchedRun]:
    return [
        make_run(f"{name}{seed}", climb(end), study__seed=seed, **changes)
        for seed, end in enumerate(ends)
    ]


def samplers(*ends: Sequence[float], on_disk: bool = False) -> list[SearchedRun]:
    names = ("linkage", "nsga2", "random")
    return [
        run
        for name, of_name in zip(names, ends, strict=False)
        for run in seeds(name, of_name, on_disk=on_disk, study__sampler={"name": name})
    ]
