"""Samplers by name, for study files; from Python, pass any sampler object to Optuna itself."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, create_trial

from optuna_stitch.search.samplers.linkage import LinkageSampler, LocalSearchSampler
from optuna_stitch.utils.errors import ConfigError, OptunaStitchError, first_line

SAMPLERS: dict[str, type[BaseSampler]] = {
    "nsga2": optuna.samplers.NSGAIISampler,
    "nsga3": optuna.samplers.NSGAIIISampler,
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "linkage": LinkageSampler,
    "local_search": LocalSearchSampler,
}

_HUB = "hub:"

# What samplers for one objective say of several; Optuna has no other way to ask them.
_ABOUT_OBJECTIVES = re.compile(r"(multi|multiple|single|one|several)[- ]?objective", re.IGNORECASE)

_OPTUNA_4 = not hasattr(optuna.Trial, "set_constraint")

Key = Callable[[Mapping[str, Any]], Hashable]


def make_sampler(
    name: str, arguments: Mapping[str, Any], *, seed: int, key: Key | None = None
) -> BaseSampler:
    """Make a sampler.

    Args:
        name: A known name, the dotted path of any sampler class, or ``hub:package:Class`` of a
            package on OptunaHub, as in ``hub:samplers/auto_sampler:AutoSampler``.
        arguments: For its constructor.
        seed: For its constructor, where it takes one and ``arguments`` has none.
        key: Likewise; equal for parameters of the same subnetwork.

    Raises:
        ConfigError: If there is no such sampler, or it does not take such arguments.

    Example:
        >>> type(make_sampler("nsga2", {"population_size": 20}, seed=0)).__name__
        'NSGAIISampler'
    """
    found = SAMPLERS.get(name) or (_fetch(name) if name.startswith(_HUB) else _import(name))
    allowed = inspect.signature(found).parameters
    wrong = sorted(set(arguments) - set(allowed))
    if wrong:
        raise ConfigError(
            f"Sampler {name} takes no {', '.join(wrong)}; it takes {', '.join(allowed)}."
        )
    offered: dict[str, Any] = {"seed": seed, "key": key}
    if _OPTUNA_4:  # whose samplers pass over constraints unless they are told to look
        offered["constraints_func"] = _constraints
    given = {argument: value for argument, value in offered.items() if argument in allowed}
    try:
        return found(**{**given, **arguments})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Sampler {name} cannot be made with {dict(arguments)}: {error}"
        ) from error


def check_sampler(sampler: BaseSampler, objectives: int) -> None:
    """Let a sampler propose two trials of a study in memory, to see what it cannot do.

    Args:
        sampler: Any sampler; its random numbers go on.
        objectives: How many objectives it shall search for.

    Raises:
        ConfigError: If it cannot search for several objectives at once, or needs a package that
            is not installed.

    Example:
        >>> check_sampler(optuna.samplers.CmaEsSampler(), 2)
        Traceback (most recent call last):
        optuna_stitch.utils.errors.ConfigError: CmaEsSampler cannot search for 2 objectives ...
    """
    name = type(sampler).__name__
    values = [0.0] * objectives
    space: dict[str, BaseDistribution] = {
        "switch": CategoricalDistribution(("off", "on")),
        **{f"threshold {place}": FloatDistribution(0, 1) for place in range(2)},
    }
    params = {name: "on" if name == "switch" else 0.5 for name in space}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=sampler, directions=["minimize"] * objectives)
        study.add_trial(create_trial(params=params, distributions=space, values=values))
        study.tell(study.ask(space), values)
        study.ask(space)
    except ImportError as error:
        raise ConfigError(
            f"{name} needs a package that is not installed: {first_line(error)}. Install it, or "
            f"choose another sampler: {', '.join(SAMPLERS)}."
        ) from error
    except Exception as error:
        check_error(error, sampler, objectives)
        # else it may want the study's own space, a grid of it for instance
    finally:
        optuna.logging.set_verbosity(verbosity)


def check_error(error: Exception, sampler: BaseSampler, objectives: int) -> None:
    """Raise if an error of a sampler says that it cannot search for several objectives.

    Args:
        error: What it raised.
        sampler: The sampler.
        objectives: How many objectives there are.

    Raises:
        ConfigError: Names samplers that can.
    """
    ours = isinstance(error, OptunaStitchError)
    if objectives > 1 and not ours and _ABOUT_OBJECTIVES.search(str(error)):
        raise ConfigError(
            f"{type(sampler).__name__} cannot search for {objectives} objectives at once "
            f"({first_line(error)}). Choose a sampler that can: {', '.join(SAMPLERS)}; or name "
            "one objective."
        ) from error


def _constraints(trial: FrozenTrial) -> list[float]:
    """What a trial's attribute holds, or that it has no constraints."""
    found: list[float] = trial.system_attrs.get("constraints", [])
    return found


def _fetch(name: str) -> type[BaseSampler]:
    """A class of a package on OptunaHub, whose code is downloaded and run."""
    package, _, attribute = name.removeprefix(_HUB).partition(":")
    try:
        import optunahub
    except ImportError as error:
        raise ConfigError(
            f"The sampler {name} needs optunahub: pip install 'optuna-stitch[hub]'."
        ) from error
    try:
        module = optunahub.load_module(package)
    except Exception as error:  # the hub's client has exceptions of its own
        raise ConfigError(
            f"OptunaHub's package {package!r} cannot be loaded ({first_line(error)}). Check its "
            "name at hub.optuna.org, the network, and what it needs to be installed."
        ) from error
    classes = {
        found: value
        for found, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseSampler) and value != BaseSampler
    }
    if attribute not in classes:
        raise ConfigError(
            f"Which sampler of {package} is meant? Write {_HUB}{package}:"
            f"{' or :'.join(sorted(classes)) or 'Class'}."
        )
    return classes[attribute]


def _import(path: str) -> type[BaseSampler]:
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"There is no sampler {path!r}; known are {', '.join(SAMPLERS)}, any class by its "
            "dotted path, and packages of OptunaHub as hub:package:Class."
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseSampler)):
        raise ConfigError(f"{path} is no optuna sampler.")
    return found
