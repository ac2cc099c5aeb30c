"""One found network, trained to its end."""

from __future__ import annotations

import copy
import dataclasses
import errno
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.stitching import finish as finishing
from optuna_stitch.stitching.finished import load_finished, save_finished
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.errors import ArtifactError, FitError

SHORT = st.Finishing(epochs=2, batch_size=10, learning_rate=3e-3, flip=True, shift=0.1, mixup=True)


@pytest.fixture(scope="module")
def fitted(a: st.Parent, b: st.Parent, data: st.Data) -> st.Supernetwork:
    made = st.stitch(a, b, points="blocks")
    made.fit(data.train, images=60, recalibrate=20)
    return made


@pytest.fixture
def supernetwork(fitted: st.Supernetwork) -> st.Supernetwork:
    return copy.deepcopy(fitted)


@pytest.fixture
def few(data: st.Data) -> st.Data:
    return dataclasses.replace(data, train=data.train.take(40), val=data.val.take(20))


def _crossed(supernetwork: st.Supernetwork, output: str = "b", **more: object) -> Subnetwork:
    into_b = next(s for s in supernetwork.switches if s.into == "b")
    return supernetwork.subnetwork({into_b.name: "on", "output": output, **more})


@torch.no_grad()
def _spoil(supernetwork: st.Supernetwork) -> None:
    """Let there be much to gain."""
    for stitch in supernetwork.stitches:
        stitch.weight.mul_(-1)


def _weights(subnetwork: Subnetwork) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subnetwork.heads_module().state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_interrupted_it_goes_on_to_the_same_bits(
    supernetwork: st.Supernetwork, few: st.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _crossed(supernetwork)
    before, content = _weights(found), supernetwork.content_hash()
    whole = st.finish(found, few, SHORT)
    assert whole.genotype == found.genotype
    assert whole.finished is not None
    assert whole.finished.steps == 8
    assert _same(before, _weights(found))  # it stays as it is
    assert content == supernetwork.content_hash()
    checkpoint, learn = tmp_path / "half.pt", finishing._Finisher._learn

    def stop(work: finishing._Finisher) -> float:
        if work._step == 6:
            raise KeyboardInterrupt
        return learn(work)

    with monkeypatch.context() as patch:
        patch.setattr(finishing._Finisher, "_learn", stop)
        with pytest.raises(KeyboardInterrupt):
            st.finish(found, few, SHORT, checkpoint=checkpoint)
    again = st.finish(found, few, SHORT, checkpoint=checkpoint)
    assert _same(_weights(whole), _weights(again))
    with pytest.raises(FitError, match="belongs to other work"):
        st.finish(found, few, batch_size=10, epochs=3, checkpoint=checkpoint)
    path = tmp_path / "finished.safetensors"
    save_finished(whole, path)
    assert _same(_weights(whole), _weights(load_finished(path, found)))
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"finished\.safetensors cannot be loaded"):
        load_finished(path, found)


