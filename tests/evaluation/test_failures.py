"""What goes wrong in an evaluation ends in a word about it, and what is finished is kept."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.evaluation.engine import Engine
from optuna_stitch.search.objective import FAILED_AT
from optuna_stitch.search.worker import optimize
from optuna_stitch.stitching.genotype import Genotype, single_stitch_genotypes
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.errors import DataError, StudyError
from tests.helpers.networks import networks


@pytest.fixture
def broken(supernetwork: st.Supernetwork, monkeypatch: pytest.MonkeyPatch) -> int:
    """A stitch that answers with NaN."""
    last = len(supernetwork.switches) - 1
    operations = list(supernetwork.supergraph.operations)
    place = next(i for i, operation in enumerate(operations) if operation.name == f"stitch.{last}")
    whole = operations[place].run
    operations[place] = replace(operations[place], run=lambda x: whole(x) * math.nan)
    monkeypatch.setattr(supernetwork.supergraph, "operations", operations)
    return last


def test_a_network_that_answers_nan_fails_and_the_others_go_on(
    supernetwork: st.Supernetwork, data: st.Data, broken: int, tmp_path: Path
) -> None:
    supernetwork = _without_calibration(supernetwork)
    genotypes = single_stitch_genotypes(supernetwork.switches)[-4:]
    url = f"sqlite:///{tmp_path}/records.db"
    for _ in ("judged", "remembered"):
        evaluator = st.Evaluator(supernetwork, data.val, result_cache=url)
        *others, failed = evaluator.evaluate(networks(supernetwork, genotypes))
        assert failed.failed == f"stitch.{broken}"
        assert math.isnan(failed["accuracy"])
        assert failed["macs"] > 0
        assert all(not other.failed and other.images == len(data.val) for other in others)


def test_a_failed_network_is_a_failed_trial(
    supernetwork: st.Supernetwork, data: st.Data, broken: int
) -> None:
    supernetwork = _without_calibration(supernetwork)
    objective = st.Objective(supernetwork, data.val.take(20))
    genotype = single_stitch_genotypes(supernetwork.switches)[broken]
    for run in (
        lambda study: study.optimize(objective, n_trials=2),
        lambda study: optimize(study, objective, n_trials=1, batch=2),
    ):
        study = optuna.create_study(directions=objective.directions)
        study.enqueue_trial(supernetwork.subnetwork(genotype).params)
        study.enqueue_trial(supernetwork.subnetwork({"output": "a"}).params)
        run(study)
        failed = study.get_trials(states=(TrialState.FAIL,))
        assert [trial.user_attrs[FAILED_AT] for trial in failed] == [f"stitch.{broken}"]
        assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 1


def test_a_search_in_which_everything_fails_ends(
    supernetwork: st.Supernetwork, data: st.Data, broken: int
) -> None:
    supernetwork = _without_calibration(supernetwork)
    objective = st.Objective(supernetwork, data.val.take(20))
    genotype = single_stitch_genotypes(supernetwork.switches)[broken]
    fixed = optuna.samplers.PartialFixedSampler(
        supernetwork.subnetwork(genotype).params, optuna.samplers.RandomSampler(seed=0)
    )
    study = optuna.create_study(directions=objective.directions, sampler=fixed)
    with pytest.raises(StudyError, match="all failed"):
        optimize(study, objective, n_trials=50, batch=3)
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}


def _without_calibration(supernetwork: st.Supernetwork) -> st.Supernetwork:
    """BatchNorm statistics of NaN would be named first, as the stitch is not at fault there."""
    plain = copy.copy(supernetwork)
    plain.supergraph = copy.copy(supernetwork.supergraph)
    plain.calibration = None
    return plain


def test_memory_that_runs_out_halves_the_batch(
    supernetwork: st.Supernetwork,
    data: st.Data,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = st.Evaluator(supernetwork, data.val).evaluate(
        networks(supernetwork, [Genotype("b")])
    )
    whole = Program.run
    sizes: list[int] = []

    def scarce(self: Program, images: Any, given: Any) -> Any:
        sizes.append(len(images[0]))
        if len(images[0]) > 15:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, images, given)

    monkeypatch.setattr(Program, "run", scarce)
    found = st.Evaluator(supernetwork, data.val).evaluate(networks(supernetwork, [Genotype("b")]))
    assert found[0]["accuracy"] == expected[0]["accuracy"]
    assert sizes[:3] == [50, 25, 12]
    assert max(sizes[2:]) <= 12
    assert "going on with 12 images at once" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["a batch", "the calibration"])
def test_memory_that_runs_out_halves_the_plan(
    place: str,
    supernetwork: st.Supernetwork,
    data: st.Data,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    genotypes = single_stitch_genotypes(supernetwork.switches)[::4]
    asked = networks(supernetwork, [*genotypes, Genotype("a then both", threshold=0.3)])
    owner, name = (Program, "run") if place == "a batch" else (Supergraph, "recalibrate")
    whole = getattr(owner, name)
    largest, failed = [0], [0]
    limit = math.inf

    def scarce(self: Any, *args: Any) -> Any:
        elements = (self if place == "a batch" else args[0]).elements
        largest.append(elements)
        if elements > limit:
            failed[0] += 1
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, *args)

    monkeypatch.setattr(owner, name, scarce)
    split = data.val.take(60)
    expected = st.Evaluator(supernetwork, split).evaluate(asked)
    limit = 0.8 * max(largest)
    evaluator = st.Evaluator(supernetwork, split)
    assert evaluator.evaluate(asked) == expected
    assert failed[0] > 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Memory ran out: going on with plans of") == 1
    assert evaluator._engine.memory < 1  # later plans are small from the start


@pytest.mark.slow
def test_memory_that_runs_out_halves_what_a_report_runs(
    supernetwork: st.Supernetwork, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = networks(supernetwork, single_stitch_genotypes(supernetwork.switches)[::6])
    split = data.val.take(60)
    expected = list(st.Evaluator(supernetwork, split, kernels="plain").answers(asked))

    def scarce(limit: int, whole: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            program = self if isinstance(self, Program) else args[0]
            if len(program.outputs) > limit:
                raise torch.OutOfMemoryError("out of memory")
            return whole(self, *args)

        return call

    monkeypatch.setattr(Supergraph, "recalibrate", scarce(4, Supergraph.recalibrate))
    monkeypatch.setattr(Program, "run", scarce(2, Program.run))
    evaluator = st.Evaluator(supernetwork, split, kernels="plain")
    for (labels, answers), (same, others) in zip(evaluator.answers(asked), expected, strict=True):
        assert torch.equal(labels, same)
        for logits, other in zip(answers, others, strict=True):
            # one image at a time is computed by other kernels than many
            assert torch.allclose(logits, other, rtol=1e-3, atol=1e-3)


def test_values_that_are_kept_give_way(
    supernetwork: st.Supernetwork, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = st.Evaluator(supernetwork, data.val)
    evaluator.evaluate(networks(supernetwork, [Genotype("a"), Genotype("b")]))
    assert evaluator.activation_cache.kept
    whole = Supergraph.recalibrate

    def scarce(self: Any, *args: Any) -> Any:
        if evaluator.activation_cache.kept:
            raise MemoryError
        return whole(self, *args)

    monkeypatch.setattr(Supergraph, "recalibrate", scarce)
    asked = networks(supernetwork, single_stitch_genotypes(supernetwork.switches)[:1])
    assert evaluator.evaluate(asked)[0].images == len(data.val)


def test_values_give_way_that_cannot_be_put_together(
    supernetwork: st.Supernetwork, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What halves of a batch gave takes its room once more."""
    whole, joined = Program.run, torch.cat
    evaluator = st.Evaluator(supernetwork, data.val)
    expected = st.Evaluator(supernetwork, data.val).evaluate(
        networks(supernetwork, [Genotype("b")])
    )

    def scarce(self: Program, images: Any, given: Any) -> Any:
        if len(images[0]) > 25:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, images, given)

    def together(parts: Any, *args: Any) -> Tensor:
        if parts[0].dim() == 4:
            raise torch.OutOfMemoryError("out of memory")
        return joined(parts, *args)

    monkeypatch.setattr(Program, "run", scarce)
    monkeypatch.setattr("optuna_stitch.evaluation.engine.torch.cat", together)
    found = evaluator.evaluate(networks(supernetwork, [Genotype("b")]))
    assert found[0]["accuracy"] == expected[0]["accuracy"]
    assert not evaluator.activation_cache.kept


