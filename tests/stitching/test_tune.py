from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import optuna_stitch as st
from optuna_stitch.stitching.tune import Trainer
from optuna_stitch.utils.errors import FitError

SHORT = st.Tuning(steps=6, networks=3, batch_size=16)


def _fitted(a: st.Parent, b: st.Parent, data: st.Data) -> st.Supernetwork:
    supernetwork = st.stitch(a, b, points="blocks")
    supernetwork.fit(data.train, images=60, recalibrate=20)
    return supernetwork


@pytest.fixture(scope="module")
def fitted_once(a: st.Parent, b: st.Parent, data: st.Data) -> st.Supernetwork:
    return _fitted(a, b, data)


@pytest.fixture
def fitted(fitted_once: st.Supernetwork) -> st.Supernetwork:
    return copy.deepcopy(fitted_once)


@pytest.mark.slow
def test_tuning_brings_networks_nearer_to_the_ensemble(
    fitted: st.Supernetwork, data: st.Data
) -> None:
    weights = {k: v.clone() for k, v in fitted.a.module.state_dict().items()}
    found = fitted.tune(data.train, st.Tuning(steps=40, task=0))
    kept = [entry for entry in found if entry.kept]
    assert len(kept) > len(found) / 2
    assert sum(entry.after for entry in kept) < sum(entry.before for entry in kept)
    for key, value in fitted.a.module.state_dict().items():
        assert torch.equal(value, weights[key])
    assert not any(weight.requires_grad for weight in fitted.stitches.parameters())


def test_a_stitch_that_got_worse_is_put_back(fitted: st.Supernetwork, data: st.Data) -> None:
    before = [{k: v.clone() for k, v in stitch.state_dict().items()} for stitch in fitted.stitches]
    found = fitted.tune(data.train, st.Tuning(steps=6, learning_rate=0.3))
    assert not all(entry.kept for entry in found)
    for entry, stitch, own in zip(found, fitted.stitches, before, strict=True):
        same = all(torch.equal(value, own[key]) for key, value in stitch.state_dict().items())
        assert same != entry.kept


@pytest.mark.slow
def test_interrupted_it_goes_on_to_the_same_stitches(
    a: st.Parent, b: st.Parent, data: st.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halted = _fitted(a, b, data), _fitted(a, b, data)
    whole.tune(data.train, SHORT)
    monkeypatch.setattr("optuna_stitch.stitching.tune._CHECKPOINT_EVERY", 2)
    checkpoint = tmp_path / "tuning.pt"

    def stop(trainer: object) -> float:
        if trainer.step == 5:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return learn(trainer)

    learn = Trainer.learn
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", stop)
        with pytest.raises(KeyboardInterrupt):
            halted.tune(data.train, SHORT, checkpoint=checkpoint)
    again = _fitted(a, b, data)
    again.tune(data.train, SHORT, checkpoint=checkpoint)
    assert again.content_hash() == whole.content_hash()
    with pytest.raises(FitError, match="belongs to another tuning"):
        _fitted(a, b, data).tune(data.train, steps=7, checkpoint=checkpoint)
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(FitError, match="cannot be read"):
        _fitted(a, b, data).tune(data.train, SHORT, checkpoint=checkpoint)


def test_a_full_disk_is_named(
    fitted: st.Supernetwork, data: st.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FitError, match=r"tuning\.pt cannot be written after step 6 .* make room"):
        fitted.tune(data.train, SHORT, checkpoint=tmp_path / "tuning.pt")


@pytest.mark.slow
def test_parents_can_be_thawed(vit: st.Parent, data: st.Data) -> None:
    other = st.load_parent("test_resnet", num_classes=10, view=vit.view)
    supernetwork = st.stitch(other, vit)
    supernetwork.fit(data.train, images=40, recalibrate=20)
    before = {k: v.clone() for k, v in other.module.state_dict().items()}
    vit_before = {k: v.clone() for k, v in vit.module.state_dict().items()}
    try:
        supernetwork.tune(
            data.train, st.Tuning(steps=1, networks=2, batch_size=8, thaw=True, bfloat16=True)
        )
        after = other.module.state_dict()
        assert any(not torch.equal(after[key], before[key]) for key in before)
        assert all(after[key].isfinite().all() for key in before)
    finally:
        vit.module.load_state_dict(vit_before)


def test_too_few_images_and_too_large_steps(fitted: st.Supernetwork, data: st.Data) -> None:
    with pytest.raises(FitError, match="5 images are too few"):
        fitted.tune(data.train.take(5))
    with pytest.raises(FitError, match="loss is not finite in step"):
        fitted.tune(data.train, st.Tuning(steps=20, learning_rate=1e30))
