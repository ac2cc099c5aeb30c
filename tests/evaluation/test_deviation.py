"""How far 16-bit kernels are from float32 is measured, said and kept; what is far is not taken."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.evaluation import engine
from optuna_stitch.evaluation.deviation import Deviation
from optuna_stitch.search.objective import DEVIATION
from optuna_stitch.stitching.genotype import Genotype
from tests.helpers.commands import call
from tests.helpers.networks import networks
from tests.helpers.runs import study_of


def _overflowing(supernetwork: st.Supernetwork) -> st.Supernetwork:
    """The same network, whose first features are beyond float16's range and then small again."""
    made = st.stitch(
        *(copy.deepcopy(p) for p in (supernetwork.a, supernetwork.b)), points="blocks"
    )
    norm, after = made.a.module.conv1[1], made.a.module.conv1[3]
    with torch.no_grad():
        norm.weight.mul_(1e6)
        norm.bias.mul_(1e6)
        after.weight.mul_(1e-6)
    return made


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes as accelerators do where they are not told how."""
    monkeypatch.setattr(
        engine, "kernels_on", lambda _, asked: "float16" if asked == "auto" else asked
    )


@pytest.mark.parametrize("kernels", ["float16", "bfloat16"])
def test_it_is_what_the_answers_say(
    kernels: str,
    supernetwork: st.Supernetwork,
    data: st.Data,
    capsys: pytest.CaptureFixture[str],
) -> None:
    supernetwork = supernetwork.keep([0, 5])
    split = data.val.take(40)
    evaluator = st.Evaluator(supernetwork, split, kernels=kernels)
    for _ in range(2):
        evaluator.evaluate(networks(supernetwork, [Genotype("b")]))
        found = st.Evaluator(supernetwork, split, kernels=kernels).settle()
    assert found is not None
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("differ from float32's by at most") == 1
    genotypes = [Genotype(output) for output in ("a", "b", "ensemble")]
    genotypes += [Genotype(s.into, frozenset([i])) for i, s in enumerate(supernetwork.switches)]
    subnetworks = networks(supernetwork, genotypes)
    exact = st.Evaluator(supernetwork, split, kernels="plain").logits(subnetworks)
    differ = [
        float((one - two).abs().max())
        for one, two in zip(exact, evaluator.logits(subnetworks), strict=True)
    ]
    assert found.logits == pytest.approx(max(differ), rel=1e-3)
    assert (found.kernels, found.images, found.networks) == (kernels, 40, len(subnetworks))
    assert 0 < found.logits < 1
    assert found.is_near


def test_float32_needs_no_word(supernetwork: st.Supernetwork, data: st.Data) -> None:
    for kernels in ("auto", "plain", "fast"):
        assert st.Evaluator(supernetwork, data.val, kernels=kernels).settle() is None


@pytest.mark.usefixtures("sixteen")
def test_what_overflows_is_not_taken(
    supernetwork: st.Supernetwork, data: st.Data, capsys: pytest.CaptureFixture[str]
) -> None:
    large = _overflowing(supernetwork)
    split = data.val.take(40)
    objective = st.Objective(large, split)
    study = st.create_study(objective, population=3)
    st.optimize(study, objective, n_trials=3, batch=3)
    assert objective.evaluator.kernels == "bfloat16"
    assert "instead of float16, which overflows" in " ".join(capsys.readouterr().err.split())
    assert study.user_attrs[DEVIATION]["kernels"] == "bfloat16"
    # others of the study do not measure again
    joined = st.Objective(st.stitch(large.a, large.b, points="blocks"), split)
    joined.settle(study)
    assert joined.evaluator.kernels == "bfloat16"
    assert not capsys.readouterr().err
    # what was asked for is taken, with a word
    asked = st.Evaluator(large, split, kernels="float16")
    found = asked.settle()
    assert asked.kernels == "float16"
    assert found is not None
    assert not found.is_near
    assert "cannot be relied on" in capsys.readouterr().err


@pytest.mark.usefixtures("sixteen")
def test_far_figures_are_not_taken(
    supernetwork: st.Supernetwork, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far(_: object, __: object, kernels: str, **options: object) -> Deviation:
        return Deviation("auto", kernels, 200, 5, 1.0, 0.02 if kernels != "fast" else 0.0)

    monkeypatch.setattr("optuna_stitch.evaluation.deviation.measure_deviation", far)
    found = st.Evaluator(supernetwork.keep([0]), data.val).settle()
    assert found is not None
    assert found.kernels == "fast"
    assert found.instead_of == (
        "float16, which moves accuracy by 2.00% and bfloat16, which moves accuracy by 2.00%"
    )


@pytest.mark.slow
def test_a_report_says_it(finished: Path) -> None:
    deviation = Deviation("auto", "float16", 200, 7, 0.0123, 0.005)
    study_of(finished).set_user_attr(DEVIATION, vars(deviation))
    assert call("report", str(finished)) == 0
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert "logits of 7 networks differ from float32's by at most 0.012" in text
    assert "this report: float32" in text
