"""One worker: ask for a batch of trials, judge them together, tell the results."""

from __future__ import annotations

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from optuna_stitch.errors import StudyError, first_line
from optuna_stitch.progress import progress_bar
from optuna_stitch.search.objective import FAILED_AT, Objective
from optuna_stitch.search.space import distributions, join_population, suggest
from optuna_stitch.search.study import release_trials
from optuna_stitch.stitching.genotype import Genotype

# After so many batches in which every trial failed, more would fail too.
_FRUITLESS = 10


def search(
    study: optuna.Study,
    objective: Objective,
    *,
    n_trials: int,
    batch: int = 10,
    show_progress_bar: bool = False,
) -> None:
    """Run a study until it has so many complete trials.

    Trials of a batch are judged as one program, which computes once what they share. What an
    interrupted search left unfinished is taken up first.

    Args:
        study: A study over the objective's switches.
        objective: What judges its trials.
        n_trials: How many complete trials the study shall have in the end.
        batch: How many trials are asked for and judged together.
        show_progress_bar: Whether to show a progress bar.

    Raises:
        StudyError: If the storage fails, or nothing but failed trials comes; finished trials are
            kept.
    """
    flat = objective.space == "flat"
    space = distributions(objective.supernetwork) if flat else {}
    try:
        release_trials(study, study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        with progress_bar(show_progress_bar=show_progress_bar) as progress:
            task = progress.add_task("Search", total=n_trials, completed=done, note="")
            fruitless = 0
            while done < n_trials:
                before = done
                _work(study, objective, space, min(batch, n_trials - done))
                done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
                fruitless = 0 if done > before else fruitless + 1
                if fruitless == _FRUITLESS:
                    raise StudyError(
                        f"The last {_FRUITLESS} batches of trials all failed: their networks "
                        f"answer no finite numbers. The trials' attribute {FAILED_AT!r} names "
                        "the first operation that does so; see whether the parents' weights are "
                        "whole."
                    )
                # trials that repeat a network of the front stand beside it
                front = {tuple(trial.values) for trial in study.best_trials}
                progress.update(task, completed=done, note=f"front of {len(front)}")
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StudyError(
            f"The storage failed during the search: {first_line(error)}. Finished trials "
            "are kept; run the same command again to go on."
        ) from error


def _work(
    study: optuna.Study, objective: Objective, space: dict[str, BaseDistribution], count: int
) -> None:
    """Ask for some trials, judge them together, tell the results."""
    trials: list[optuna.Trial] = []
    genotypes: list[Genotype] = []
    try:
        for _ in range(count):
            trials.append(study.ask(space))
            genotypes.append(suggest(trials[-1], objective.supernetwork, objective.space))
            join_population(study, trials[-1].number)
        evaluations = objective.evaluate(genotypes)
    except BaseException:
        # also on Ctrl-C: no trial shall look as if somebody were still working on it
        numbers = {trial.number for trial in trials}
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        release_trials(study, (trial for trial in running if trial.number in numbers))
        raise
    for trial, evaluation in zip(trials, evaluations, strict=True):
        objective.mark(trial, evaluation)
        if evaluation.failed:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, objective.values(evaluation))
