"""A storage in front of another, which writes a trial in one piece and waits where it must."""

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
from optuna_stitch.utils.interrupt import uninterrupted

T = TypeVar("T")

# Takes the trials of a storage, and returns what is seen of them.
View = Callable[[list[FrozenTrial]], list[FrozenTrial]]


class BufferedStorage(BaseStorage):
    """Hold trials in memory while they are asked, and write each in one piece.

    Optuna writes every parameter of a trial by itself, which at the width of our spaces takes
    longer than to evaluate the trial. Here a new trial is held in memory until `write` is called,
    or until it is finished; the storage behind then sees one ordinary trial that has all its
    parameters. What is read is what the storage behind has, and after it the trials that are held.

    Every call to the storage behind that fails because it cannot be reached is tried again for a
    while; see `retry`.

    The number of a trial that is held is the one it gets if no other process adds a trial before
    it is written. A trial that is held when its process dies leaves no trace.

    Args:
        backend: The storage behind, any of Optuna's.
        retry_timeout: Seconds for which it is tried again where it cannot be reached.

    Example:
        >>> storage = BufferedStorage(optuna.storages.InMemoryStorage())
        >>> study = optuna.create_study(storage=storage)
        >>> trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        >>> len(storage.backend.get_all_trials(study._study_id))
        0
        >>> storage.write([trial])
        >>> storage.backend.get_all_trials(study._study_id)[0].params == trial.params
        True
    """

    def __init__(self, backend: BaseStorage, *, retry_timeout: float = RETRY_TIMEOUT) -> None:
        self.backend = backend
        self.retry_timeout = retry_timeout
        self._lock = threading.RLock()
        # trials that this process asked and did not finish, and their study, by the id under which
        # they were asked; it stays theirs for this process
        self._held: dict[int, tuple[int, FrozenTrial]] = {}
        # their ids in the storage behind, once they are written
        self._written: dict[int, int] = {}
        self._next = count(-(2**40))  # no storage has negative ids
        self._choices: dict[tuple[int, str], BaseDistribution] = {}
        # the last trial that was finished, which Optuna reads once more
        self._last_finished: tuple[int, FrozenTrial] | None = None
        # one of each thread: a sampler may see trials otherwise than other threads
        self._views = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        apart = ("_lock", "_views")
        return {key: value for key, value in self.__dict__.items() if key not in apart}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._views = threading.local()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Hold a new trial; one that is given in one piece is written at once.

        Args:
            study_id: Of its study.
            template_trial: The trial, if it is known already.

        Returns:
            Its id.
        """
        if template_trial is not None:
            self._forget_read()
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
        """Write those of some trials that are held, as running ones.

        Args:
            trials: Trials of studies in this storage.
        """
        for trial in trials:
            with self._lock:
                if self.is_held(trial):
                    self._write(trial._trial_id)

    def is_held(self, trial: optuna.Trial) -> bool:
        """Whether a trial is in memory only.

        Args:
            trial: Of a study in this storage.
        """
        return self._unwritten(trial._trial_id) is not None

    def forget(self, trials: Iterable[optuna.Trial]) -> None:
        """Drop those of some trials that are held, as if they had never been asked.

        Args:
            trials: Trials of studies in this storage.
        """
        with self._lock:
            for trial in trials:
                if self.is_held(trial):
                    del self._held[trial._trial_id]

    def _write(self, trial_id: int) -> None:
        study_id, trial = self._held[trial_id]
        self._forget_read()
        with uninterrupted():  # else the storage may have a trial that is still held here
            self._written[trial_id] = self._call(
                lambda: self.backend.create_new_trial(study_id, trial)
            )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Finish or claim a trial; one that is held is written in one piece, as it now is.

        Args:
            trial_id: Of the trial.
            state: Its new state.
            values: Its values, ``(objectives,)``, if it is complete.

        Returns:
            Whether the state was set; False for a trial that is claimed but runs already.

        Raises:
            UpdateFinishedTrialError: If it is finished already.
        """
        with self._lock:
            trial = self._unwritten(trial_id)
            if trial is not None:
                if not state.is_finished():
                    return False  # it runs already
                self._finish(trial_id, trial, state, values)
                self._write(trial_id)
                del self._held[trial_id]
                return True
        tries = 0

        def finish() -> bool:
            nonlocal tries
            tries += 1
            try:
                return self.backend.set_trial_state_values(self._id(trial_id), state, values)
            except UpdateFinishedTrialError:
                if tries == 1 or self.backend.get_trial(self._id(trial_id)).state != state:
                    raise
                return True  # this process finished it, but the answer was lost

        done = self._update(trial_id, finish)
        if state.is_finished() and trial_id in self._held:
            self._finish(trial_id, self._held.pop(trial_id)[1], state, values)
        return done

    def _update(self, trial_id: int, call: Callable[[], T]) -> T:
        """Write to a trial in the storage behind; one that others finished is held no longer."""
        self._forget_read()
        try:
            return self._call(call)
        except UpdateFinishedTrialError:
            with self._lock:
                self._held.pop(trial_id, None)
            raise

    def _finish(
        self,
        trial_id: int,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        trial.state, trial.values = state, values
        trial.datetime_complete = datetime.now()
        self._last_finished = (trial_id, trial)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Set a parameter, in memory where the trial is held."""
        if self._unwritten(trial_id) is not None:
            key = (self._held[trial_id][0], param_name)
            known = self._choices.setdefault(key, distribution)
            if known is not distribution:
                check_distribution_compatibility(known, distribution)
        else:
            self._update(
                trial_id,
                lambda: self.backend.set_trial_param(
                    self._id(trial_id), param_name, param_value_internal, distribution
                ),
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
        if self._unwritten(trial_id) is None:
            setter = getattr(self.backend, f"set_trial_{kind.removesuffix('s')}")
            self._update(trial_id, lambda: setter(self._id(trial_id), key, value))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Set an intermediate value of a trial."""
        trial = self._unwritten(trial_id)
        if trial is not None:
            trial.intermediate_values[step] = intermediate_value
        else:
            self._update(
                trial_id,
                lambda: self.backend.set_trial_intermediate_value(
                    self._id(trial_id), step, intermediate_value
                ),
            )

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read a trial."""
        if trial_id in self._held:
            return self._held[trial_id][1]
        if self._last_finished is not None and self._last_finished[0] == trial_id:
            return self._last_finished[1]
        return self._call(lambda: self.backend.get_trial(self._id(trial_id)))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Read trials, those that are held last."""
        read: dict[int, list[FrozenTrial]] | None = getattr(self._views, "read", None)
        if read is None:
            trials = self._call(
                lambda: self.backend.get_all_trials(study_id, deepcopy=False, states=states)
            )
        else:
            if study_id not in read:
                read[study_id] = self._call(
                    lambda: self.backend.get_all_trials(study_id, deepcopy=False)
                )
            trials = [t for t in read[study_id] if states is None or t.state in states]
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

    def _unwritten(self, trial_id: int) -> FrozenTrial | None:
        """A trial that is held and not written yet."""
        if trial_id in self._held and trial_id not in self._written:
            return self._held[trial_id][1]
        return None

    def _id(self, trial_id: int) -> int:
        """A trial's id in the storage behind."""
        return self._written.get(trial_id, trial_id)

    @contextmanager
    def seen_as(self, view: View) -> Iterator[None]:
        """Let this thread see the trials of the storage behind otherwise, for a ``with`` block.

        Args:
            view: Takes those trials, and returns what is seen of them.
        """
        before = getattr(self._views, "current", None)
        self._views.current = view
        try:
            yield
        finally:
            self._views.current = before

    @contextmanager
    def read_once(self) -> Iterator[None]:
        """Let this thread read trials once for a ``with`` block, and again after each write.

        Optuna reads all trials several times for each that is asked. What other processes write
        meanwhile is seen after the block.
        """
        self._views.read = {}
        try:
            yield
        finally:
            self._views.read = None

    def _forget_read(self) -> None:
        read = getattr(self._views, "read", None)
        if read is not None:
            read.clear()

    # What concerns studies is passed on.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """See `optuna.storages.BaseStorage`; trials that are held are dropped."""
        self._call(lambda: self.backend.delete_study(study_id))
        with self._lock:
            # SQLite gives its id to the next study
            self._held = {key: held for key, held in self._held.items() if held[0] != study_id}
            self._choices = {
                key: choices for key, choices in self._choices.items() if key[0] != study_id
            }

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


def buffered_storage(study: optuna.Study) -> BufferedStorage | None:
    """A study's storage, if it is a buffered one.

    Args:
        study: Any study.
    """
    storage = getattr(study, "_storage", None)  # Optuna shows it nowhere else
    return storage if isinstance(storage, BufferedStorage) else None
