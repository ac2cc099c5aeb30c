"""Where memory runs out, fits and tuning go on with less at once, to the same stitches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.stitching.moments import Moments
from optuna_stitch.stitching.program import Program
from optuna_stitch.stitching.supergraph import Supergraph
from optuna_stitch.utils.errors import ConfigError, FitError
from tests.helpers.networks import small_pair

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _scarce(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, over: Callable[..., bool]
) -> list[bool]:
    """Let a method fail after its work, where it is over what memory allows; tells each call."""
    whole, calls = getattr(owner, name), []

    def call(self: Any, *args: Any, **options: Any) -> Any:
        found = whole(self, *args, **options)
        calls.append(over(self, *args))
        if calls[-1]:
            raise FULL
        return found

    monkeypatch.setattr(owner, name, call)
    return calls


def _weights(supernetwork: st.Supernetwork) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in supernetwork.stitches.state_dict().items()}


def test_a_fit_halves_its_batches(
    data: st.Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = data.train.take(40)
    expected = small_pair()
    expected.fit(train, batch_size=10)
    found = small_pair()
    # sums of the first batch are there already when it fails
    calls = _scarce(monkeypatch, Moments, "add", lambda _, __, held_out: len(held_out) > 10)
    found.fit(train, batch_size=40)
    assert calls == [True, True, False, False, False, False]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Memory ran out: going on with") == 2
    assert "going on with 10 images at once" in said
    for key, value in _weights(expected).items():
        assert torch.equal(found.stitches.state_dict()[key], value), key


def test_a_fit_takes_fewer_stitches_a_pass(
    data: st.Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = data.train.take(40)
    expected, found = small_pair(), small_pair()
    fits = expected.fit(train)
    few = len(fits) // 3
    _scarce(monkeypatch, Moments, "__init__", lambda _, pairs, *__: len(list(pairs)) > few)
    assert found.fit(train) == fits
    assert f"going on with {len(fits) // 2} stitches" in " ".join(capsys.readouterr().err.split())
    for key, value in _weights(expected).items():
        assert torch.equal(found.stitches.state_dict()[key], value), key


def test_a_stitch_for_which_there_is_no_memory(
    data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernetwork = small_pair()
    _scarce(monkeypatch, Moments, "add", lambda *_: True)
    with pytest.raises(FitError, match=r"to fit the stitch '.*'"):
        supernetwork.fit(data.train.take(20))


@pytest.mark.parametrize("least", ["a network", "an image"])
def test_tuning_halves_what_runs_at_once(
    least: str, data: st.Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # without statistics of the batch, parts of it are the whole
    tuned: list[dict[str, Tensor]] = []
    limit = (1, 8) if least == "a network" else (1, 3)
    calls: list[bool] = []
    for scarce in (False, True):
        supernetwork = small_pair()
        supernetwork.fit(data.train.take(40), recalibrate=0)
        if scarce:
            calls = _scarce(
                monkeypatch,
                Program,
                "run",
                lambda self, images: (
                    torch.is_grad_enabled()
                    and (len(self.outputs) > limit[0] or len(images[0]) > limit[1])
                ),
            )
        supernetwork.tune(data.train.take(40), steps=3, networks=4, batch_size=8)
        tuned.append(_weights(supernetwork))
    assert any(calls)
    said = " ".join(capsys.readouterr().err.split())
    assert "going on with 1 networks at once" in said
    assert ("going on with 2 images at once" in said) == (least == "an image")
    for key, value in tuned[0].items():
        assert torch.allclose(tuned[1][key], value, atol=1e-4), key


def test_tuning_for_which_there_is_no_memory(
    data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernetwork = small_pair()
    supernetwork.fit(data.train.take(40), recalibrate=10)
    with monkeypatch.context() as patch:
        _scarce(patch, Supergraph, "recalibrate", lambda *_: True)
        with pytest.raises(FitError, match="Memory does not suffice to tune"):
            supernetwork.tune(data.train.take(40), steps=1)
    _scarce(monkeypatch, Program, "observe", lambda *_: torch.is_grad_enabled())
    with pytest.raises(FitError, match="one network on one image"):
        supernetwork.tune(data.train.take(40), steps=1, batch_size=4)


def test_training_for_which_there_is_no_memory(
    data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = st.load_parent("test_resnet", num_classes=10, input_size=32)
    monkeypatch.setattr("torch.optim.AdamW.step", _raise)
    with pytest.raises(ConfigError, match=r"test_resnet in batches of 5 .*smaller `batch_size`"):
        st.train_parent(parent, data.train.take(10), st.Recipe(epochs=1, batch_size=5, seed=77))


def _raise(*_: object, **__: object) -> None:
    raise FULL
