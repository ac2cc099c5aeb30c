"""What both samplers share: an archive that follows the trials, and never asking twice."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from .archive import Archive, Key
from .ranking import Places
from .space import CommonSpace, Row, Space

_ATTEMPTS = 100  # random settings drawn before one that was there before is asked again
_DRIFTS = 8  # changes tried in search of one that makes no difference
_NEIGHBOURS = 1000  # neighbours looked at before those further away are


class ArchiveSampler(BaseSampler):
    """A sampler whose state is the trials of the study, over all parameters together.

    Args:
        seed: With the same seed and the same trials, the same is proposed; if None, chance.
        key: Says of two settings whether they are the same: equal keys. If None, every setting
            is different. What it returns must be hashable.
        n_startup_trials: How many trials there are, enqueued ones included, before proposals are
            more than random.
    """

    _kept: tuple[str, ...] = ()  # attributes of a subclass that do not follow from the trials

    def __init__(
        self, *, seed: int | None = None, key: Key | None = None, n_startup_trials: int = 20
    ) -> None:
        if n_startup_trials < 0:
            raise ValueError("`n_startup_trials` must not be negative.")
        self._entropy = seed if seed is not None else _fresh()
        self._key = key
        self._n_startup_trials = n_startup_trials
        self._random = RandomSampler(seed=seed)
        self._forget()

    def _forget(self) -> None:
        """Forget all that follows from the trials."""
        self._lock = threading.Lock()
        self._common = CommonSpace()
        self._of: tuple[Any, int] | None = None
        self._archive: Archive | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but what follows from the trials."""
        kept = ("_entropy", "_key", "_n_startup_trials", "_random", *self._kept)
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def reseed_rng(self) -> None:
        """Draw a new seed, as Optuna asks of samplers that are copied to other processes."""
        self._entropy = _fresh()
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that all trials have; before any is finished, those of one that runs."""
        with self._lock:
            if self._of != (study._storage, study._study_id):
                self._forget_study(study)
            trials = study._get_trials(deepcopy=False, use_cache=False)
            space = self._common.follow(trials)
            if space:
                return space
        running = [t.distributions for t in trials if t.state == TrialState.RUNNING]
        return max(running, key=lambda distributions: len(distributions), default={})

    def _forget_study(self, study: Study) -> None:
        self._of = (study._storage, study._study_id)
        self._common = CommonSpace()
        self._archive = None

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose a setting that no trial has had, as far as there is one."""
        fixed = trial.system_attrs.get("fixed_params", {})
        if not search_space or all(name in fixed for name in search_space):
            return {}
        with self._lock:
            archive = self._follow(study, trial, search_space)
            rng = np.random.default_rng([self._entropy, trial.number])
            known = len(archive) + len(archive.running)
            if known < self._n_startup_trials or not archive.space.free.any():
                row = None
            else:
                row = self._propose(archive, rng)
            if row is None:
                row = self._drawn(archive, rng)
            archive.propose(trial.number, row)
            return archive.space.params(row)

    def _follow(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Archive:
        if self._of != (study._storage, study._study_id):
            self._forget_study(study)
        if self._archive is None or self._archive.space.distributions != search_space:
            self._archive = Archive(Space(search_space), study.directions, self._key)
        self._archive.update(study._get_trials(deepcopy=False, use_cache=True), trial.number)
        return self._archive

    def _drawn(self, archive: Archive, rng: np.random.Generator) -> Row:
        """A random setting, a new one where that is found."""
        row = archive.space.settle(archive.space.drawn(rng))
        for _ in range(_ATTEMPTS):
            if not archive.taken(archive.key(row)):
                break
            row = archive.space.settle(archive.space.drawn(rng))
        return row

    @abstractmethod
    def _propose(self, archive: Archive, rng: np.random.Generator) -> Row | None:
        """Propose a setting that is not taken; None where none was found.

        Args:
            archive: What the trials say; there is at least one setting, with values or running.
            rng: Source of chance.
        """

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that not all trials have at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def neighbour(archive: Archive, rows: NDArray[np.float64], rng: np.random.Generator) -> Row | None:
    """A setting that is not taken, and differs little from a given one.

    Args:
        archive: Says what is taken.
        rows: Settings, ``(n, d)``, in the order in which their neighbours are wanted.
        rng: Source of chance.

    Returns:
        It differs in one parameter from the first that has such a neighbour, beside perhaps one
        that makes no difference alone; else in two or three. None, if none was found in many
        attempts.
    """
    space, free = archive.space, np.flatnonzero(archive.space.free)
    tries = 0
    for given in rows:
        places = rng.permutation(free)
        row = _drifted(archive, given, places, rng)
        if row is given and given.tobytes() in archive.exhausted:
            continue
        for place in places:
            for value in space.others(rng, int(place), float(row[place])):
                tries += 1
                child: Row = row.copy()
                child[place] = value
                child = space.settle(child)
                if not archive.taken(archive.key(child)):
                    return child
        if row is given and space.categorical[free].all():
            archive.exhausted.add(given.tobytes())
        if tries > _NEIGHBOURS:
            break
    for changes in (2, 3):
        for _ in range(_ATTEMPTS if len(rows) else 0):
            # of the first rows more often than of the last
            child = rows[int(rng.integers(len(rows)) * rng.random())].copy()
            for place in rng.permutation(free)[:changes]:
                child[place] = space.draw(rng, int(place), float(child[place]))
            child = space.settle(child)
            if not archive.taken(archive.key(child)):
                return child
    return None


def _drifted(archive: Archive, row: Row, places: Places, rng: np.random.Generator) -> Row:
    """A setting or, as often, the same by its key with one parameter changed.

    What makes no difference alone may make one together with another parameter.
    """
    if not archive.keyed or rng.random() < 0.5:
        return row
    key = archive.key(row)
    for place in places[:_DRIFTS]:
        child = row.copy()
        child[place] = archive.space.draw(rng, int(place), float(row[place]))
        child = archive.space.settle(child)
        if archive.key(child) == key:
            return child
    return row


def _fresh() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])
