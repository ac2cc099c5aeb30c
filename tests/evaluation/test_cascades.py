"""Cascades: the answers of both heads by themselves, and all thresholds for the same images."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.cascades import CascadeAccumulator, tune_exit, with_share
from optuna_stitch.evaluation.latency import Latencies
from optuna_stitch.evaluation.metrics import METRICS
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.search.space import threshold_values
from optuna_stitch.stitching.cascade import Exit, confidences
from optuna_stitch.stitching.genotype import FIRST, SIDES, Genotype
from optuna_stitch.stitching.settings import Confidence
from optuna_stitch.utils.errors import StudyError

PLAIN = CascadeSettings(confidence="margin", answer="mean")

LABELS = torch.arange(40) % 4


def _cascades(supernetwork: st.Supernetwork, count: int) -> list[st.Subnetwork]:
    """Random ones with few stitches, either head first."""
    rng = random.Random(0)
    places = range(len(supernetwork.switches))
    return [
        supernetwork.subnetwork(
            Genotype(
                rng.choice(tuple(FIRST)),
                frozenset(rng.sample(places, number % 3)),
                rng.choice(threshold_values()),
            )
        )
        for number in range(count)
    ]


def _heads(supernetwork: st.Supernetwork, on: frozenset[int], split: Split) -> torch.Tensor:
    """Answers of both heads as networks of their own, ``(N, 2, classes)``."""
    heads = [supernetwork.subnetwork(Genotype(side, on)) for side in SIDES]
    evaluator = st.Evaluator(supernetwork, split, (), kernels="plain")
    return torch.stack(evaluator.logits(heads), dim=1)


def _some_heads(seed: int = 0) -> torch.Tensor:
    """Answers that are right more often than not, the second head's more than the first's."""
    heads = torch.randn(len(LABELS), 2, 4, generator=torch.Generator().manual_seed(seed))
    heads[torch.arange(len(LABELS)), 0, LABELS] += 1.0
    heads[torch.arange(len(LABELS)), 1, LABELS] += 2.0
    return heads


@pytest.mark.parametrize("pair", ["supernetwork", pytest.param("cnn_vit", marks=pytest.mark.slow)])
def test_a_cascade_is_its_two_heads(
    request: pytest.FixtureRequest, pair: str, data: st.Data
) -> None:
    supernetwork: st.Supernetwork = request.getfixturevalue(pair)
    split = data.val.take(60)
    metrics = ["accuracy", "macs", "worst_macs"]
    evaluator = st.Evaluator(supernetwork, split, metrics, kernels="plain", cascades=PLAIN)
    for cascade in _cascades(supernetwork, 4):
        side, threshold = cascade.genotype.first, cascade.threshold
        assert side is not None
        assert threshold is not None
        heads = _heads(supernetwork, cascade.on, split)
        own = heads[:, SIDES.index(side)]
        top = own.double().softmax(1).topk(2).values
        least = (top[:, 0] - top[:, 1]).argsort()[: round(threshold * len(split))]
        guesses = own.argmax(1)
        guesses[least] = heads.softmax(2).mean(1).argmax(1)[least]
        (evaluation,) = evaluator.evaluate([cascade])
        right = float((guesses == split.targets).double().mean())
        assert evaluation["accuracy"] == pytest.approx(right)
        alone = supernetwork.subnetwork(Genotype(side, cascade.on))
        both = supernetwork.subnetwork(Genotype("ensemble", cascade.on))
        assert evaluation["worst_macs"] == both.macs
        expected = alone.macs + threshold * (both.macs - alone.macs)
        assert evaluation["macs"] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("pair", ["supernetwork", pytest.param("cnn_vit", marks=pytest.mark.slow)])
def test_the_module_lets_unsure_images_go_on_together(
    request: pytest.FixtureRequest, pair: str, data: st.Data
) -> None:
    """Only their rows are handed over, and the answers are those of both heads computed whole."""
    supernetwork: st.Supernetwork = request.getfixturevalue(pair)
    split = data.val.take(40)
    evaluator = st.Evaluator(supernetwork, split, (), kernels="plain")
    images = split.pick(range(len(split)), supernetwork.views).images
    for cascade in evaluator.tune_exits(_cascades(supernetwork, 4)):
        assert cascade.exit is not None
        module = cascade.extract()
        sizes: list[int] = []
        module.rest.register_forward_pre_hook(lambda _, given, to=sizes: to.append(len(given[0])))
        with torch.no_grad():
            answers = module(*images)
        heads = _heads(supernetwork, cascade.on, split)
        expected = cascade.exit.answer(heads)
        torch.testing.assert_close(answers, expected, rtol=1e-5, atol=1e-5)
        assert sizes == [module.went_on] == [int(cascade.exit.asks_second(heads).sum())]
        stages, operations = cascade.stages, supernetwork.supergraph.operations
        rest = sum(operations[place].macs for place, _ in stages.rest)
        assert cascade.first.macs + rest == cascade.worst_macs
        # where all are sure, the rest does not run
        module.exit = Exit(module.exit.first, "margin", 0.0, 0.0)
        with torch.no_grad():
            module(*images)
        assert module.went_on == 0
        assert len(sizes) == 1


def test_another_threshold_costs_no_image(supernetwork: st.Supernetwork, data: st.Data) -> None:
    split = data.val.take(30)
    evaluator = st.Evaluator(supernetwork, split, ["accuracy", "macs"])
    one = supernetwork.subnetwork(Genotype("a then both", frozenset([3]), 0.5))
    assert not evaluator.knows_curve(one)
    evaluator.evaluate([one])
    assert evaluator.knows_curve(one)
    others = [one.with_threshold(threshold) for threshold in threshold_values()]
    reads = split.read
    try:
        split.read = None  # type: ignore[assignment,method-assign]
        evaluations = evaluator.evaluate(others)
    finally:
        split.read = reads  # type: ignore[method-assign]
    assert [e["macs"] for e in evaluations] == sorted(e["macs"] for e in evaluations)
    anew = st.Evaluator(supernetwork, split, ["accuracy", "macs"]).evaluate(others)
    assert [e.figures for e in anew] == [e.figures for e in evaluations]


def test_the_ends_are_the_first_head_and_both(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    split = data.val.take(40)
    on = frozenset([5])
    nobody = supernetwork.subnetwork(
        {
            **Genotype("a", on).params(supernetwork.switches),
            "output": "a then both",
            "threshold": 0,
        }
    )
    assert nobody == supernetwork.subnetwork(Genotype("a", on))
    everybody = supernetwork.subnetwork(Genotype("a then both", on, 1.0))
    assert everybody.macs == everybody.worst_macs
    evaluator = st.Evaluator(supernetwork, split, ["accuracy"], kernels="plain", cascades=PLAIN)
    both = supernetwork.subnetwork(Genotype("ensemble", on))
    found = evaluator.evaluate([everybody, both])
    assert found[0]["accuracy"] == found[1]["accuracy"]


def test_other_processes_know_a_curve(
    supernetwork: st.Supernetwork, data: st.Data, tmp_path: Path
) -> None:
    split, database = data.val.take(30), f"sqlite:///{tmp_path}/records.db"
    metrics = ["accuracy", "cross_entropy", "macs"]
    cascades = _cascades(supernetwork, 3)
    one = st.Evaluator(supernetwork, split, metrics, result_cache=database)
    found = one.evaluate(cascades)
    two = st.Evaluator(supernetwork, split, metrics, result_cache=database)
    split.read = None  # type: ignore[assignment,method-assign]
    again = two.evaluate([cascade.with_threshold(0.6) for cascade in cascades])
    for evaluation, cascade in zip(again, cascades, strict=True):
        (expected,) = one.evaluate([cascade.with_threshold(0.6)])
        assert evaluation.figures == pytest.approx(expected.figures)
    assert [e.figures for e in two.evaluate(cascades)] == [e.figures for e in found]


@pytest.mark.parametrize("measure", get_args(Confidence))
def test_confidence_can_be_chosen(measure: Confidence) -> None:
    """With each measure, right answers are surer than wrong ones, and a share goes on."""
    heads = _some_heads()
    settings = CascadeSettings(confidence=measure, answer="tuned")
    found = tune_exit(heads, LABELS, 0, settings)
    for share in (0.0, 0.1, 0.5, 1.0):
        some = with_share(found, found.sure(heads[:, 0]), share)
        assert int(some.asks_second(heads).sum()) == round(share * len(LABELS))
    sure, right = found.sure(heads[:, 0]), heads[:, 0].argmax(1) == LABELS
    assert float(sure[right].mean()) > float(sure[~right].mean())


def test_measures_are_between_0_and_1_also_of_images_with_many_pixels() -> None:
    logits = torch.randn(6, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 30
    logits[0] = torch.tensor([1000.0, 0, 0, 0, 0])[:, None, None]
    for measured in (confidences(logits), confidences(logits[:, :, 0, 0])):
        for sure in measured.values():
            assert sure.shape == (6,)
            assert bool(((sure >= -1e-9) & (sure <= 1 + 1e-9)).all())
            assert float(sure[0]) == pytest.approx(1)


def test_a_tuned_answer_is_of_less_cross_entropy() -> None:
    """Weights and temperatures are an optimum, and so better than the plain mean."""
    heads = _some_heads() * torch.tensor([4.0, 1.0])[None, :, None]  # the first is overconfident
    found = tune_exit(heads, LABELS, 0, CascadeSettings(answer="tuned"))
    plain = tune_exit(heads, LABELS, 0, PLAIN)

    def loss(some: Exit) -> float:
        logits = some.mean(heads[:, 0], heads[:, 1])
        return float(torch.nn.functional.cross_entropy(logits, LABELS))

    assert loss(found) < loss(plain)
    assert found.temperatures[0] > found.temperatures[1]
    assert found.weight < 0.5
    for step in (0.9, 1.1):
        a, b = found.temperatures
        for other in ((step * a, b), (a, step * b)):
            assert loss(Exit(0, "margin", 1.0, 1.0, found.weight, other)) > loss(found) - 1e-3


def test_labels_that_tuned_do_not_judge() -> None:
    """Each half is judged with what the other tuned: chance looks like chance."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (400,), generator=generator)
    heads = torch.randn(400, 2, 4, generator=generator)
    accumulator = CascadeAccumulator([METRICS["accuracy"]], 4, 0, CascadeSettings())  # type: ignore[list-item]
    for part in torch.arange(400).split(150):
        accumulator.update(heads[part], {"accuracy": labels[part]}, labels[part])
    curve = accumulator.curve()
    assert sorted(curve.ranks.tolist()) == [half / 200 for half in range(200) for _ in range(2)]
    assert accumulator.curve().ranks.tolist() == curve.ranks.tolist()  # it can be asked again
    for half in range(2):
        mine, other = torch.arange(half, 400, 2), torch.arange(1 - half, 400, 2)
        found = tune_exit(heads[other], labels[other], 0, CascadeSettings())
        right = found.mean(heads[mine, 0], heads[mine, 1]).argmax(1) == labels[mine]
        assert torch.equal(curve.both["accuracy"].right[mine], right)  # type: ignore[union-attr]


