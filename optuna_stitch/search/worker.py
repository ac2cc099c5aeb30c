"""One worker: ask for a batch of trials, judge them together, tell the results."""

from __future__ import annotations

import optuna
import sqlalchemy
from optuna.trial import TrialState

from optuna_stitch.errors import StudyError
from optuna_stitch.progress import progress_bar
from optuna_stitch.search.objective import Objective
from optuna_stitch.search.space import distributions
from optuna_stitch.search.study import reclaim_trials


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
        StudyError: If the storage fails; finished trials are kept.
    """
    space = distributions(objective.supernetwork)
    try:
        reclaim_trials(study)
        done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        with progress_bar(show_progress_bar=show_progress_bar) as progress:
            task = progress.add_task("Search", total=n_trials, completed=done, note="")
            while done < n_trials:
                trials = [study.ask(space) for _ in range(min(batch, n_trials - done))]
                genotypes = [objective.supernetwork.genotype(t.params) for t in trials]
                for trial, values in zip(trials, objective.evaluate(genotypes), strict=True):
                    study.tell(trial, values)
                done += len(trials)
                progress.update(task, completed=done, note=f"front of {len(study.best_trials)}")
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StudyError(
            f"The storage failed during the search: {str(error).splitlines()[0]}. Finished trials "
            "are kept; run the same command again to go on."
        ) from error
