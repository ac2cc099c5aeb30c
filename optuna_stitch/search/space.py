"""The search space: switches as Optuna's categorical parameters, and where a search starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.trial import TrialState

from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.search.steering import unwrapped
from optuna_stitch.stitching.genotype import (
    BOTH,
    OUTPUT,
    SIDES,
    STATES,
    THRESHOLD,
    Genotype,
    Output,
    Side,
    first_of,
    heads_of,
    static_outputs,
)
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork

Space = Literal["flat", "reachable"]

# shared by all switches, so that storages need not copy and convert one for each
STATE_CHOICES = CategoricalDistribution(STATES)

_STEP = 0.05

# A cascade that lets no image go on is its first head, one that lets all go on is the ensemble.
THRESHOLDS = FloatDistribution(_STEP, 1 - _STEP, step=_STEP)

# Where a search starts from: the share of images that go on in its first cascades.
_FIRST_THRESHOLD = 0.25


def threshold_values() -> list[float]:
    """The thresholds that trials may have, ascending."""
    count = round((THRESHOLDS.high - THRESHOLDS.low) / _STEP) + 1
    # steps of a twentieth are no round numbers in binary, and the last would be out of range
    return [round(THRESHOLDS.low + number * _STEP, 6) for number in range(count)]


def distributions(
    supernetwork: Supernetwork, outputs: Sequence[Output] | None = None
) -> dict[str, BaseDistribution]:
    """Every switch as a parameter, by name: ``off`` or ``on``, the output, and the threshold.

    Args:
        supernetwork: Whose switches.
        outputs: What networks may answer with, all that the supernetwork has, if None; without
            cascades there is no threshold.
    """
    outputs = outputs or supernetwork.supergraph.outputs
    names = [switch.name for switch in supernetwork.switches]
    asked = [*names, OUTPUT, THRESHOLD] if has_cascades(outputs) else [*names, OUTPUT]
    return {name: _distribution(name, outputs) for name in asked}


def _distribution(name: str, outputs: Sequence[Output]) -> BaseDistribution:
    if name == OUTPUT:
        return CategoricalDistribution(outputs)
    return THRESHOLDS if name == THRESHOLD else STATE_CHOICES


def has_cascades(outputs: Sequence[Output]) -> bool:
    """Whether some outputs are cascades.

    Args:
        outputs: What networks may answer with.
    """
    return any(first_of(output) for output in outputs)


def study_outputs(study: optuna.Study) -> tuple[Output, ...] | None:
    """What a study's trials may answer with; None where it has no trial that was asked.

    A parameter's choices cannot change within a study: one from before there were cascades goes
    on without them.

    Args:
        study: The study.
    """
    for trial in study.get_trials(deepcopy=False):
        found = trial.distributions.get(OUTPUT)
        if isinstance(found, CategoricalDistribution):
            return cast("tuple[Output, ...]", found.choices)
    return None


def suggest(
    trial: optuna.trial.BaseTrial,
    supernetwork: Supernetwork,
    space: Space = "flat",
    outputs: Sequence[Output] | None = None,
) -> Subnetwork:
    """Ask a trial for its switches.

    Args:
        trial: Any trial.
        supernetwork: Whose switches.
        space: ``flat`` asks for every parameter; ``reachable`` walks back from the output, and
            asks only for those that matter.
        outputs: What networks may answer with; all that the supernetwork has, if None.

    Returns:
        The subnetwork that they make.
    """
    outputs = outputs or supernetwork.supergraph.outputs
    if space == "flat":
        params = {
            switch.name: trial.suggest_categorical(switch.name, STATES)
            for switch in supernetwork.switches
        }
        params[OUTPUT] = trial.suggest_categorical(OUTPUT, outputs)
        threshold = _suggest_threshold(trial) if has_cascades(outputs) else None
        return supernetwork.subnetwork({**params, THRESHOLD: threshold})
    output: Output = trial.suggest_categorical(OUTPUT, outputs)

    def asks(index: int) -> bool:
        return trial.suggest_categorical(supernetwork.switches[index].name, STATES) == "on"

    on = supernetwork.supergraph.reach(output, asks)
    threshold = _suggest_threshold(trial) if first_of(output) else None
    return supernetwork.subnetwork(Genotype(output, on, threshold))


def _suggest_threshold(trial: optuna.trial.BaseTrial) -> float:
    return trial.suggest_float(THRESHOLD, THRESHOLDS.low, THRESHOLDS.high, step=_STEP)


def baselines(sides: Sequence[Side] = SIDES, *, two_jobs: bool = False) -> list[Genotype]:
    """All parents and their plain ensembles; of two jobs, both parents side by side.

    Args:
        sides: The parents.
        two_jobs: Whether the parents answer different questions.
    """
    outputs = (BOTH,) if two_jobs else static_outputs(sides)
    return [Genotype(output) for output in outputs]


def sparse_genotypes(
    supernetwork: Supernetwork,
    count: int,
    *,
    probability: float,
    outputs: Sequence[Output] | None = None,
    seed: int = 0,
) -> list[Genotype]:
    """Random genotypes with few switches on, no two of them the same subnetwork.

    With half of all stitches on, as a sampler would start by itself, nearly every network is
    broken.

    Args:
        supernetwork: Whose switches.
        count: How many; fewer are returned where the space has no more.
        probability: Probability of each switch to be on.
        outputs: What networks may answer with; all that the supernetwork has, if None.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    outputs = outputs or supernetwork.supergraph.outputs
    known = baselines(supernetwork.sides, two_jobs=supernetwork.two_jobs)
    found: dict[Genotype, None] = dict.fromkeys(known)
    wanted = count + len(found)
    thresholds = threshold_values()
    for _ in range(100 * count):  # draws that repeat a subnetwork are thrown away
        if len(found) >= wanted:
            break
        drawn = np.flatnonzero(rng.random(len(supernetwork.switches)) < probability)
        output = outputs[int(rng.integers(len(outputs)))]
        drawn_threshold = thresholds[int(rng.integers(len(thresholds)))]
        threshold = drawn_threshold if first_of(output) else None
        genotype = Genotype(output, frozenset(drawn.tolist()), threshold)
        found[supernetwork.subnetwork(genotype).genotype] = None
    return list(found)[len(known) :]


