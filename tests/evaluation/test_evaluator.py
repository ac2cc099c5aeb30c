from __future__ import annotations

import pytest
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.utils.errors import ConfigError, DataError
from tests.helpers.networks import networks


def test_figures(supernetwork: st.Supernetwork, data: st.Data) -> None:
    evaluator = st.Evaluator(supernetwork, data.val, ["accuracy", "macs", "parameters"])
    genotype = Genotype("a")
    figures = evaluator.evaluate(networks(supernetwork, [genotype]))[0]
    hits = evaluator.logits(networks(supernetwork, [genotype]))[0].argmax(1) == data.val.targets
    assert figures["accuracy"] == pytest.approx(float(hits.float().mean()))
    assert figures["macs"] == supernetwork.graphs["a"].macs
    assert figures["parameters"] == supernetwork.graphs["a"].parameters


def test_a_users_own_metric_and_nothing_twice(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    calls = []

    def worst_class(logits: Tensor, targets: Tensor) -> float:
        calls.append(len(logits))
        hits = (logits.argmax(1) == targets).float()
        return min(float(hits[targets == label].mean()) for label in targets.unique())

    metric = st.Metric("worst_class", worst_class)
    evaluator = st.Evaluator(supernetwork, data.val, ["accuracy", metric])
    into_b = next(i for i, switch in enumerate(supernetwork.switches) if switch.into == "b")
    same = [Genotype("a"), Genotype("a", frozenset([into_b]))]
    figures = evaluator.evaluate(networks(supernetwork, same))
    assert figures[0] == figures[1]
    assert 0 <= figures[0]["worst_class"] <= figures[0]["accuracy"]
    evaluator.evaluate(networks(supernetwork, same))
    assert calls == [len(data.val)]


def test_every_known_metric_is_finite(supernetwork: st.Supernetwork, data: st.Data) -> None:
    of_images = ["accuracy", "top5", "balanced_accuracy", "cross_entropy", "calibration_error"]
    names = [*of_images, "macs", "parameters"]
    figures = st.Evaluator(supernetwork, data.val, names).evaluate(
        networks(supernetwork, [Genotype("ensemble")])
    )[0]
    assert list(figures.figures) == names
    assert figures["accuracy"] < figures["top5"] <= 1
    assert all(torch.tensor(value).isfinite() for value in figures.figures.values())


def test_agreement_and_bytes(supernetwork: st.Supernetwork, data: st.Data) -> None:
    names = ["agreement", "weight_bytes", "activation_bytes"]
    genotypes = [Genotype("ensemble"), Genotype("a"), Genotype("b")]
    evaluator = st.Evaluator(supernetwork, data.val, names, batch_size=30)
    guesses = [logits.argmax(1) for logits in evaluator.logits(networks(supernetwork, genotypes))]
    for genotype, guess, found in zip(
        genotypes, guesses, evaluator.evaluate(networks(supernetwork, genotypes)), strict=True
    ):
        assert found["agreement"] == pytest.approx(float((guess == guesses[0]).double().mean()))
        assert found["weight_bytes"] == 4 * supernetwork.subnetwork(genotype).parameters
    both, a, b = (
        found["activation_bytes"]
        for found in evaluator.evaluate(networks(supernetwork, genotypes))
    )
    assert 0 < min(a, b) <= max(a, b) <= both < a + b
    assert 0.1 < evaluator.evaluate(networks(supernetwork, genotypes))[2]["agreement"] < 1


def test_unknown_metrics_are_answered_with_the_known(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    with pytest.raises(ConfigError, match=r"no metric 'acuracy'; known are accuracy"):
        st.Evaluator(supernetwork, data.val, ["acuracy"])
    with pytest.raises(ConfigError, match="once"):
        st.Evaluator(supernetwork, data.val, ["macs", "macs"])


def test_labels_out_of_range(data: st.Data) -> None:
    few = [st.load_parent(n, num_classes=3, input_size=32) for n in ("test_resnet", "test_vit2")]
    stitched = st.stitch(*few)
    with pytest.raises(DataError, match="label 9"):
        st.Evaluator(stitched, data.val).evaluate(networks(stitched, [Genotype("a")]))