def test_latency_of_cascades(supernetwork: st.Supernetwork, data: st.Data) -> None:
    """A larger share takes longer, up to what both heads take; batches are smaller then."""
    names = ["latency_ms", "worst_latency_ms"]
    one = supernetwork.subnetwork(Genotype("a then both", frozenset([3]), 0.5))
    operations = [operation.name for operation in supernetwork.supergraph.operations]
    for batch_size in (1, 8):
        batch, single = (dict.fromkeys(operations, time) for time in (0.5, 0.3))
        made_up = Latencies(batch_size, 1, batch, single if batch_size > 1 else None)
        evaluator = st.Evaluator(supernetwork, data.val, names, latency=made_up)
        some = [one.first, *(one.with_threshold(t) for t in (0.1, 0.3, 0.9, 1.0))]
        found = evaluator.evaluate(some)
        times = [evaluation["latency_ms"] for evaluation in found]
        assert times == sorted(times)
        assert times[-1] == pytest.approx(found[-1]["worst_latency_ms"])
        assert found[1]["worst_latency_ms"] == pytest.approx(times[-1])


@pytest.mark.parametrize("threshold", [-0.1, 1.1, "much", None, True])
def test_a_threshold_is_a_share(supernetwork: st.Supernetwork, threshold: object) -> None:
    with pytest.raises(StudyError, match=r"'threshold'.* from 0"):
        supernetwork.subnetwork({"output": "b then both", "threshold": threshold})


def test_a_cascade_without_an_exit_has_no_module(supernetwork: st.Supernetwork) -> None:
    with pytest.raises(StudyError, match="tune_exits"):
        supernetwork.subnetwork({"output": "a then both", "threshold": 0.2}).extract()
