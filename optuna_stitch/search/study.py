"""Studies in storages: made once for one supernetwork, and joined again later."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.database import connect_args, hide_password, prepare
from optuna_stitch.errors import StudyError, first_line
from optuna_stitch.evaluation.crossovers import Crossover
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.space import enqueue_starts

# The study's attribute that says which supernetwork it was made for.
_CONTENT = "supernetwork"


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open a storage by its URL, and make its tables where it has none.

    Args:
        url: A database URL of SQLAlchemy's.

    Raises:
        StudyError: If it cannot be reached.
    """
    try:
        arguments = {"connect_args": connect_args(url)}
        storage = optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        prepare(storage.engine)
    except Exception as error:  # every database driver has exceptions of its own
        raise StudyError(
            f"The storage {hide_password(url)} cannot be opened: {first_line(error)}. Check the "
            "URL, that the database runs, and that its folder exists."
        ) from error
    return storage


def open_study(
    name: str,
    storage: optuna.storages.BaseStorage,
    objective: Objective,
    sampler: optuna.samplers.BaseSampler,
    *,
    population: int = 50,
    probability: float = 0.05,
    crossovers: Sequence[Crossover] = (),
    seed: int = 0,
) -> optuna.Study:
    """Create a study with its first trials enqueued, or join it where it exists.

    Args:
        name: The study's.
        storage: Where it is kept.
        objective: What it optimizes.
        sampler: What proposes trials.
        population: How many trials are enqueued at the start; see `enqueue_starts`.
        probability: Probability of each switch to be on in the random ones.
        crossovers: The report of the fit, whose best are among the first trials.
        seed: Of the random ones.

    Raises:
        StudyError: If a study of that name was made for another supernetwork or for other
            objectives, or the storage fails.
    """
    content = objective.supernetwork.content_hash()
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=sampler,
            directions=objective.directions,
            load_if_exists=True,
        )
        found = study.user_attrs.get(_CONTENT)
        if found is None:
            with warnings.catch_warnings():
                # the dashboard shows these names; that the call may change is for us to follow
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(objective.metric_names)
            enqueue_starts(
                study,
                objective.supernetwork,
                population=population,
                probability=probability,
                crossovers=crossovers,
                seed=seed,
            )
            # last, so that a start that was interrupted is made again
            study.set_user_attr(_CONTENT, content)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StudyError(f"The study {name!r} cannot be opened: {first_line(error)}.") from error
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


def release_trials(study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
    """Fail trials that nothing works on any more, and enqueue them again."""
    for trial in trials:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        # a trial that was enqueued keeps what it was enqueued with, also before it has asked
        params = trial.system_attrs.get("fixed_params") or trial.params
        if params:
            study.enqueue_trial(params, user_attrs={"retry_of": trial.number})
