"""One worker: ask for a batch of trials, judge them together, tell the results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import moocore
import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.evaluation.accumulator import Evaluation
from optuna_stitch.search.heartbeat import WORKER, Heartbeat
from optuna_stitch.search.objective import FAILED_AT, Objective, violation
from optuna_stitch.search.samplers.by_name import check_error
from optuna_stitch.search.space import (
    asked,
    distributions,
    enqueue_params,
    join_population,
    suggest,
)
from optuna_stitch.search.steering import unwrapped
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.storage.buffered import buffered_storage
from optuna_stitch.storage.retry import is_storage_error, is_transient, reason, way_out
from optuna_stitch.utils.errors import StudyError
from optuna_stitch.utils.interrupt import (
    check_lost_interrupt,
    heeding_interrupts,
    uninterrupted,
)
from optuna_stitch.utils.machine import usable_cores
from optuna_stitch.utils.progress import console, progress_bar

Callback = Callable[[optuna.Study, FrozenTrial], None]

# After so many batches in which every trial failed, more would fail too.
_FRUITLESS = 10

# A trial that so many workers left behind is not tried again: it may be what ends them.
_MOST_RETRIES = 3

RETRY_OF, RETRIES = "retry_of", "retries"

# One trial of so many may be another threshold of a cascade that was judged already, if that adds
# this share to the front's hypervolume.
_FOLLOWED, _WORTH = 3, 1e-4

# Seconds between two looks at trials that other workers have still to finish.
_PAUSE = 0.5


def optimize(
    study: optuna.Study,
    objective: Objective,
    *,
    n_trials: int | None = None,
    until: int | None = None,
    batch: int = 10,
    grace: float = 60.0,
    callbacks: Sequence[Callback] = (),
    show_progress_bar: bool = False,
) -> None:
    """Search as one worker; any number of them may work on the same study.

    Trials of a batch are judged as one program, which computes once what they share. What a
    worker left unfinished that is dead, or was interrupted, is enqueued again. The search ends
    early where the sampler calls ``study.stop``, as those do that have tried everything.

    Args:
        study: A study over the objective's switches. With a storage of `open_storage` a trial is
            written in one piece.
        objective: What judges its trials.
        n_trials: How many trials this worker shall finish, as in ``study.optimize``.
        until: How many finished trials the study shall have in the end, whoever finishes them.
            Trials that fail do not count, those pruned do.
        batch: How many trials are asked for and judged together.
        grace: Seconds without a sign of life after which another worker is taken for dead.
        callbacks: Called with the study and each trial that this worker finished, as those of
            ``study.optimize``.
        show_progress_bar: Whether to show a progress bar.

    Raises:
        ValueError: If neither number is given, or ``batch`` is none.
        StudyError: If the storage fails, another version of this package works on the study, or
            nothing but failed trials comes; finished trials are kept.
        ConfigError: If the sampler cannot search for several objectives.
    """
    if n_trials is None and until is None:
        raise ValueError("Say how long to search: n_trials, until, or both.")
    if batch < 1:
        raise ValueError(f"`batch` is {batch}; at least one trial is judged at once.")
    threads = torch.get_num_threads()
    try:
        with (
            heeding_interrupts(),
            Heartbeat(study, grace=grace) as worker,
            _stoppable(study) as stop,
        ):
            objective.settle(study)
            search = _Search(study, objective, worker, stop, callbacks)
            search.go(n_trials, until, batch, show_progress_bar)
    except Exception as error:
        check_error(error, unwrapped(study.sampler), len(study.directions))
        if not is_storage_error(error):
            raise
        raise StudyError(
            f"The storage failed during the search: {reason(error)}. "
            + way_out(error, "Finished trials are kept; run the same command again to go on.")
        ) from error
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Search:
    study: optuna.Study
    objective: Objective
    worker: Heartbeat
    stop: threading.Event
    """Set when the sampler wants no more trials."""
    callbacks: Sequence[Callback] = ()
    finished: int = 0
    """Trials that this worker finished."""
    fruitless: int = 0
    lost: int = 0
    """Trials of the batch that others finished, who took this worker for dead."""
    threads: int = field(default_factory=torch.get_num_threads)
    """Threads of this process at its start."""

    def go(
        self, n_trials: int | None, until: int | None, batch: int, show_progress_bar: bool
    ) -> None:
        with progress_bar(show_progress_bar=show_progress_bar) as progress:
            task = progress.add_task("Search", total=None, note="")
            judged: Sequence[Subnetwork] = ()
            while True:
                check_lost_interrupt()
                trials = self.study.get_trials(deepcopy=False)
                done = sum(_counts(trial) for trial in trials)
                wanted = done + n_trials - self.finished if n_trials is not None else until
                total = min(wanted, until) if wanted and until else wanted
                note = f"front of {len(self._front(trials))}"
                progress.update(task, completed=done, total=total, note=note)
                if n_trials is not None and self.finished >= n_trials:
                    return
                if until is not None and done >= until:
                    return
                if self.stop.is_set() or self._is_exhausted(trials):
                    console.print(
                        f"{type(unwrapped(self.study.sampler)).__name__} has no more trials to "
                        f"propose: the search ends after {done}."
                    )
                    return
                torch.set_num_threads(self._share())
                running = self._release(trials)
                left = [n_trials - self.finished] if n_trials is not None else []
                left += [until - done - running] if until is not None else []
                if min(left) <= 0:
                    time.sleep(_PAUSE)  # others have the last ones, and may yet die
                    continue
                # not before it is clear that the search goes on: nobody would try them
                self._enqueue_thresholds(judged)
                judged = self._work(min(batch, *left))
                if self.lost:
                    console.print(
                        f"Other workers took this one for dead and finished {self.lost} of its "
                        "trials; it goes on with the next. Is `grace` shorter than this machine "
                        "was busy or asleep?",
                        style="yellow",
                    )
                if self.fruitless == _FRUITLESS:
                    raise StudyError(
                        f"The last {_FRUITLESS} batches of trials all failed: their networks "
                        f"answer no finite numbers. The trials' attribute {FAILED_AT!r} names "
                        "the first operation that does so; see whether the parents' weights are "
                        "whole."
                    )

    @property
    def _signs(self) -> NDArray[np.int64]:
        return np.array([1 if d == "minimize" else -1 for d in self.objective.directions])

    def _front(self, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
        """What is to be minimized, of the front, ``(trials, objectives)``; each value once.

        `optuna.Study.best_trials` copies every trial of the study.
        """
        values = [
            trial.values
            for trial in trials
            if trial.state == TrialState.COMPLETE and violation(trial) == 0
        ]
        if not values:
            return np.empty((0, len(self._signs)))
        losses = self._signs * np.array(values, dtype=float)
        return np.asarray(losses[moocore.is_nondominated(losses)])

    def _share(self) -> int:
        """How many threads are this worker's, of the cores that workers here have together.

        More threads than cores wait for each other: one that is descheduled stalls the others.
        """
        return max(1, min(self.threads, usable_cores() // self.worker.here()))

    def _release(self, trials: Sequence[FrozenTrial]) -> int:
        """Enqueue again what dead workers left; returns how many trials others still run."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        mine = [t for t in running if t.user_attrs.get(WORKER) == self.worker.name]
        for trial in mine:
            # between batches: written twice, since the storage's answer was lost
            _fail(self.study, trial.number)
        others = [trial for trial in running if trial not in mine]
        abandoned = self.worker.abandoned(others)
        for trial in abandoned:
            with uninterrupted():
                if _fail(self.study, trial.number):
                    self._retry(trial)
        return len(others) - len(abandoned)

    def _is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether the sampler has tried everything already, before this search or elsewhere."""
        sampler = unwrapped(self.study.sampler)
        if isinstance(sampler, GridSampler):
            return sampler.is_exhausted(self.study)
        if isinstance(sampler, BruteForceSampler):
            # it tells after a trial only, which it looks up
            last = next((t for t in reversed(trials) if t.state.is_finished() and t.params), None)
            if last is not None:
                sampler.after_trial(self.study, last, last.state, last.values)
        return self.stop.is_set()

    def _ask_one(self, space: dict[str, BaseDistribution]) -> optuna.Trial | None:
        """Ask for a trial; None where a sampler that tries everything repeats what is tried."""
        sampler = unwrapped(self.study.sampler)
        if not isinstance(sampler, (BruteForceSampler, GridSampler)):
            return self.study.ask(space)
        before = self.study.get_trials(deepcopy=False)
        trial = self.study.ask(space)
        attrs = trial.storage.get_trial(trial._trial_id).system_attrs
        if any(t.number == trial.number for t in before):  # it was enqueued
            if "grid_id" in attrs:  # for which Optuna counts it as that place of the grid
                trial.storage.set_trial_system_attr(trial._trial_id, "grid_id", -1)
            return trial
        if isinstance(sampler, GridSampler):
            place = [attrs.get(key) for key in ("search_space", "grid_id")]
            repeated = any(
                [t.system_attrs.get(key) for key in ("search_space", "grid_id")] == place
                for t in before
            )
        else:  # where a trial is asked for its switches one by one, it has none yet
            repeated = bool(trial.params) and any(t.params == trial.params for t in before)
        if not repeated:
            return trial
        self._drop(trial)
        return None

    def _work(self, count: int) -> list[Subnetwork]:
        """Ask for some trials, judge them together, tell the results; returns the networks."""
        open_trials: list[optuna.Trial] = []
        self.lost = 0
        try:
            subnetworks = self._ask(count, open_trials)
            if not subnetworks:
                time.sleep(_PAUSE)  # others have the last ones
                return []
            evaluations = self.objective.evaluate(subnetworks)
            told = 0
            for evaluation in evaluations:
                with uninterrupted():
                    lost = self.lost
                    told += self._tell(open_trials[0], evaluation)
                    trial = open_trials.pop(0)
                if self.callbacks and self.lost == lost:
                    finished = trial.storage.get_trial(trial._trial_id)
                    for callback in self.callbacks:
                        callback(self.study, finished)
        except BaseException as error:
            # also on Ctrl-C: no trial shall look as if somebody were still working on it; where
            # the storage is away, others will see that this worker is gone
            if not is_transient(error):
                self._give_back(open_trials)
            raise
        self.finished += told
        failed = any(evaluation.failed for evaluation in evaluations)
        self.fruitless = self.fruitless + 1 if failed and not told else 0
        return subnetworks

    def _enqueue_thresholds(self, subnetworks: Sequence[Subnetwork]) -> None:
        """Enqueue other thresholds of cascades just judged that would join the front.

        Those that add most to its hypervolume come first. They cost a trial, and no image.

        Args:
            subnetworks: What was judged.
        """
        known = [
            (cascade, self.objective.values(evaluation))
            for subnetwork in {s.heads: s for s in subnetworks}.values()
            for cascade, evaluation in self.objective.thresholds(subnetwork)
        ]
        if not known:
            return
        held = self._front(self.study.get_trials(deepcopy=False))
        if not len(held):
            return
        losses = self._signs * np.array([values for _, values in known])
        scale = np.ptp(held, axis=0)
        reference = held.max(axis=0) + np.where(scale > 0, scale, 1) / 10
        outputs = self.objective.outputs_for(self.study)
        for _ in range(max(1, len(subnetworks) // _FOLLOWED)):
            before = moocore.hypervolume(held, ref=reference)
            gains = [
                moocore.hypervolume(np.vstack([held, loss]), ref=reference) for loss in losses
            ]
            best = int(np.argmax(gains))
            if gains[best] <= before * (1 + _WORTH):
                return
            held = np.vstack([held, losses[best]])
            params = asked(
                self.objective.supernetwork,
                known[best][0].genotype,
                self.objective.space,
                outputs,
            )
            enqueue_params(self.study, params, outputs)

    def _ask(self, count: int, trials: list[optuna.Trial]) -> list[Subnetwork]:
        """Ask for trials, which `trials` then holds, and write each in one piece."""
        supernetwork, flat = self.objective.supernetwork, self.objective.space == "flat"
        outputs = self.objective.outputs_for(self.study)
        space: dict[str, BaseDistribution] = distributions(supernetwork, outputs) if flat else {}
        storage = buffered_storage(self.study)
        subnetworks: list[Subnetwork] = []
        with storage.read_once() if storage is not None else nullcontext():
            for _ in range(count):
                try:
                    with uninterrupted():
                        trial = self._ask_one(space)
                        if trial is None:
                            continue
                        trials.append(trial)
                        trial.set_user_attr(WORKER, self.worker.name)
                    if flat:
                        subnetwork = supernetwork.subnetwork(trial.params)
                    else:
                        subnetwork = suggest(trial, supernetwork, self.objective.space, outputs)
                    join_population(trial)
                    self.objective.mark_cost(trial, subnetwork)
                    subnetworks.append(subnetwork)
                except UpdateFinishedTrialError:
                    # an enqueued one, before this worker could sign it
                    self.lost += 1
                    del trials[len(subnetworks) :]
        if storage is not None:
            storage.write(trials)
        return subnetworks

    def _tell(self, trial: optuna.Trial, evaluation: Evaluation) -> bool:
        """Tell one result; returns whether the trial is finished and counts."""
        try:
            self.objective.mark(trial, evaluation)
            if evaluation.failed:
                _finish(self.study, trial, state=TrialState.FAIL)
            elif evaluation.ruled_out:
                _finish(self.study, trial, state=TrialState.PRUNED)
            else:
                _finish(self.study, trial, self.objective.values(evaluation))
        except (UpdateFinishedTrialError, ValueError):
            if not trial.storage.get_trial(trial._trial_id).state.is_finished():
                raise
            self.lost += 1
            return False
        return not evaluation.failed

    def _give_back(self, trials: Sequence[optuna.Trial]) -> None:
        """Enqueue again what this worker asked for and cannot finish."""
        with uninterrupted():
            for trial in trials:
                if self._drop(trial):
                    self._retry(trial.storage.get_trial(trial._trial_id))

    def _drop(self, trial: optuna.Trial) -> bool:
        """Leave a trial as failed, or without a trace; whether others could see it."""
        storage = buffered_storage(self.study)
        if storage is not None and storage.is_held(trial):
            storage.forget([trial])  # only this process knows of it
            return False
        return _fail(self.study, trial)

    def _retry(self, trial: FrozenTrial) -> None:
        """Enqueue what a trial asked once more."""
        retries = trial.user_attrs.get(RETRIES, 0) + 1
        # a trial that was enqueued keeps what it was enqueued with, also before it has asked
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if not params or retries > _MOST_RETRIES:
            return
        attributes = {RETRY_OF: trial.number, RETRIES: retries}
        enqueue_params(self.study, params, self.objective.outputs_for(self.study), attributes)


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those that a search is asked for."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _fail(study: optuna.Study, trial: optuna.Trial | int) -> bool:
    """Fail a running trial; whether it was this process that did."""
    try:
        _finish(study, trial, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # another worker was faster
        return False
    return True


def _finish(
    study: optuna.Study,
    trial: optuna.Trial | int,
    values: Sequence[float] | None = None,
    *,
    state: TrialState | None = None,
) -> None:
    """Tell a trial; that is all, also where Optuna's `GridSampler` has no place for it."""
    try:
        study.tell(trial, values, state)
    except KeyError as error:
        # it looks for the place of an enqueued trial, which has none, after the trial is told
        if error.args != ("grid_id",):
            raise


@contextmanager
def _stoppable(study: optuna.Study) -> Iterator[threading.Event]:
    """Let a sampler call ``study.stop``, for which Optuna wants to be in ``study.optimize``.

    Args:
        study: Whose search can be stopped in the ``with`` block.

    Yields:
        What is set when it was called.
    """
    stop = threading.Event()
    study.stop = stop.set  # type: ignore[method-assign]
    try:
        yield stop
    finally:
        del study.stop
