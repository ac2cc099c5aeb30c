from __future__ import annotations

import random

import pytest
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation import engine
from optuna_stitch.evaluation.settings import Kernels
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.program import Program
from tests.helpers.networks import networks


def _sum(logits: Tensor, _: Tensor) -> float:
    return float(logits.double().sum())


def _generations(supernetwork: st.Supernetwork, seed: int) -> list[list[Genotype]]:
    """Batches of near-copies, as a search asks for them."""
    rng = random.Random(seed)
    last = [Genotype(output) for output in ("a", "b", "ensemble")]
    generations = [last]
    for _ in range(4):
        bred = []
        for parent in rng.choices(last, k=5):
            flipped = {rng.randrange(len(supernetwork.switches)) for _ in range(2)}
            bred.append(Genotype(rng.choice(("a", "b", "ensemble")), parent.on ^ flipped))
        last = [*last, *bred]
        generations.append(bred)
    return generations


def _evaluate(
    supernetwork: st.Supernetwork,
    split: Split,
    generations: list[list[Genotype]],
    kernels: Kernels = "plain",
    memory: float = 4.0,
) -> list[float]:
    evaluator = st.Evaluator(
        supernetwork,
        split,
        [st.Metric("sum", _sum)],
        kernels=kernels,
        batch_size=30,
        memory=memory,
    )
    found = [
        one for asked in generations for one in evaluator.evaluate(networks(supernetwork, asked))
    ]
    return [one["sum"] for one in found if not one.failed]


@pytest.mark.parametrize(
    ("pair", "kernels"),
    [
        pytest.param("supernetwork", "plain", marks=pytest.mark.slow),
        ("supernetwork", "fast"),
        pytest.param("cnn_vit", "fast", marks=pytest.mark.slow),
        pytest.param("cnn_vit", "plain", marks=pytest.mark.slow),
    ],
)
def test_with_values_of_earlier_plans_answers_are_the_same_bit_for_bit(
    request: pytest.FixtureRequest,
    data: st.Data,
    pair: str,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(pair)
    assert supernetwork.calibration is not None
    generations = _generations(supernetwork, seed=3)
    split = data.val.take(100)
    reused: list[int] = []
    run = Program.run

    def counted(self: Program, *args: object) -> list[object]:
        reused.append(len(self.given))
        return run(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Program, "run", counted)
    with_values = _evaluate(supernetwork, split, generations, kernels)
    assert sum(reused) > 0
    some = _evaluate(supernetwork, split, generations, kernels, memory=8 * 2e6 / 2**30)
    monkeypatch.setattr("optuna_stitch.evaluation.runner.KEPT", 0.0)
    reused.clear()
    assert with_values == some == _evaluate(supernetwork, split, generations, kernels)
    assert sum(reused) == 0


def test_values_are_computed_once_and_stay_within_their_budget(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    split = data.val.take(60)
    evaluator = st.Evaluator(supernetwork, split, memory=8e6 / 2**30 / engine.KEPT, batch_size=30)
    values = evaluator.activation_cache
    into_b = [i for i, switch in enumerate(supernetwork.switches) if switch.into == "b"]
    evaluator.evaluate(networks(supernetwork, [Genotype("b", frozenset([into_b[2]]))]))
    assert 0 < sum(kept.size for kept in values.kept.values()) <= 8e6
    for kept in values.kept.values():
        assert sum(batch.numel() for batch in kept.batches) * 4 <= kept.size
        held = [batch.untyped_storage().nbytes() for batch in (*kept.batches, *kept.calibration)]
        assert sum(held) == kept.size
    # the same single-stitch network and later the way back: up to there it is known
    back = next(
        i
        for i in reversed(range(len(supernetwork.switches)))
        if supernetwork.switches[i].into == "a" and i > into_b[2] + 1
    )
    longer = Genotype("a", frozenset([into_b[2], back]))
    assert supernetwork.subnetwork(longer).genotype == longer
    program = supernetwork.supergraph.program([longer])
    alone = program.macs
    values.reuse(program)
    assert any(program.paths[step] for step in program.given)
    assert program.macs < 0.7 * alone


def test_what_is_expensive_and_small_is_kept(supernetwork: st.Supernetwork, data: st.Data) -> None:
    budget = 3e5
    evaluator = st.Evaluator(
        supernetwork, data.val.take(20), memory=budget / 2**30 / engine.KEPT, batch_size=20
    )
    values = evaluator.activation_cache
    evaluator.evaluate(networks(supernetwork, [Genotype("ensemble")]))
    operations = supernetwork.supergraph.operations
    kept = [operations[place].elements for place, _ in values.kept]
    left_out = [
        operations[place].elements for place in values.points if (place, 0) not in values.kept
    ]
    assert kept
    assert left_out
    assert sum(kept) / len(kept) < sum(left_out) / len(left_out)
    # what is not used for long gives way, however expensive
    for switch in range(len(supernetwork.switches)):
        into = supernetwork.switches[switch].into
        evaluator.evaluate(networks(supernetwork, [Genotype(into, frozenset([switch]))]))
    assert any(path for _, path in values.kept)
