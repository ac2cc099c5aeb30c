from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.evaluation.probe import fit_probes
from optuna_stitch.stitching.genotype import SIDES, Genotype
from optuna_stitch.utils.errors import ConfigError, DataError, StudyError


def _crossed(supernetwork: st.Supernetwork, into: str, place: int = -1) -> st.Subnetwork:
    """A network with one stitch on, of those that lead into a parent."""
    own = [i for i, switch in enumerate(supernetwork.switches) if switch.into == into]
    return supernetwork.subnetwork(Genotype("both", frozenset([own[place]])))


def _answers(network: nn.Module, split: st.data.splits.Split, view: st.View) -> Tensor:
    with torch.no_grad():
        return network(next(split.batches([view], len(split))).images[0])


def test_costs_count_what_both_answers_need_once(two_jobs: st.Supernetwork) -> None:
    graphs = two_jobs.graphs
    whole = two_jobs.subnetwork({"output": "both"})
    assert whole.macs == graphs["a"].macs + graphs["b"].macs
    assert whole.parameters == graphs["a"].parameters + graphs["b"].parameters
    for into in SIDES:
        crossed = _crossed(two_jobs, into)
        parts = {operation.name: operation.macs for operation in crossed.operations}
        for side in SIDES:
            own = crossed.part(side)
            assert {operation.name for operation in own.operations} < set(parts)
        assert crossed.macs == sum(parts.values()) < whole.macs
        # the other parent is whole: its own answer is its own
        assert crossed.part("b" if into == "a" else "a").on == frozenset()


def test_switches_that_reach_neither_answer_do_not_matter(two_jobs: st.Supernetwork) -> None:
    into_b = [i for i, switch in enumerate(two_jobs.switches) if switch.into == "b"]
    early, late = into_b[0], into_b[-1]
    both = two_jobs.subnetwork(Genotype("both", frozenset([early, late])))
    # the late stitch replaces all that the early one leads to
    assert both == two_jobs.subnetwork(Genotype("both", frozenset([late])))


def test_figures_are_those_of_the_extracted_network(
    two_jobs: st.Supernetwork, pair: st.DataPair
) -> None:
    metrics = ["retained", "accuracy_a", "accuracy_b", "agreement_b", "macs"]
    evaluator = st.TwoJobEvaluator(two_jobs, pair.val, metrics, kernels="plain")
    subnetworks = [two_jobs.subnetwork({"output": "both"}), _crossed(two_jobs, "b", 1)]
    whole, crossed = evaluator.evaluate(subnetworks)
    found: list[dict[str, float]] = []
    guesses: list[dict[str, Tensor]] = []
    for subnetwork in subnetworks:
        network = subnetwork.extract()
        said = {s: _answers(network, pair.val.of(s), two_jobs.views[0])[s] for s in SIDES}
        assert {s: logits.shape for s, logits in said.items()} == {"a": (200, 10), "b": (200, 2)}
        guesses.append({side: logits.argmax(1) for side, logits in said.items()})
        right = {s: (guesses[-1][s] == pair.val.of(s).targets).double().mean() for s in SIDES}
        found.append({side: float(share) for side, share in right.items()})
    for evaluation, own in zip((whole, crossed), found, strict=True):
        assert evaluation["accuracy_a"] == pytest.approx(own["a"])
        assert evaluation["accuracy_b"] == pytest.approx(own["b"])
        shares = [own[side] / found[0][side] for side in SIDES]
        assert evaluation["retained"] == pytest.approx(min(shares))
    agrees = (guesses[0]["b"] == guesses[1]["b"]).double().mean()
    assert crossed["agreement_b"] == pytest.approx(float(agrees))
    assert whole["retained"] == whole["agreement_b"] == 1