@pytest.mark.slow
def test_batch_norms_keep_their_statistics_unless_they_shall_be_settled(
    supernetwork: st.Supernetwork, few: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, losses = _crossed(supernetwork), itertools.count(0, -1)
    # the last weights are taken, whatever they are worth
    monkeypatch.setattr(finishing._Finisher, "_validate", lambda *_: float(next(losses)))
    before = {k: v for k, v in _weights(finishing.twin(found)).items() if "running" in k}
    assert before
    for batch_norms, are_kept in (("auto", True), ("settled", False)):
        finished = st.finish(
            found, few, SHORT.model_copy(update={"batch_norms": batch_norms, "polish": 0})
        )
        assert finished.finished is not None
        assert finished.finished.best_step == 8
        after = {k: v for k, v in _weights(finished).items() if k in before}
        assert _same(before, after) == are_kept


def test_what_diverges_goes_back_and_ends_after_three(
    supernetwork: st.Supernetwork,
    few: st.Data,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, real, count = _crossed(supernetwork), finishing._Finisher._loss, [0]

    def poisoned(work: finishing._Finisher, module: torch.nn.Module, *rest: object) -> Tensor:
        loss = real(work, module, *rest)  # type: ignore[arg-type]
        if not loss.requires_grad:
            return loss
        count[0] += 1
        return loss * float("nan") if count[0] in bad else loss

    monkeypatch.setattr(finishing._Finisher, "_loss", poisoned)
    bad: object = {6}
    once = st.finish(found, few, SHORT)
    assert once.finished is not None
    assert (once.finished.halved, once.finished.steps) == (1, 8)
    assert "going on from step 4 with 0.5 of the learning rate" in " ".join(
        capsys.readouterr().err.split()
    )
    bad = range(1000)
    with pytest.raises(FitError, match=r"not finite .* stays as it was"):
        st.finish(found, few, SHORT)


def test_bad_input_is_named(
    supernetwork: st.Supernetwork,
    few: st.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = _crossed(supernetwork)
    with pytest.raises(FitError, match="40 images, fewer than a batch of 64"):
        st.finish(found, few)
    with pytest.raises(FitError, match="Nothing teaches"):
        st.finish(supernetwork.a, few)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(
            FitError, match=r"half\.pt cannot be written after step 4 .* make room"
        ):
            st.finish(found, few, SHORT, checkpoint=tmp_path / "half.pt")
    monkeypatch.setattr(Split, "is_labelled", lambda *_: False)
    alone = st.finish(found, few, epochs=1, batch_size=10)
    assert alone.finished is not None
    assert alone.finished.labels == 0
    assert "has no labels: the parents alone teach" in capsys.readouterr().err


@pytest.mark.slow
def test_stitches_only_leaves_what_lies_before_them(
    supernetwork: st.Supernetwork, few: st.Data
) -> None:
    supernetwork.fit(few.train, images=20, recalibrate=0)
    _spoil(supernetwork)
    found = _crossed(supernetwork)
    settings = st.Finishing(epochs=8, batch_size=10, learning_rate=3e-3, trains="stitches")
    done = st.finish(found, few, settings)
    assert done.finished is not None
    assert done.finished.loss < done.finished.loss_before
    before, after = _weights(found), _weights(done)
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith("a."))
    changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
    assert {k.split(".")[0] for k in changed} == {"b", "stitches"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "more"), [("ensemble", {}), ("a then both", {"threshold": 0.3})]
)
def test_all_heads_learn_at_once(
    supernetwork: st.Supernetwork, data: st.Data, output: str, more: dict[str, float]
) -> None:
    found = _crossed(supernetwork, output, **more)
    done = st.finish(found, data, epochs=4, batch_size=30, learning_rate=3e-3)
    assert done.finished is not None
    assert done.finished.loss < done.finished.loss_before
    before, after = _weights(found), _weights(done)
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert changed == {"a", "b", "stitches"}


@pytest.mark.slow
def test_another_network_is_finished_likewise_and_in_minutes(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    student = st.load_parent("test_vit", num_classes=10, model_args={"img_size": 32})
    done = st.finish(student, data, teacher=supernetwork, epochs=500, minutes=0.05, patience=None)
    assert done.finished is not None
    assert 9 <= done.finished.steps == done.finished.planned < 500 * (len(data.train) // 64)
    assert done.extract()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_two_jobs_are_each_taught_by_their_parent(
    supernetwork: st.Supernetwork, data: st.Data
) -> None:
    both = st.stitch(supernetwork.a, supernetwork.b, points="blocks", outputs=["both"])
    pair = st.DataPair(data, data)
    both.fit(pair.train, images=20, recalibrate=0)
    _spoil(both)
    found = _crossed(both, "both")
    with pytest.raises(FitError, match="not learned from in two jobs"):
        st.finish(found, pair, labels=0.5)
    done = st.finish(found, pair, epochs=4, batch_size=30, learning_rate=3e-3)
    assert done.finished is not None
    assert done.finished.labels == 0
    assert done.finished.loss < done.finished.loss_before
