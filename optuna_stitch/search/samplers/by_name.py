"""Samplers by name, for study files; from Python, pass any sampler object to Optuna itself."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import optuna

from optuna_stitch.errors import ConfigError
from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler

SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "nsga2": optuna.samplers.NSGAIISampler,
    "nsga3": optuna.samplers.NSGAIIISampler,
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "linkage": LinkageSampler,
    "local_search": LocalSearchSampler,
}


def make_sampler(
    name: str, arguments: Mapping[str, Any], *, seed: int
) -> optuna.samplers.BaseSampler:
    """Make a sampler.

    Args:
        name: A known name, or the dotted path of any sampler class.
        arguments: For its constructor.
        seed: For its constructor, where it takes one and ``arguments`` has none.

    Raises:
        ConfigError: If there is no such sampler, or it does not take such arguments.
    """
    found = SAMPLERS.get(name) or _import(name)
    allowed = inspect.signature(found).parameters
    wrong = sorted(set(arguments) - set(allowed))
    if wrong:
        raise ConfigError(
            f"Sampler {name} takes no {', '.join(wrong)}; it takes {', '.join(allowed)}."
        )
    seeded = {"seed": seed, **arguments} if "seed" in allowed else dict(arguments)
    try:
        return found(**seeded)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Sampler {name} cannot be made with {seeded}: {error}") from error


def _import(path: str) -> type[optuna.samplers.BaseSampler]:
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"There is no sampler {path!r}; known are {', '.join(SAMPLERS)}, and any class by its "
            "dotted path."
        ) from error
    if not (isinstance(found, type) and issubclass(found, optuna.samplers.BaseSampler)):
        raise ConfigError(f"{path} is no optuna sampler.")
    return found
