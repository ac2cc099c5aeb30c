"""Everything on an accelerator: one that is not there, and with ``-m gpu`` a real one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.evaluation.kernels import kernels_on, memory_on, precision
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.layer import Stitch
from optuna_stitch.utils.device import resolve_device
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call
from tests.helpers.exports import load_code
from tests.helpers.networks import networks, small_pair
from tests.helpers.pretend import DEVICE, accelerator
from tests.helpers.runs import TINY, complete, study_of

PLAIN = [
    Genotype("a"),
    Genotype("ensemble"),
    Genotype("ensemble", frozenset([0])),
    Genotype("b", frozenset([2])),
]
CASCADES = [Genotype("a then both", frozenset([0]), 0.4), Genotype("b then both", threshold=0.2)]


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with accelerator() as device:
        yield device


def _pair(kind: str, *parents: st.Parent) -> st.Supernetwork:
    if kind in ("labels", "segments"):
        return small_pair(segments=kind == "segments")
    return st.stitch(*map(copy.deepcopy, parents), points="blocks")


def _map(stitch: Stitch) -> Tensor:
    """What a stitch multiplies by: its factors, whose signs are free, as one matrix."""
    weight = stitch.weight.flatten(1)
    return weight if stitch.expand is None else stitch.expand @ weight


def _judged(supernetwork: st.Supernetwork, split: st.data.splits.Split) -> list[list[float]]:
    quality = "mean_iou" if supernetwork.segments else "accuracy"
    names = [quality] if supernetwork.segments else [quality, "calibration_error", "agreement"]
    subnetworks = networks(supernetwork, PLAIN if supernetwork.segments else [*PLAIN, *CASCADES])
    return [
        list(evaluation.figures.values())
        for kernels in ("plain", "fast")
        for evaluation in st.Evaluator(
            supernetwork, split, [*names, "macs"], kernels=kernels
        ).evaluate(subnetworks)
    ]


@pytest.mark.parametrize(
    "kind",
    ["labels", "segments", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cnn", "vit"))],
)
def test_from_parents_to_answers_on_a_device(
    kind: str, request: pytest.FixtureRequest, data: st.Data, gpu: torch.device
) -> None:
    named = {"cnn": ("a", "b"), "vit": ("a", "vit")}.get(kind, ())
    parents = [request.getfixturevalue(name) for name in named]
    part = {"images": 30}
    some = st.load_data("noise/5/pixels", train=part, val=part, test=part)
    some = some if kind == "segments" else data
    train, val = some.train.take(40), some.val.take(20)
    here, there = _pair(kind, *parents), _pair(kind, *parents).to("cuda")
    assert (here.device, there.device) == (torch.device("cpu"), DEVICE)
    fits = [network.fit(train, recalibrate=20, batch_size=16) for network in (here, there)]
    for one, other in zip(*fits, strict=True):
        assert (one.switch, one.kernel, one.macs) == (other.switch, other.kernel, other.macs)
        assert one.r2 == pytest.approx(other.r2, abs=1e-6)
    for one, other in zip(here.stitches, there.to("cpu").stitches, strict=True):
        assert (_map(one) - _map(other)).norm() <= 1e-4 * _map(one).norm()
    there.to("cuda")
    for figures, same in zip(_judged(here, val), _judged(there, val), strict=True):
        assert figures == pytest.approx(same, rel=1e-5)
    if kind != "segments":
        (cascade,) = st.Evaluator(there, val).tune_exits(networks(there, CASCADES[:1]))
        images = val.pick(range(8), there.views, DEVICE).images
        with torch.no_grad():
            answers = cascade.extract()(*images)
            (crossed,) = networks(there, PLAIN[3:])
            assert crossed.extract()(*images).device == answers.device == DEVICE
        tuned = [n.tune(train, steps=2, networks=2, batch_size=8) for n in (here, there)]
        for before, after in zip(*tuned, strict=True):
            assert before.after == pytest.approx(after.after, abs=1e-3)


def test_a_parent_is_trained_where_it_is(data: st.Data, tmp_path: Path, gpu: torch.device) -> None:
    weights = []
    for place in ("cpu", "cuda"):
        parent = st.load_parent("test_resnet", num_classes=10, input_size=32).to(place)
        recipe = st.Recipe(epochs=1, batch_size=10)
        assert st.train_parent(parent, data.train.take(20), recipe, cache=tmp_path / place)
        weights.append(parent.to("cpu").module.state_dict()["fc.weight"])
    assert torch.allclose(*weights, atol=1e-5)


def test_a_search_and_its_report_are_the_same(data: st.Data, gpu: torch.device) -> None:
    found = []
    for place in ("cpu", "cuda"):
        supernetwork = _pair("labels").to(place)
        supernetwork.fit(data.train.take(40), recalibrate=10)
        objective = st.Objective(
            supernetwork, data.val.take(20), kernels="fast", racing=st.Racing(first=10)
        )
        sampler = st.LinkageSampler(seed=0)
        study = st.create_study(objective, sampler=sampler, population=6, seed=0)
        st.optimize(study, objective, n_trials=8, batch=4)
        front = st.evaluate_front(study, objective, data.test.take(20))
        found.append(front.table()[["name", "test_accuracy", "test_macs"]].to_csv())
    assert found[0] == found[1]


def test_a_network_is_exported_from_there(
    data: st.Data, tmp_path: Path, gpu: torch.device
) -> None:
    supernetwork = _pair("labels").to("cuda")
    supernetwork.fit(data.train.take(40), recalibrate=10)
    subnetwork = supernetwork.subnetwork(PLAIN[2])
    subnetwork.export(tmp_path / "network", split=data.val.take(10))
    images = data.val.pick(range(10), supernetwork.views).images
    with torch.no_grad():
        there = subnetwork.extract()(*(pixels.to(gpu) for pixels in images))
        assert torch.equal(load_code(tmp_path / "network")(*images), there.cpu())


def test_a_run_says_where_it_computes(
    workplace: Path, built_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built_once, "runs/tiny")
    with accelerator():
        assert call("search", "tiny.yaml", "--device", "cuda", "--trials", "4") == 0
    assert "Computing on cuda:0 (a GPU that is not there)" in capsys.readouterr().err
    assert call("search", "tiny.yaml", "--device", "cpu", "--trials", "2") == 0
    assert len(complete(study_of())) == 6


def test_devices_that_are_not_there(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.accelerator.is_available():
        pytest.skip(
            "this machine has an accelerator; hide it: CUDA_VISIBLE_DEVICES= uv run pytest"
        )
    assert call("run", "tiny.yaml", "--device", "cuda") == 2
    assert "The device 'cuda' is not there" in capsys.readouterr().err
    assert not Path("runs").exists()
    Path("tiny.yaml").write_text(f"device: gpu\n{TINY}")
    assert call("run", "tiny.yaml") == 2
    assert "choose auto, cpu, cuda, cuda:1, mps or xpu" in capsys.readouterr().err
    with accelerator(), pytest.raises(ConfigError, match="has 1 of them, cuda:0 to cuda:0"):
        resolve_device("cuda:1")
    with mock.patch("torch.version.cuda", None), pytest.raises(ConfigError, match="without CUDA"):
        resolve_device("cuda")


def test_precision_is_as_asked_for(gpu: torch.device) -> None:
    matmul = torch.backends.cuda.matmul

    def exact() -> bool:
        named = hasattr(matmul, "fp32_precision")
        return matmul.fp32_precision == "ieee" if named else not matmul.allow_tf32

    before = exact()
    assert kernels_on(gpu, "auto") == "float16"
    assert kernels_on(torch.device("cpu"), "auto") == "fast"
    with precision(gpu, "plain"):
        assert exact()
    with precision(gpu, "fast"):
        assert not exact()
    assert exact() == before
    assert memory_on(gpu, None) == pytest.approx(0.8 * 8)
    assert memory_on(gpu, 2.0) == 2.0
