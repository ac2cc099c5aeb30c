"""What a study file says of the search: its objective, its sampler, and where it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.latency import Latencies, measure_latency
from optuna_stitch.run.schema import StudyConfig, StudyFile
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.search.steering import SteeredSampler
from optuna_stitch.search.trackers import MLflowTracker, Tracker, WandbTracker
from optuna_stitch.stitching.genotype import BOTH, OUTPUT, THRESHOLD, Genotype, Output
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.progress import console

# Where a run keeps how long operations take, by which all its workers count.
LATENCY = "latency.json"


def make_objective(
    study_file: StudyFile,
    supernetwork: Supernetwork,
    split: Split | SplitPair,
    folder: Path,
    *,
    result_cache: sqlalchemy.Engine | None = None,
) -> Objective:
    """The objective that a study file describes.

    Args:
        study_file: What to do.
        supernetwork: Whose subnetworks.
        split: The validation split.
        folder: The run's.
        result_cache: Database in which figures are remembered, if they are.
    """
    study = study_file.study
    latency = None
    if study_file.counts_latency:
        latency = _latencies(study_file, supernetwork, folder / LATENCY)
    return Objective(
        supernetwork,
        split,
        study.objectives,
        space=study.space,
        outputs=study.outputs,
        constraints=study.constraints,
        settings=study_file.evaluation,
        result_cache=result_cache,
        latency=latency,
    )


def _latencies(study_file: StudyFile, supernetwork: Supernetwork, path: Path) -> Latencies:
    """How long operations take, timed once, so that all trials and all workers count alike."""
    if not path.exists():
        measure_latency(supernetwork.supergraph, study_file.evaluation.latency).save(path)
    return Latencies.load(path)


def sampler_for(
    study: optuna.Study, objective: Objective, config: StudyConfig
) -> optuna.samplers.BaseSampler:
    """The sampler that a study file describes, for one worker.

    Args:
        study: The study that it shall go on with.
        objective: Its objective, by which the parents are evaluated where the search is steered.
        config: What the study file says.
    """
    # a sampler that starts anew with the same seed would propose the same trials again
    finished = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    sampler = make_sampler(
        config.sampler.name,
        config.sampler.arguments,
        seed=config.seed + finished,
        key=objective.key,
    )
    if config.steering is None:
        return sampler
    supernetwork = objective.supernetwork
    sides: Sequence[Output] = (BOTH,) if supernetwork.two_jobs else supernetwork.sides
    parents = [Genotype(side) for side in sides]
    evaluations = objective.evaluate([supernetwork.subnetwork(parent) for parent in parents])
    weaker = min(objective.values(evaluation)[0] for evaluation in evaluations)
    return SteeredSampler(
        sampler,
        top=config.steering.share * weaker,
        trials=int(config.steering.over * config.trials),
    )


def trackers_of(study_file: StudyFile, folder: Path) -> list[Tracker]:
    """The experiment trackers that a study file names.

    Args:
        study_file: What it says.
        folder: The run's, where local files are kept.

    Raises:
        ConfigError: If one is not installed.
    """
    config, found = study_file.trackers, list[Tracker]()
    if config.mlflow is not None:
        found.append(MLflowTracker(**config.mlflow.model_dump()))
    if config.wandb is not None:
        found.append(WandbTracker(**config.wandb.model_dump(), folder=folder))
    return found


def known_genotypes(front: Sequence[FrozenTrial], supernetwork: Supernetwork) -> list[Genotype]:
    """Which networks of another study a supernetwork has too, by the names of switches.

    Args:
        front: Best trials of the other study.
        supernetwork: The supernetwork.
    """
    names = {switch.name for switch in supernetwork.switches} | {OUTPUT, THRESHOLD}
    found: dict[Genotype, None] = {}
    for trial in front:
        known = {name: value for name, value in trial.params.items() if name in names}
        if known.get(OUTPUT) not in supernetwork.supergraph.outputs:
            continue  # of parents with another number of jobs
        if all(value == "off" or name in names for name, value in trial.params.items()):
            found[supernetwork.subnetwork(known).genotype] = None
    console.print(
        f"{len(found)} networks from another study's front of {len(front)} trials are among the "
        "first; what is left out repeats one, or has stitches that are not in this supernetwork."
    )
    return list(found)
