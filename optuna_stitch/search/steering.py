"""A rising floor on quality, so that a search does not drown in cheap, useless networks.

The founding work steers its search adaptively: few of many cheap networks are of use, and a front
that stretches down to chance takes the trials that its upper part needs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from optuna_stitch.storage.buffered import buffered_storage
from optuna_stitch.utils.errors import ConfigError

NAME = "floor"

# The floor rises in so many steps: what it changes is worked out per step, not per trial.
_STEPS = 50


class SteeredSampler(BaseSampler):
    """Another sampler, to which subnetworks below a floor look infeasible.

    The floor rises linearly from 0 to ``top``, which it reaches when ``trials`` trials are
    finished, and stays there. Only the sampler sees it: trials keep their own constraints.

    Args:
        sampler: A sampler that heeds constraints.
        top: The floor in the end, in units of the first objective, which is maximized.
        trials: The number of finished trials at which the floor reaches ``top``.

    Raises:
        ConfigError: On sampling, if the study's first objective is minimized, or its storage is
            not one that `open_storage` or `create_study` opened.

    Example:
        >>> from optuna_stitch.search.steering import SteeredSampler
        >>> sampler = SteeredSampler(st.LinkageSampler(seed=0), top=0.8, trials=100)
        >>> sampler.floor(50), sampler.floor(200)
        (0.4, 0.8)
        >>> steered = st.create_study(objective, sampler=sampler, population=5)
        >>> st.optimize(steered, objective, n_trials=8)
    """

    def __init__(self, sampler: BaseSampler, *, top: float, trials: int) -> None:
        self.sampler = sampler
        self._top = top
        self._trials = max(trials, 1)
        self._seen: dict[int, FrozenTrial] = {}
        self._seen_with = -1.0

    def floor(self, finished: int) -> float:
        """The floor, in units of the first objective.

        Args:
            finished: How many trials are finished.
        """
        step = min(_STEPS, int(_STEPS * finished / self._trials))
        return self._top * step / _STEPS

    def reseed_rng(self) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self.sampler.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        with self._steered(study):
            return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        with self._steered(study):
            return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """See `optuna.samplers.BaseSampler`."""
        with self._steered(study):
            return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self.sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: Any, values: Any
    ) -> None:
        """See `optuna.samplers.BaseSampler`."""
        self.sampler.after_trial(study, trial, state, values)

    @contextmanager
    def _steered(self, study: optuna.Study) -> Iterator[None]:
        storage = buffered_storage(study)
        if storage is None:
            raise ConfigError("A steered search needs a storage that `open_storage` opened.")
        if study.directions[0] != optuna.study.StudyDirection.MAXIMIZE:
            raise ConfigError(
                "A search can be steered where its first objective is to be large, as accuracy is."
            )
        with storage.seen_as(self._look):
            yield

    def _look(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        # trials may be only those of some states; the latest number tells how many there are
        floor = self.floor(trials[-1].number + 1 if trials else 0)
        if floor != self._seen_with:
            self._seen, self._seen_with = {}, floor
        return [
            self._constrained(trial, floor) if trial.state == TrialState.COMPLETE else trial
            for trial in trials
        ]

    def _constrained(self, trial: FrozenTrial, floor: float) -> FrozenTrial:
        known = self._seen.get(trial.number)
        if known is not None:
            return known
        below = floor - trial.values[0]
        seen = copy.copy(trial)
        attrs = trial.system_attrs
        # as Optuna 4 and Optuna 5 each keep constraints
        seen.system_attrs = {
            **attrs,
            "constraints": [*attrs.get("constraints", []), below],
            f"constraints:{NAME}": below,
        }
        self._seen[trial.number] = seen
        return seen


def unwrapped(sampler: BaseSampler) -> BaseSampler:
    """A sampler without what steers it.

    Args:
        sampler: Any sampler.
    """
    return sampler.sampler if isinstance(sampler, SteeredSampler) else sampler
