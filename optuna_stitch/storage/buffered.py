"""A storage in front of another, which writes a trial in one piece instead of by parameter."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.storage.retry import RETRY_TIMEOUT, retry

T = TypeVar("T")


class RetryingStorage(BaseStorage):
    """Pass on what concerns studies; trials are left to subclasses.

    Args:
        backend: Any storage of Optuna's.
        retry_timeout: Seconds for which a storage that went away is tried again.
    """

    def __init__(self, backend: BaseStorage, *, retry_timeout: float = RETRY_TIMEOUT) -> None:
        self.backend = backend
        self.retry_timeout = retry_timeout

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._call(lambda: self.backend.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._call(lambda: self.backend.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._call(lambda: self.backend.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(self.backend.get_all_studies)

    def remove_session(self) -> None:
        """See `optuna.storages.BaseStorage`."""
        self.backend.remove_session()

    def _call(self, call: Callable[[], T]) -> T:
        return retry(call, retry_timeout=self.retry_timeout)


View = Callable[[list[FrozenTrial]], list[FrozenTrial]]


class BufferedStorage(RetryingStorage):
    """Keep trials in memory while they are asked, and write each in one piece.

    Optuna writes every parameter of a trial by itself, which at the width of our spaces costs more
    than to judge the trial. Here a new trial is held in memory until `write` is called, or until
    it is finished; the storage behind then sees one ordinary trial that has all its parameters.
    What is read is what the storage behind holds, and the trials in memory after it.

    Where the storage behind cannot be reached it is tried again for a while.

    The number of a trial that is held is what it gets if no other process adds a trial before it
    is written. A trial that dies in memory leaves no trace.

    Args:
        backend: Any storage of Optuna's.
        retry_timeout: Seconds for which a storage that went away is tried again.
    """

    def __init__(self, backend: BaseStorage, *, retry_timeout: float = RETRY_TIMEOUT) -> None:
        super().__init__(backend, retry_timeout=retry_timeout)
        self._lock = threading.RLock()
        # by the id under which they were asked: where a trial is written it keeps this id for us
        self._held: dict[int, tuple[int, FrozenTrial]] = {}
        self._written: dict[int, int] = {}
        self._next = count(-(2**40))  # no storage has negative ones
        self._choices: dict[tuple[int, str], BaseDistribution] = {}
        # what Optuna reads once more when it was told
        self._told: tuple[int, FrozenTrial] | None = None
        # of each thread, since a sampler looks while other threads read what is
        self._views = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        apart = ("_lock", "_views")
        return {key: value for key, value in self.__dict__.items() if key not in apart}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._views = threading.local()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Hold a new trial in memory; one that is given in one piece is written at once."""
        if template_trial is not None:
            return self._call(lambda: self.backend.create_new_trial(study_id, template_trial))
        with self._lock:
            number = len(self.get_all_trials(study_id, deepcopy=False))
            trial_id = next(self._next)
            trial = FrozenTrial(
                number=number,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=datetime.now(),
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
                trial_id=trial_id,
            )
            self._held[trial_id] = (study_id, trial)
        return trial_id

    def write(self, trials: Iterable[optuna.Trial]) -> None:
        """Write trials that are held, as running ones."""
        for trial in trials:
            with self._lock:
                if self.is_held(trial):
                    self._write(trial._trial_id)

    def is_held(self, trial: optuna.Trial) -> bool:
        """Whether a trial is still in memory only."""
        return self._in_memory(trial._trial_id) is not None

    def forget(self, trials: Iterable[optuna.Trial]) -> None:
        """Drop trials that are held, as if they had never been asked."""
        with self._lock:
            for trial in trials:
                if self.is_held(trial):
                    del self._held[trial._trial_id]

    def _write(self, trial_id: int) -> None:
        study_id, trial = self._held[trial_id]
        self._written[trial_id] = self._call(
            lambda: self.backend.create_new_trial(study_id, trial)
        )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Finish or claim a trial; one that is held is written in one piece, as it now is."""
        with self._lock:
            trial = self._in_memory(trial_id)
            if trial is not None:
                if not state.is_finished():
                    return False  # it runs already
                self._finish(trial_id, trial, state, values)
                self._write(trial_id)
                del self._held[trial_id]
                return True
        written = self._written.get(trial_id, trial_id)
        tries = 0

        def finish() -> bool:
            nonlocal tries
            tries += 1
            try:
                return self.backend.set_trial_state_values(written, state, values)
            except UpdateFinishedTrialError:
                if tries == 1:
                    raise
                return True  # it was our own, whose answer was lost

        done = self._call(finish)
        if state.is_finished() and trial_id in self._held:
            self._finish(trial_id, self._held.pop(trial_id)[1], state, values)
        return done

    def _finish(
        self,
        trial_id: int,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        trial.state, trial.values = state, values
        trial.datetime_complete = datetime.now()
        self._told = (trial_id, trial)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Set a parameter, in memory where the trial is held."""
        if self._in_memory(trial_id) is not None:
            key = (self._held[trial_id][0], param_name)
            known = self._choices.setdefault(key, distribution)
            if known is not distribution:
                check_distribution_compatibility(known, distribution)
        else:
            written = self._written.get(trial_id, trial_id)
            self._call(
                lambda: self.backend.set_trial_param(
                    written, param_name, param_value_internal, distribution
                )
            )
        if trial_id in self._held:
            trial = self._held[trial_id][1]
            trial.distributions[param_name] = distribution
            trial.params[param_name] = distribution.to_external_repr(param_value_internal)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial."""
        self._set_attr(trial_id, "user_attrs", key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of a trial."""
        self._set_attr(trial_id, "system_attrs", key, value)

    def _set_attr(self, trial_id: int, kind: str, key: str, value: Any) -> None:
        if trial_id in self._held:
            getattr(self._held[trial_id][1], kind)[key] = value
        if self._in_memory(trial_id) is None:
            written = self._written.get(trial_id, trial_id)
            setter = getattr(self.backend, f"set_trial_{kind.removesuffix('s')}")
            self._call(lambda: setter(written, key, value))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Set an intermediate value of a trial."""
        trial = self._in_memory(trial_id)
        if trial is not None:
            trial.intermediate_values[step] = intermediate_value
        else:
            written = self._written.get(trial_id, trial_id)
            self._call(
                lambda: self.backend.set_trial_intermediate_value(
                    written, step, intermediate_value
                )
            )

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read a trial."""
        if trial_id in self._held:
            return self._held[trial_id][1]
        if self._told is not None and self._told[0] == trial_id:
            return self._told[1]
        written = self._written.get(trial_id, trial_id)
        return self._call(lambda: self.backend.get_trial(written))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Read trials, those that are held last."""
        trials = self._call(
            lambda: self.backend.get_all_trials(study_id, deepcopy=False, states=states)
        )
        view: View | None = getattr(self._views, "current", None)
        if view is not None:
            trials = view(trials)
        with self._lock:
            held = [
                trial
                for trial_id, (study, trial) in self._held.items()
                if study == study_id and trial_id not in self._written
            ]
        if states is None or TrialState.RUNNING in states:
            trials = [*trials, *held]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Find a trial by its number in the storage behind, or among those held."""
        try:
            return self._call(
                lambda: self.backend.get_trial_id_from_study_id_trial_number(
                    study_id, trial_number
                )
            )
        except KeyError:
            return super().get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def _in_memory(self, trial_id: int) -> FrozenTrial | None:
        """A trial that is not written yet."""
        if trial_id in self._held and trial_id not in self._written:
            return self._held[trial_id][1]
        return None

    @contextmanager
    def seen_as(self, view: View) -> Iterator[None]:
        """Let this thread read trials of the storage behind through a function for a while."""
        before = getattr(self._views, "current", None)
        self._views.current = view
        try:
            yield
        finally:
            self._views.current = before


def buffered_storage(study: optuna.Study) -> BufferedStorage | None:
    """A study's storage, if it writes trials in one piece."""
    storage = getattr(study, "_storage", None)  # Optuna shows it nowhere else
    return storage if isinstance(storage, BufferedStorage) else None