def test_no_memory_for_a_single_image(
    supernetwork: st.Supernetwork, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(Program, "run", scarce)
    with pytest.raises(DataError, match="smaller `memory`"):
        st.Evaluator(supernetwork, data.val).evaluate(networks(supernetwork, [Genotype("b")]))


def test_no_memory_for_the_calibration(
    supernetwork: st.Supernetwork, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Supergraph, "recalibrate", scarce)
    with pytest.raises(DataError, match="batch of the calibration"):
        st.Evaluator(supernetwork, data.val).evaluate(
            networks(supernetwork, single_stitch_genotypes(supernetwork.switches))
        )


def test_other_errors_are_not_taken_for_lack_of_memory(
    supernetwork: st.Supernetwork, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Program, "run", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        st.Evaluator(supernetwork, data.val).evaluate(networks(supernetwork, [Genotype("b")]))


def test_an_interruption_loses_nothing_that_is_finished(
    supernetwork: st.Supernetwork,
    data: st.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genotypes = single_stitch_genotypes(supernetwork.switches)
    url, split = f"sqlite:///{tmp_path}/records.db", data.val.take(30)
    # so little memory that each runs by itself
    evaluator = st.Evaluator(supernetwork, split, memory=1e-9, result_cache=url)
    whole = Engine.prepare
    prepared: list[int] = []

    def interrupted(self: Engine, program: Any, reuse: Any) -> Any:
        if len(prepared) == 3:
            raise KeyboardInterrupt
        return counted(self, program, reuse)

    def counted(self: Engine, program: Any, reuse: Any) -> Any:
        prepared.append(len(program.outputs) - len(reuse.steps))
        return whole(self, program, reuse)

    monkeypatch.setattr(Engine, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(networks(supernetwork, genotypes))
    assert prepared == [1, 1, 1]
    monkeypatch.setattr(Engine, "prepare", counted)
    again = st.Evaluator(supernetwork, split, memory=1e-9, result_cache=url)
    again.evaluate(networks(supernetwork, genotypes))
    distinct = len(set(networks(supernetwork, genotypes)))
    assert len(prepared) == distinct
