"""From a study file and a supernetwork to an open study: objective, sampler, first trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.latency import Latencies, measure_latency, use_latencies
from optuna_stitch.evaluation.settings import LatencySettings, Racing
from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.run.schema import StudyFile
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.search.steering import SteeredSampler
from optuna_stitch.search.study import create_study
from optuna_stitch.stitching.genotype import OUTPUT, SIDES, Genotype
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.open import result_cache_engine
from optuna_stitch.utils.progress import console

# Where a run keeps how long operations take, by which all its workers count.
LATENCY = "latency.json"


def make_objective(
    study_file: StudyFile,
    supernetwork: Supernetwork,
    split: Split,
    storage: BufferedStorage,
    folder: Path,
) -> Objective:
    """The objective that a study file describes.

    Args:
        study_file: What to do.
        supernetwork: Whose subnetworks.
        split: The validation split.
        storage: Where the study is kept, and what evaluations found.
        folder: The run's.
    """
    config, evaluation = study_file.study, study_file.evaluation
    if any("latency_ms" in name for name in (*config.objectives, *config.constraints)):
        _use_latencies(study_file, supernetwork, folder / LATENCY)
    racing = evaluation.racing
    return Objective(
        supernetwork,
        split,
        config.objectives,
        space=config.space,
        constraints=config.constraints,
        batch_size=evaluation.batch_size,
        kernels=evaluation.kernels,
        memory=evaluation.memory,
        racing=Racing(**racing.model_dump(), seed=config.seed) if racing else None,
        result_cache=result_cache_engine(storage, folder) if evaluation.remember else None,
    )


def make_study(
    study_file: StudyFile,
    name: str,
    objective: Objective,
    storage: BufferedStorage,
    *,
    stitch_qualities: Sequence[StitchQuality],
    front: Sequence[FrozenTrial] = (),
    prepare: Callable[[optuna.Study], None] | None = None,
) -> optuna.Study:
    """Create the study that a study file describes, or join it.

    Args:
        study_file: What to do.
        name: The study's.
        objective: What `make_objective` returned.
        storage: Where it is kept.
        stitch_qualities: The report of the fit.
        front: Best trials of another study, that a new one starts from.
        prepare: What else is done with a new study; see `create_study`.
    """
    config = study_file.study
    study = create_study(
        objective,
        study_name=name,
        storage=storage,
        sampler=_sampler(study_file, objective, config.seed),
        load_if_exists=True,
        population=config.start.population,
        probability=config.start.probability,
        stitch_qualities=stitch_qualities,
        genotypes=_known_here(front, objective.supernetwork) if front else (),
        seed=config.seed,
        prepare=prepare,
    )
    # a sampler that starts anew with the same seed would propose the same trials again
    started = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    study.sampler = _sampler(study_file, objective, config.seed + started)
    return study


def _sampler(
    study_file: StudyFile, objective: Objective, seed: int
) -> optuna.samplers.BaseSampler:
    config = study_file.study
    sampler = make_sampler(
        config.sampler.name, config.sampler.arguments, seed=seed, key=objective.key
    )
    steering = config.steering
    if steering is None:
        return sampler
    parents = [objective.supernetwork.subnetwork(Genotype(side)) for side in SIDES]
    evaluations = objective.evaluate(parents)
    weaker = min(objective.values(evaluation)[0] for evaluation in evaluations)
    return SteeredSampler(
        sampler, top=steering.share * weaker, trials=int(steering.over * config.trials)
    )


def _known_here(front: Sequence[FrozenTrial], supernetwork: Supernetwork) -> list[Genotype]:
    """Which networks of another study this supernetwork has too, by the names of switches."""
    names = {switch.name for switch in supernetwork.switches} | {OUTPUT}
    found: dict[Genotype, None] = {}
    for trial in front:
        known = {name: value for name, value in trial.params.items() if name in names}
        if all(value == "off" or name in names for name, value in trial.params.items()):
            found[supernetwork.subnetwork(known).genotype] = None
    console.print(
        f"{len(found)} networks from another study's front of {len(front)} trials are among the "
        "first; what is left out repeats one, or has stitches that are not in this supernetwork."
    )
    return list(found)


def _use_latencies(study_file: StudyFile, supernetwork: Supernetwork, path: Path) -> None:
    """Time operations once, so that all trials and all workers count alike."""
    if not path.exists():
        wanted = study_file.evaluation.latency
        measure_latency(supernetwork.supergraph, LatencySettings(**wanted.model_dump())).save(path)
    use_latencies(supernetwork.supergraph, Latencies.load(path))
