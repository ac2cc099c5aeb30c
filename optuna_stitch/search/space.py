"""The search space: switches as Optuna's categorical parameters, and where a search starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from optuna_stitch.evaluation.crossovers import Crossover
from optuna_stitch.stitching.genotype import OUTPUT, OUTPUTS, STATES, Genotype, Output
from optuna_stitch.stitching.supernetwork import Supernetwork

Space = Literal["flat", "reachable"]


def distributions(supernetwork: Supernetwork) -> dict[str, BaseDistribution]:
    """Every switch as a parameter, by name: ``off`` or ``on``, and the output's choices."""
    space: dict[str, BaseDistribution] = {
        switch.name: CategoricalDistribution(STATES) for switch in supernetwork.switches
    }
    space[OUTPUT] = CategoricalDistribution(OUTPUTS)
    return space


def suggest(
    trial: optuna.trial.BaseTrial, supernetwork: Supernetwork, space: Space = "flat"
) -> Genotype:
    """Ask a trial for its switches.

    Args:
        trial: Any trial.
        supernetwork: Whose switches.
        space: ``flat`` asks for every switch; ``reachable`` walks back from the output, and asks
            only for those that matter.

    Returns:
        The genotype, in canonical form.
    """
    if space == "flat":
        params = {
            switch.name: trial.suggest_categorical(switch.name, STATES)
            for switch in supernetwork.switches
        }
        params[OUTPUT] = trial.suggest_categorical(OUTPUT, OUTPUTS)
        return supernetwork.canonical(supernetwork.genotype(params))
    output = cast(Output, trial.suggest_categorical(OUTPUT, OUTPUTS))

    def asks(index: int) -> bool:
        return trial.suggest_categorical(supernetwork.switches[index].name, STATES) == "on"

    return Genotype(output, supernetwork.supergraph.reach(output, asks))


def baselines() -> list[Genotype]:
    """Parent a, parent b and their plain ensemble."""
    return [Genotype(output) for output in OUTPUTS]


def sparse_genotypes(
    supernetwork: Supernetwork, count: int, *, probability: float, seed: int = 0
) -> list[Genotype]:
    """Random genotypes with few switches on, no two of them the same subnetwork.

    With half of all stitches on, as a sampler would start by itself, nearly every network is
    broken.

    Args:
        supernetwork: Whose switches.
        count: How many; fewer are returned where the space has no more.
        probability: Probability of each switch to be on.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    found: dict[Genotype, None] = dict.fromkeys(baselines())
    wanted = count + len(found)
    for _ in range(100 * count):  # draws that repeat a subnetwork are thrown away
        if len(found) >= wanted:
            break
        drawn = np.flatnonzero(rng.random(len(supernetwork.switches)) < probability)
        output = OUTPUTS[rng.integers(len(OUTPUTS))]
        genotype = Genotype(output, frozenset(drawn.tolist()))
        found[supernetwork.canonical(genotype)] = None
    return list(found)[len(OUTPUTS) :]


def enqueue_starts(
    study: optuna.Study,
    supernetwork: Supernetwork,
    *,
    population: int = 50,
    probability: float = 0.05,
    crossovers: Sequence[Crossover] = (),
    seed: int = 0,
) -> None:
    """Enqueue a study's first trials.

    They are both parents, their ensemble, the single crossovers that are best by the report of
    the fit, and then sparse random ones. Whatever sampler the study has, it starts from these.

    Args:
        study: A study over this supernetwork's switches.
        supernetwork: Whose switches.
        population: How many trials in all; half of them may be single crossovers.
        probability: Probability of each switch to be on in the random ones.
        crossovers: What `measure_crossovers` returned.
        seed: Of the random ones.
    """
    number = {switch.name: index for index, switch in enumerate(supernetwork.switches)}
    known = [crossover for crossover in crossovers if crossover.switch in number]
    known.sort(key=lambda crossover: -crossover.quality)
    best = [
        Genotype(crossover.into, frozenset([number[crossover.switch]]))
        for crossover in known[: population // 2]
    ]
    starts = dict.fromkeys([*baselines(), *best])
    random = sparse_genotypes(supernetwork, population, probability=probability, seed=seed)
    starts.update(dict.fromkeys(random))
    for genotype in list(starts)[: max(population, len(OUTPUTS))]:
        study.enqueue_trial(supernetwork.params(genotype), skip_if_exists=True)


def join_population(study: optuna.Study, number: int) -> None:
    """Count a trial among the population of a genetic sampler, if the study has one.

    Optuna's genetic samplers pass over enqueued trials: they would start from a population of
    their own, with half of all stitches on, and never breed from the sparse one.

    Args:
        study: The study.
        number: Of a trial that runs.
    """
    if isinstance(study.sampler, optuna.samplers.BaseGASampler):
        trial = study.get_trials(deepcopy=False)[number]
        study.sampler.get_trial_generation(study, trial)
