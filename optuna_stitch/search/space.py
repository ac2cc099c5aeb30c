"""The search space: switches as Optuna's categorical parameters, and where a search starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.search.steering import unwrapped
from optuna_stitch.stitching.genotype import OUTPUT, OUTPUTS, STATES, Genotype, Output
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork

Space = Literal["flat", "reachable"]

# shared by all switches, so that storages need not copy and convert one for each
STATE_CHOICES = CategoricalDistribution(STATES)

OUTPUT_CHOICES = CategoricalDistribution(OUTPUTS)


def distributions(supernetwork: Supernetwork) -> dict[str, BaseDistribution]:
    """Every switch as a parameter, by name: ``off`` or ``on``, and the output's choices.

    Args:
        supernetwork: Whose switches.
    """
    space: dict[str, BaseDistribution] = {
        switch.name: STATE_CHOICES for switch in supernetwork.switches
    }
    space[OUTPUT] = OUTPUT_CHOICES
    return space


def suggest(
    trial: optuna.trial.BaseTrial, supernetwork: Supernetwork, space: Space = "flat"
) -> Subnetwork:
    """Ask a trial for its switches.

    Args:
        trial: Any trial.
        supernetwork: Whose switches.
        space: ``flat`` asks for every switch; ``reachable`` walks back from the output, and asks
            only for those that matter.

    Returns:
        The subnetwork that they make.
    """
    if space == "flat":
        params = {
            switch.name: trial.suggest_categorical(switch.name, STATES)
            for switch in supernetwork.switches
        }
        params[OUTPUT] = trial.suggest_categorical(OUTPUT, OUTPUTS)
        return supernetwork.subnetwork(params)
    output = cast(Output, trial.suggest_categorical(OUTPUT, OUTPUTS))

    def asks(index: int) -> bool:
        return trial.suggest_categorical(supernetwork.switches[index].name, STATES) == "on"

    return supernetwork.subnetwork(Genotype(output, supernetwork.supergraph.reach(output, asks)))


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
        found[supernetwork.subnetwork(genotype).genotype] = None
    return list(found)[len(OUTPUTS) :]


def enqueue_starts(
    study: optuna.Study,
    supernetwork: Supernetwork,
    *,
    population: int = 50,
    probability: float = 0.05,
    stitch_qualities: Sequence[StitchQuality] = (),
    genotypes: Sequence[Genotype] = (),
    space: Space = "flat",
    seed: int = 0,
) -> None:
    """Enqueue a study's first trials.

    They are both parents, their ensemble, genotypes that are given, the single-stitch networks
    that are best by the report of the fit, and then sparse random ones. Whatever sampler the study
    has, it starts from these.

    Args:
        study: A study over this supernetwork's switches.
        supernetwork: Whose switches.
        population: How many trials in all; half of them may be single-stitch networks.
        probability: Probability of each switch to be on in the random ones.
        stitch_qualities: What `measure_stitches` returned.
        genotypes: What is worth a try, such as the front of another study.
        space: What trials of the study are asked.
        seed: Of the random ones.
    """
    number = {switch.name: index for index, switch in enumerate(supernetwork.switches)}
    known = [
        stitch_quality for stitch_quality in stitch_qualities if stitch_quality.switch in number
    ]
    known.sort(key=lambda stitch_quality: -stitch_quality.quality)
    best = [
        Genotype(stitch_quality.into, frozenset([number[stitch_quality.switch]]))
        for stitch_quality in known[: population // 2]
    ]
    starts = dict.fromkeys([*baselines(), *genotypes, *best])
    random = sparse_genotypes(supernetwork, population, probability=probability, seed=seed)
    starts.update(dict.fromkeys(random))
    population = max(population, len(OUTPUTS) + len(genotypes))
    enqueue(study, supernetwork, list(starts)[:population], space)


def enqueue(
    study: optuna.Study,
    supernetwork: Supernetwork,
    genotypes: Sequence[Genotype],
    space: Space = "flat",
) -> None:
    """Enqueue genotypes that no trial of a study has, each in one piece.

    Args:
        study: A study over this supernetwork's switches.
        supernetwork: Whose switches.
        genotypes: What to try next.
        space: What trials of the study are asked.
    """
    names = {switch.name for switch in supernetwork.switches} | {OUTPUT}
    taken: set[Genotype] = set()
    for trial in study.get_trials(deepcopy=False):
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if OUTPUT in params and params.keys() <= names:
            taken.add(supernetwork.subnetwork(params).genotype)
    for genotype in genotypes:
        subnetwork = supernetwork.subnetwork(genotype)
        if subnetwork.genotype not in taken:
            enqueue_params(study, asked(supernetwork, genotype, space))


def asked(supernetwork: Supernetwork, genotype: Genotype, space: Space) -> dict[str, Any]:
    """The parameters of which a trial of a genotype is asked.

    Args:
        supernetwork: Whose switches.
        genotype: The genotype.
        space: What trials of the study are asked.
    """
    trial = optuna.trial.FixedTrial(genotype.params(supernetwork.switches))
    suggest(trial, supernetwork, space)
    return trial.params


def enqueue_params(
    study: optuna.Study, params: Mapping[str, Any], user_attrs: dict[str, Any] | None = None
) -> None:
    """Enqueue one trial with all its parameters.

    ``study.enqueue_trial`` would have each of them written by itself when the trial is run.

    Args:
        study: Where to.
        params: Of the trial, all of them.
        user_attrs: Of the trial.
    """
    choices: dict[str, BaseDistribution] = {
        name: OUTPUT_CHOICES if name == OUTPUT else STATE_CHOICES for name in params
    }
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=dict(params),
            distributions=choices,
            user_attrs=user_attrs,
        )
    )


def join_population(trial: optuna.Trial) -> None:
    """Count a trial among the population of a genetic sampler, if its study has one.

    Optuna's genetic samplers pass over enqueued trials: they would start from a population of
    their own, with half of all stitches on, and never breed from the sparse one.

    Args:
        trial: One that runs.
    """
    sampler = unwrapped(trial.study.sampler)
    if isinstance(sampler, optuna.samplers.BaseGASampler):
        sampler.get_trial_generation(trial.study, trial.storage.get_trial(trial._trial_id))
