"""Studies in storages: created once for one supernetwork, joined and read later."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.search.heartbeat import Heartbeat
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.samplers.linkage import LinkageSampler
from optuna_stitch.search.space import enqueue_starts
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.open import open_storage
from optuna_stitch.storage.retry import is_storage_error, reason, way_out
from optuna_stitch.utils.errors import ConfigError, StudyError, StudyNotFoundError

# The study's attribute that says which supernetwork it was made for; it is written last.
CONTENT = "supernetwork"

# Seconds in which a worker that made a study must have said that it prepares it, also on a machine
# that is busy with other things.
_FIRST_BEAT = 10.0


def create_study(
    objective: Objective,
    *,
    study_name: str | None = None,
    storage: str | BaseStorage | None = None,
    sampler: BaseSampler | None = None,
    load_if_exists: bool = False,
    population: int = 50,
    probability: float = 0.05,
    stitch_qualities: Sequence[StitchQuality] = (),
    genotypes: Sequence[Genotype] = (),
    seed: int = 0,
    prepare: Callable[[optuna.Study], None] | None = None,
) -> optuna.Study:
    """Create a study of an objective's subnetworks, with its first trials enqueued.

    As ``optuna.create_study``, but directions and names of metrics come from the objective. Of
    several workers that come at once with ``load_if_exists``, one prepares the study and the
    others wait for it.

    Args:
        objective: What the study optimizes.
        study_name: Its name; if None, a unique one.
        storage: A URL, which `open_storage` opens, or a storage; if None, memory.
        sampler: What proposes trials; if None, a `LinkageSampler` without a seed.
        load_if_exists: Whether to join a study of that name that exists already.
        population: How many trials are enqueued; see `enqueue_starts`.
        probability: Probability of each switch to be on in the random ones.
        stitch_qualities: The report of the fit, whose best are among the first trials.
        genotypes: What else is among the first trials, such as the front of another study.
        seed: Of the random first trials.
        prepare: Called with a new study before others may join it.

    Returns:
        The study, for `optimize` or its own ``study.optimize``.

    Raises:
        optuna.exceptions.DuplicatedStudyError: If there is a study of that name, and
            ``load_if_exists`` is False.
        StudyError: If that study was made for another supernetwork or for other objectives, or
            the storage fails.
        ConfigError: If ``population`` or ``probability`` is out of its range.

    Example:
        >>> study = st.create_study(objective, study_name="digits", population=10)
        >>> study.metric_names, len(study.trials)
        (['accuracy', 'macs'], 10)
        >>> st.optimize(study, objective, n_trials=5)
    """
    if population < 0:
        raise ConfigError(f"`population` is {population}; it is a number of trials, from 0.")
    if not 0 <= probability <= 1:
        raise ConfigError(f"`probability` is {probability}; it lies between 0 and 1.")
    if isinstance(storage, str):
        storage = open_storage(storage)
    content = objective.supernetwork.content_hash()
    try:
        study, found = _create_or_join(
            study_name,
            # also in memory, so that every sampler finds what it can rely on in a storage
            storage or BufferedStorage(optuna.storages.InMemoryStorage()),
            objective,
            sampler or LinkageSampler(key=objective.key),
            load_if_exists=load_if_exists,
        )
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
                    outputs=objective.outputs,
                    seed=seed,
                )
                if prepare is not None:
                    prepare(study)
                # last, so that a start that was interrupted is made again
                study.set_user_attr(CONTENT, content)
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise _cannot_be_opened(study_name, error) from error
    if found is not None:
        _check_same(study, found, objective)
    return study


def load_study(
    objective: Objective | None = None,
    *,
    study_name: str | None,
    storage: str | BaseStorage,
    sampler: BaseSampler | None = None,
) -> optuna.Study:
    """Load a study that `create_study` made; nothing is written.

    As ``optuna.load_study``, but a storage that does not exist is not made either.

    Args:
        objective: What the study optimizes, to check that it is the same; if None, any will do.
        study_name: Its name; None where it is the only one in the storage.
        storage: A URL, which `open_storage` opens, or a storage.
        sampler: What proposes further trials; if None, a `LinkageSampler` without a seed.

    Raises:
        StudyNotFoundError: If there is no such study, or its start was interrupted.
        StudyError: If it was made for another supernetwork or for other objectives, or the
            storage fails.

    Example:
        >>> storage = f"sqlite:///{tmp_path}/studies.db"
        >>> study = st.create_study(objective, study_name="digits", storage=storage)
        >>> st.optimize(study, objective, n_trials=3)
        >>> loaded = st.load_study(study_name="digits", storage=storage)
        >>> [trial.params["output"] for trial in loaded.trials[:3]]
        ['a', 'b', 'ensemble']
    """
    if isinstance(storage, str):
        storage = open_storage(storage, create=False)
    if sampler is None:
        sampler = LinkageSampler(key=objective.key if objective is not None else None)
    try:
        name = study_name or _only_name(storage)
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        found: str | None = study.user_attrs.get(CONTENT)
    except KeyError:
        raise StudyNotFoundError(
            f"There is no study {name!r} in this storage; `create_study` makes one."
        ) from None
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise _cannot_be_opened(study_name, error) from error
    if found is None:
        raise StudyNotFoundError(
            f"The start of the study {name!r} was interrupted; `create_study` with "
            "`load_if_exists=True` finishes it."
        )
    if objective is not None:
        _check_same(study, found, objective)
    return study


def name_metrics(study: optuna.Study, names: Sequence[str]) -> None:
    """Say what a study's values are, for the dashboard.

    Args:
        study: The study.
        names: One per objective, in their order.
    """
    with warnings.catch_warnings():
        # that the call may change is for us to follow
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(names))


def _create_or_join(
    name: str | None,
    storage: BaseStorage,
    objective: Objective,
    sampler: BaseSampler,
    *,
    load_if_exists: bool,
) -> tuple[optuna.Study, str | None]:
    """The study, and the supernetwork it was made for unless this process shall prepare it."""
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, directions=objective.directions
        )
        return study, None
    except optuna.exceptions.DuplicatedStudyError:
        if not load_if_exists:
            raise
        study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    watcher = Heartbeat(study)
    begin = time.monotonic()
    while (found := study.user_attrs.get(CONTENT)) is None:
        # one that died while it prepared the study left it to whoever comes
        has_begun = bool(study.user_attrs) or time.monotonic() - begin > _FIRST_BEAT
        if has_begun and not watcher.alive():
            break
        time.sleep(0.2)
    return study, found


def _check_same(study: optuna.Study, found: str, objective: Objective) -> None:
    """Raise if a study was made for another objective.

    Args:
        study: The study.
        found: The content hash of the supernetwork that it was made for.
        objective: What it shall be for.
    """
    content = objective.supernetwork.content_hash()
    if found != content:
        raise StudyError(
            f"The study {study.study_name!r} was made for the supernetwork {found}, not for "
            f"{content}. Give this one another study name, or another storage."
        )
    if study.metric_names != objective.metric_names:
        raise StudyError(
            f"The study {study.study_name!r} has the objectives {study.metric_names}, not "
            f"{objective.metric_names}. Give this one another study name."
        )


def _only_name(storage: BaseStorage) -> str:
    names = optuna.get_all_study_names(storage)
    if not names:
        raise StudyNotFoundError("There is no study in this storage; `create_study` makes one.")
    if len(names) > 1:
        raise StudyError(f"Say which study is meant: the storage has {', '.join(names)}.")
    return names[0]


def _cannot_be_opened(name: str | None, error: Exception) -> StudyError:
    which = "A new study" if name is None else f"The study {name!r}"
    return StudyError(f"{which} cannot be opened: {reason(error)}. {way_out(error, '')}".strip())