def test_a_probe_is_ridge_regression_from_a_feature_to_logits(
    two_jobs: st.Supernetwork, pair: st.DataPair
) -> None:
    probes = fit_probes(two_jobs, pair.train)
    last = next(probe for probe in probes if probe.host == "a" and probe.is_last)
    assert {probe.host for probe in probes} == {"a", "b"}
    assert all(probe.r2 >= last.r2 for probe in probes if probe.host == "a")
    width = two_jobs.graphs["a"].points[-1].layout.channels
    assert last.subnetwork.macs == two_jobs.graphs["a"].macs + 2 * width
    # the same by NumPy: features of a, logits of b, the strength that was chosen
    program = two_jobs.supergraph.parents_program(
        [("a", two_jobs.graphs["a"].points[-1].node), ("b", two_jobs.graphs["b"].output.name)]
    )
    images = next(pair.train.together.batches(two_jobs.views, 300)).images
    with torch.no_grad():
        x, y = (value.flatten(1).double().numpy() for value in program.run(images))
        answered = last.subnetwork.extract()(*images)["b"].double().numpy()
    stitch = last.supernetwork.stitches[0]
    weight = stitch.weight.flatten(1).double().numpy()
    centred, target = x - x.mean(0), y - y.mean(0)
    residual = target - centred @ weight.T
    # at the optimum the gradient of the error is that of the penalty, a multiple of the weights
    slopes = centred.T @ residual / len(x)
    strength = float((slopes * weight.T).sum() / (weight**2).sum())
    np.testing.assert_allclose(slopes, strength * weight.T, atol=1e-3 * np.abs(slopes).max())
    np.testing.assert_allclose(answered, centred @ weight.T + y.mean(0), atol=1e-3)


class _Dense(nn.Module):
    """A label for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.body(self.stem(x)))
        return nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")


def test_one_parent_labels_images_and_the_other_pixels(a: st.Parent) -> None:
    torch.manual_seed(0)
    dense = st.load_parent(_Dense(), input_size=48, name="dense")  # sees images in its own size
    both = st.stitch(a, dense)
    assert both.two_jobs
    splits = {name: {"images": 20} for name in ("train", "val", "test")}
    # the same images with a label each, and with one for each of their pixels
    data = st.DataPair(
        st.load_data("noise/10", **splits), st.load_data("noise/4/pixels", seed=1, **splits)
    )
    both.fit(data.train)
    evaluator = st.TwoJobEvaluator(both, data.val, ["accuracy_a", "mean_iou_b", "macs"])
    subnetworks = [both.subnetwork({"output": "both"}), _crossed(both, "b", 0)]
    whole, crossed = evaluator.evaluate(subnetworks)
    assert whole["macs"] == a.graph().macs + dense.graph().macs
    assert 0 < crossed["mean_iou_b"] < 1
    answers = subnetworks[0].extract()(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 48, 48))
    assert answers["a"].shape == (2, 10)
    assert answers["b"].shape == (2, 4, 48, 48)
    with pytest.raises(ConfigError, match="parent b, dense, labels every pixel"):
        st.TwoJobEvaluator(both, data.val, ["accuracy_b"])
    probes = fit_probes(both, data.train)
    assert {probe.subnetwork.part("b").supergraph.segments_of("b") for probe in probes} == {True}


def test_figures_that_do_not_fit_are_refused(
    two_jobs: st.Supernetwork, supernetwork: st.Supernetwork, pair: st.DataPair, data: st.Data
) -> None:
    with pytest.raises(ConfigError, match="accuracy_a or accuracy_b; or say retained"):
        st.Objective(two_jobs, pair.val, ["accuracy", "macs"])
    with pytest.raises(ConfigError, match="'accuracy' needs a side"):
        st.Objective(two_jobs, pair.val, constraints={"min_accuracy": 0.9})
    with pytest.raises(ConfigError, match="'retained' is for parents with two jobs"):
        st.Objective(supernetwork, data.val, ["retained", "macs"])
    with pytest.raises(ConfigError, match="one val split"):
        st.Objective(two_jobs, pair.a.val)
    with pytest.raises(ConfigError, match="have one job"):
        st.Objective(supernetwork, pair.val)
    with pytest.raises(ConfigError, match="Races are not there for two jobs"):
        st.Objective(two_jobs, pair.val, racing=st.Racing())
    with pytest.raises(ConfigError, match="with both; 'ensemble' is none of these"):
        st.Objective(two_jobs, pair.val, outputs=["ensemble"])
    with pytest.raises(ConfigError, match="'both' is said to `stitch`"):
        st.Objective(supernetwork, data.val, outputs=["both"])
    with pytest.raises(StudyError, match="none of parents with two jobs"):
        two_jobs.subnetwork({"output": "ensemble"})
    with pytest.raises(StudyError, match="none of parents with one job"):
        supernetwork.subnetwork({"output": "both"})
    digits = st.TwoJobEvaluator(two_jobs, st.DataPair(pair.a, pair.a).val)
    whole = two_jobs.subnetwork({"output": "both"})
    with pytest.raises(DataError, match="parent b, test_efficientnet, tells only 2"):
        digits.evaluate([whole])
