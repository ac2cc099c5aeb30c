"""A floor on quality that rises, so that a search does not drown in cheap, useless networks.

The founding work steers its search adaptively: among many cheap networks few are of use, and a
front that stretches down to chance takes the trials that its upper part needs.
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

# The floor rises in so many steps, so that what it changes is not worked out at every trial.
_STEPS = 50


class SteeredSampler(BaseSampler):
    """Another sampler, to which networks below a floor look infeasible.

    The floor rises in a line, from nothing to ``top`` when ``trials`` trials are finished, and
    stays there. It is in what the sampler sees only: trials keep the constraints that are theirs.

    Args:
        sampler: One that heeds constraints.
        top: The floor in the end, in units of the first objective, which is to be large.
        trials: How many trials are finished then.

    Raises:
        ConfigError: On sampling, if the study's first objective is to be small, or its storage is
            not one of `open_storage`.
    """

    def __init__(self, sampler: BaseSampler, *, top: float, trials: int) -> None:
        self.sampler = sampler
        self._top = top
        self._trials = max(trials, 1)
        self._seen: dict[int, FrozenTrial] = {}
        self._seen_with = -1.0

    def floor(self, finished: int) -> float:
        """The floor when so many trials are finished."""
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
    """The sampler itself, without what steers it."""
    return sampler.sampler if isinstance(sampler, SteeredSampler) else sampler