def continuing_genotypes(
    supernetwork: Supernetwork, switches: Sequence[int], outputs: Sequence[Output] | None = None
) -> list[Genotype]:
    """Networks in which one parent's rest goes on from another one's features.

    For each stitch the stitched ensemble of the two parents that it lies between, and the cascade
    of them that asks the cheaper head first; of two jobs, the network in which one head's rest
    goes on from the features of the other parent, which is whole.

    Args:
        supernetwork: Whose switches.
        switches: Indices of the stitches.
        outputs: What networks may answer with; all that the supernetwork has, if None.
    """
    outputs = outputs or supernetwork.supergraph.outputs
    found: list[Genotype] = []
    for index in switches:
        on = frozenset([index])
        switch = supernetwork.switches[index]
        pair = tuple(sorted((switch.out_of, switch.into)))
        costs = {side: supernetwork.subnetwork(Genotype(side, on)).macs for side in pair}
        cheaper = min(costs, key=lambda side: costs[side])
        found += [
            Genotype(output, on, _FIRST_THRESHOLD if first_of(output) else None)
            for output in outputs
            if heads_of(output, supernetwork.sides) == pair and first_of(output) in (None, cheaper)
        ]
    return found


def enqueue_starts(
    study: optuna.Study,
    supernetwork: Supernetwork,
    *,
    population: int = 50,
    probability: float = 0.05,
    stitch_qualities: Sequence[StitchQuality] = (),
    genotypes: Sequence[Genotype] = (),
    space: Space = "flat",
    outputs: Sequence[Output] | None = None,
    seed: int = 0,
) -> None:
    """Enqueue a study's first trials.

    They are all parents, their ensembles and plain cascades, genotypes that are given, for every
    stitch of the report of the fit the stitched ensemble and the cascade, the single-stitch
    networks that are best by that report, and then sparse random ones; each where its output is
    one of ``outputs``. Of two jobs they are both parents side by side, what is given, one network
    for every stitch, and random ones. Whatever sampler the study has, it starts from these.

    Args:
        study: A study over this supernetwork's switches.
        supernetwork: Whose switches.
        population: How many trials in all, where those above random ones are fewer; half as many
            may be single-stitch networks.
        probability: Probability of each switch to be on in the random ones.
        stitch_qualities: What `measure_stitches` returned.
        genotypes: What is worth a try, such as the front of another study.
        space: What trials of the study are asked.
        outputs: What networks may answer with; all that the supernetwork has, if None.
        seed: Of the random ones.
    """
    outputs = outputs or supernetwork.supergraph.outputs
    number = {switch.name: index for index, switch in enumerate(supernetwork.switches)}
    known = [
        stitch_quality for stitch_quality in stitch_qualities if stitch_quality.switch in number
    ]
    known.sort(key=lambda stitch_quality: stitch_quality.drop)
    plain = [Genotype(o, threshold=_FIRST_THRESHOLD) for o in outputs if first_of(o)]
    singles = [
        Genotype(stitch_quality.into, frozenset([number[stitch_quality.switch]]))
        for stitch_quality in known[: population // 2]
        if not supernetwork.two_jobs
    ]
    continuing = continuing_genotypes(supernetwork, [number[q.switch] for q in known], outputs)
    whole = baselines(supernetwork.sides, two_jobs=supernetwork.two_jobs)
    first = dict.fromkeys([*whole, *plain, *genotypes, *continuing, *singles])
    # what networks may answer with need not be what parents, or another study's front, do
    starts = {genotype: None for genotype in first if genotype.output in outputs}
    population = max(population, len(starts))
    random = sparse_genotypes(
        supernetwork, population, probability=probability, outputs=outputs, seed=seed
    )
    starts.update(dict.fromkeys(random))
    enqueue(study, supernetwork, list(starts)[:population], space, outputs)


def enqueue(
    study: optuna.Study,
    supernetwork: Supernetwork,
    genotypes: Sequence[Genotype],
    space: Space = "flat",
    outputs: Sequence[Output] | None = None,
) -> None:
    """Enqueue genotypes that no trial of a study has, each in one piece.

    Args:
        study: A study over this supernetwork's switches.
        supernetwork: Whose switches.
        genotypes: What to try next.
        space: What trials of the study are asked.
        outputs: What networks may answer with; all that the supernetwork has, if None.
    """
    outputs = outputs or supernetwork.supergraph.outputs
    names = {switch.name for switch in supernetwork.switches} | {OUTPUT, THRESHOLD}
    taken: set[Genotype] = set()
    for trial in study.get_trials(deepcopy=False):
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if OUTPUT in params and params.keys() <= names:
            taken.add(supernetwork.subnetwork(params).genotype)
    for genotype in genotypes:
        subnetwork = supernetwork.subnetwork(genotype)
        if subnetwork.genotype not in taken:
            taken.add(subnetwork.genotype)
            enqueue_params(study, asked(supernetwork, genotype, space, outputs), outputs)


def asked(
    supernetwork: Supernetwork,
    genotype: Genotype,
    space: Space,
    outputs: Sequence[Output] | None = None,
) -> dict[str, Any]:
    """The parameters of which a trial of a genotype is asked.

    Args:
        supernetwork: Whose switches.
        genotype: The genotype.
        space: What trials of the study are asked.
        outputs: What networks may answer with; all that the supernetwork has, if None.
    """
    params = {THRESHOLD: _FIRST_THRESHOLD} | genotype.params(supernetwork.switches)
    trial = optuna.trial.FixedTrial(params)
    suggest(trial, supernetwork, space, outputs)
    return trial.params


def enqueue_params(
    study: optuna.Study,
    params: Mapping[str, Any],
    outputs: Sequence[Output],
    user_attrs: dict[str, Any] | None = None,
) -> None:
    """Enqueue one trial with all its parameters.

    ``study.enqueue_trial`` would have each of them written by itself when the trial is run.

    Args:
        study: Where to.
        params: Of the trial, all of them.
        outputs: What networks may answer with.
        user_attrs: Of the trial.
    """
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=dict(params),
            distributions={name: _distribution(name, outputs) for name in params},
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
