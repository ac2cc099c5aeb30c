"""Studies in storages: made once for one supernetwork, and joined again later."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.storages import BaseStorage

from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.search.heartbeat import Heartbeat
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.space import enqueue_starts
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.storage.retry import is_of_storage, reason
from optuna_stitch.utils.errors import StudyError

# The study's attribute that says which supernetwork it was made for; it is written last.
CONTENT = "supernetwork"

# Seconds in which a worker that made a study must have said that it prepares it.
_FIRST_BEAT = 3.0


def open_study(
    name: str,
    storage: BaseStorage,
    objective: Objective,
    sampler: optuna.samplers.BaseSampler,
    *,
    population: int = 50,
    probability: float = 0.05,
    stitch_qualities: Sequence[StitchQuality] = (),
    genotypes: Sequence[Genotype] = (),
    seed: int = 0,
    prepare: Callable[[optuna.Study], None] | None = None,
) -> optuna.Study:
    """Create a study with its first trials enqueued, or join it where it exists.

    Of several workers that come at once one prepares the study, and the others wait for it.

    Args:
        name: The study's.
        storage: Where it is kept.
        objective: What it optimizes.
        sampler: What proposes trials.
        population: How many trials are enqueued at the start; see `enqueue_starts`.
        probability: Probability of each switch to be on in the random ones.
        stitch_qualities: The report of the fit, whose best are among the first trials.
        genotypes: What else is among the first trials.
        seed: Of the random ones.
        prepare: What else is done with a new study before others may join it.

    Raises:
        StudyError: If a study of that name was made for another supernetwork or for other
            objectives, or the storage fails.
    """
    content = objective.supernetwork.content_hash()
    try:
        study, found = _create_or_join(name, storage, objective, sampler)
        if found is None:
            with Heartbeat(study):
                name_metrics(study, objective.metric_names)
                enqueue_starts(
                    study,
                    objective.supernetwork,
                    population=population,
                    probability=probability,
                    stitch_qualities=stitch_qualities,
                    genotypes=genotypes,
                    space=objective.space,
                    seed=seed,
                )
                if prepare is not None:
                    prepare(study)
                # last, so that a start that was interrupted is made again
                study.set_user_attr(CONTENT, content)
    except Exception as error:
        if not is_of_storage(error):
            raise
        raise StudyError(f"The study {name!r} cannot be opened: {reason(error)}.") from error
    if found is not None and found != content:
        raise StudyError(
            f"The study {name!r} was made for the supernetwork {found}, not for {content}. Give "
            "this one another study name, or another storage."
        )
    if study.metric_names != objective.metric_names:
        raise StudyError(
            f"The study {name!r} has the objectives {study.metric_names}, not "
            f"{objective.metric_names}. Give this one another study name."
        )
    return study


def name_metrics(study: optuna.Study, names: Sequence[str]) -> None:
    """Say what a study's values are, for the dashboard."""
    with warnings.catch_warnings():
        # that the call may change is for us to follow
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(names))


def content_of(name: str, storage: BaseStorage) -> str | None:
    """The content hash of the supernetwork that a study was made for, if there is that study."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None
    found: str | None = study.user_attrs.get(CONTENT)
    return found


def _create_or_join(
    name: str,
    storage: BaseStorage,
    objective: Objective,
    sampler: optuna.samplers.BaseSampler,
) -> tuple[optuna.Study, str | None]:
    """The study, and the supernetwork it was made for unless this process shall prepare it."""
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, directions=objective.directions
        )
        return study, None
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    watcher = Heartbeat(study)
    begin = time.monotonic()
    while (found := study.user_attrs.get(CONTENT)) is None:
        # one that died while it prepared the study left it to whoever comes
        if time.monotonic() - begin > _FIRST_BEAT and not watcher.alive():
            break
        time.sleep(0.2)
    return study, found
