from __future__ import annotations

import numpy as np
import pytest
import torch

import optuna_stitch as st
from optuna_stitch.evaluation.racing import Race, Rival
from optuna_stitch.stitching.genotype import Genotype, single_stitch_genotypes
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.networks import networks

IMAGES, BATCH = 600, 20


def _race(seed: int, **options: float) -> Race:
    racing = st.Racing(seed=seed, **options)  # type: ignore[arg-type]
    return Race(racing, "accuracy", IMAGES, BATCH)


def _stopped_after(race: Race, outcomes: torch.Tensor, rival: Rival) -> int | None:
    for block in race.blocks[:-1]:
        seen = outcomes[race.order[:block]]
        if race.lost(seen, rival):
            assert race.estimate(seen, rival) < rival.quality
            return block
    return None


def test_blocks_grow_in_whole_batches() -> None:
    assert _race(0, first=50).blocks == [60, 100, 200, 400, 600]
    assert _race(0, first=1000).blocks == [600]
    assert sorted(_race(3).order) == list(range(IMAGES))


@pytest.mark.parametrize(
    "agreement", [0.95, *(pytest.param(some, marks=pytest.mark.slow) for some in (0.0, 0.5))]
)
def test_what_is_no_worse_is_stopped_no_more_often_than_stated(agreement: float) -> None:
    """A subnetwork exactly as good as its rival, the hardest case, in 1,500 orders of images."""
    rng = np.random.default_rng(0)
    theirs = torch.from_numpy(rng.random(IMAGES) < 0.8)
    both = torch.from_numpy(rng.random(IMAGES) < agreement)
    # of the images on which they differ, each gets half: the same number right
    right, wrong = torch.where(theirs & ~both)[0], torch.where(~theirs & ~both)[0]
    swapped = min(len(right), len(wrong))
    ours = theirs.clone()
    ours[right[:swapped]] = False
    ours[wrong[:swapped]] = True
    assert ours.sum() == theirs.sum()
    rival = Rival((1.0,), theirs)
    error_rate, orders = 0.05, 1500
    stopped = 0
    for seed in range(orders):
        race = _race(seed, error_rate=error_rate)
        stopped += _stopped_after(race, ours, rival) is not None
    assert stopped / orders <= error_rate + 3 * (error_rate / orders) ** 0.5


@pytest.mark.slow
def test_real_subnetworks_that_a_full_evaluation_keeps_are_kept(
    table: tuple[torch.Tensor, list[float]],
) -> None:
    """Tabulated: what every single-stitch network answers to every image, raced in 200 orders."""
    outcomes, costs = table
    quality = outcomes.double().mean(dim=1)
    kept = wrongly = beaten = early = 0
    for seed in range(200):
        race = Race(st.Racing(error_rate=0.05, first=40, seed=seed), "accuracy", 200, BATCH)
        for place, (column, cost) in enumerate(zip(outcomes, costs, strict=True)):
            rival = race.rival((cost,))
            stopped = rival is not None and _stopped_after(race, column, rival) is not None
            if rival is not None and float(quality[place]) < rival.quality:
                beaten += 1
                early += stopped
            else:
                kept += 1
                wrongly += stopped
            if not stopped:
                race.join(Rival((cost,), column))
    assert kept > 200
    assert wrongly / kept <= 0.05
    assert early / beaten > 0.2  # and it is of use


@pytest.fixture(scope="module")
def table(supernetwork: st.Supernetwork, data: st.Data) -> tuple[torch.Tensor, list[float]]:
    genotypes = [
        Genotype("a"),
        Genotype("b"),
        *single_stitch_genotypes(supernetwork.switches),
    ]
    logits = st.Evaluator(supernetwork, data.val).logits(networks(supernetwork, genotypes))
    outcomes = torch.stack([answer.argmax(1) == data.val.targets for answer in logits])
    return outcomes, [float(supernetwork.subnetwork(genotype).macs) for genotype in genotypes]


def test_a_race_is_against_the_best_that_costs_no_more() -> None:
    race = _race(0)
    outcomes = torch.zeros(3, IMAGES, dtype=torch.bool)
    outcomes[0, :300] = outcomes[1, :400] = outcomes[2, :350] = True
    for place, cost in enumerate((1.0, 2.0, 3.0)):
        race.join(Rival((cost,), outcomes[place]))
    assert race.rival((0.5,)) is None
    for cost, quality in ((1.0, 300), (1.9, 300), (2.0, 400), (9.0, 400)):
        rival = race.rival((cost,))
        assert rival is not None
        assert rival.quality == quality / IMAGES
    better = Rival((1.0,), torch.ones(IMAGES, dtype=torch.bool))
    race.join(better)
    assert race.rival((9.0,)) is better


def test_the_evaluator_marks_what_it_stopped(supernetwork: st.Supernetwork, data: st.Data) -> None:
    parents = [Genotype("a"), Genotype("b")]
    genotypes = single_stitch_genotypes(supernetwork.switches)[::3]
    full = st.Evaluator(supernetwork, data.val)
    # so rarely wrong that it stops none by chance that is as good as its rival
    racing = st.Racing(error_rate=1e-6, first=50)
    raced = st.Evaluator(supernetwork, data.val, racing=racing, batch_size=25)
    best = max(
        full.evaluate(networks(supernetwork, parents)),
        key=lambda evaluation: evaluation["accuracy"],
    )
    raced.evaluate(networks(supernetwork, parents))
    stopped = 0
    for judged, whole in zip(
        raced.evaluate(networks(supernetwork, genotypes)),
        full.evaluate(networks(supernetwork, genotypes)),
        strict=True,
    ):
        assert judged["macs"] == whole["macs"]
        if judged.stopped:
            stopped += 1
            assert judged.images in (50, 100)
            assert judged["accuracy"] < best["accuracy"]
            assert whole["accuracy"] < best["accuracy"]
        else:
            assert judged.images == len(data.val)
            assert judged["accuracy"] == whole["accuracy"]
    assert stopped > 3


@pytest.mark.parametrize(
    "metrics", [["accuracy", "cross_entropy"], ["calibration_error", "macs"], ["macs"]]
)
def test_what_cannot_be_raced_is_refused(
    supernetwork: st.Supernetwork, data: st.Data, metrics: list[str]
) -> None:
    with pytest.raises(ConfigError, match="right or wrong of every image"):
        st.Evaluator(supernetwork, data.val, metrics, racing=st.Racing())


def test_senseless_races_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`error_rate` of Racing: .* less than 1 \(it is 2\)"):
        st.Racing(error_rate=2)
    with pytest.raises(ConfigError, match=r"`growth` of Racing: .* greater than 1"):
        st.Racing(growth=1)
