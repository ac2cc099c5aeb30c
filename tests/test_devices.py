"""Everything on an accelerator: one that is not there, and with ``-m gpu`` a real one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import fx, nn

import optuna_stitch as st
from optuna_stitch.evaluation.kernels import kernels_on, memory_on, precision
from optuna_stitch.evaluation.latency import measure_latency
from optuna_stitch.evaluation.settings import LatencySettings
from optuna_stitch.models.layouts import Layout
from optuna_stitch.stitching.genotype import Genotype, single_stitch_genotypes
from optuna_stitch.stitching.moments import Moments, Pair, Reading
from optuna_stitch.utils.device import resolve_device, sums_in_float64
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call
from tests.helpers.exports import load_code
from tests.helpers.networks import map_of, networks, small_pair
from tests.helpers.pretend import DEVICE, accelerator, waits
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
        assert (map_of(one) - map_of(other)).norm() <= 1e-4 * map_of(one).norm()
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


@pytest.mark.slow
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
        assert call("search", "tiny.yaml", "--device", "cuda", "--trials", "2") == 0
    assert "Computing on cuda:0 (a GPU that is not there)" in capsys.readouterr().err
    assert call("search", "tiny.yaml", "--device", "cpu", "--trials", "2") == 0
    assert len(complete(study_of())) == 4


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


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_sums_without_float64_give_the_same_stitches(
    place: str, data: st.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, few = data.train.take(40), {"positions": 8, "recalibrate": 0}
    exact, found = small_pair(), small_pair()
    fits = exact.fit(train, **few)
    monkeypatch.setattr("optuna_stitch.stitching.moments.sums_in_float64", lambda _: False)
    # what computes in float64 slowly, or not at all, must not be asked to
    with accelerator(capability=(8, 9)) if place == "cuda" else nullcontext():
        same = found.to(place).fit(train, **few)
        found.to("cpu")
    for one, other in zip(fits, same, strict=True):
        assert (one.kernel, one.rank, one.ridge) == (other.kernel, other.rank, other.ridge)
        assert one.r2 == pytest.approx(other.r2, abs=1e-6)
    # in directions in which a feature never varies, what a stitch does is left to rounding
    answers = [
        st.Evaluator(network, data.val.take(20), kernels="plain").logits(
            networks(network, single_stitch_genotypes(network.switches))
        )
        for network in (exact, found)
    ]
    for one, other in zip(*answers, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


def test_sums_in_pairs_of_float32_are_nearly_those_of_float64() -> None:
    layout = Layout("NCHW", 24, (4, 4))
    source = Reading("a", "x", layout, "grid", (4, 4), kernel=3)
    pair = Pair(source, Reading("b", "y", layout, "grid", (4, 4)))
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-4, 4, 24)[None, :, None, None]
    features = [
        10 * scales + scales * torch.randn(100, 24, 4, 4, generator=generator) for _ in "ab"
    ]
    sums = []
    for float64 in (True, False):
        moments = Moments([pair], 16, 0, float64=float64)
        for start in range(0, 100, 30):
            some = [feature[start : start + 30] for feature in features]
            held_out = torch.arange(len(some[0])) % 5 == 4
            moments.add(dict(zip([("a", "x"), ("b", "y")], some, strict=True)), held_out)
        moments.finish()
        sums.append([total for total in moments.tensors if total is not moments.count])
    for one, other in zip(*sums, strict=True):
        assert other.dtype == torch.float64
        assert ((one - other).abs() <= 1e-11 * one.abs().clamp_min(1e-30)).all()


def test_which_devices_sum_in_float64() -> None:
    assert sums_in_float64(torch.device("cpu"))
    assert not sums_in_float64(torch.device("mps"))
    for capability, fast in (((9, 0), True), ((8, 0), True), ((8, 6), False), ((12, 0), False)):
        with accelerator(capability=capability) as device:
            assert sums_in_float64(device) == fast


@pytest.mark.slow
def test_a_device_is_waited_for_once_a_batch(data: st.Data, gpu: torch.device) -> None:
    """Beyond what a plan, a fit or a step needs, however many networks or stitches there are."""
    supernetwork = small_pair().to("cuda")

    def counted(work: Callable[[int], object]) -> list[int]:
        found = []
        for batches in (2, 6):
            with waits() as names:
                work(batches)
            found.append(len(names))
        return found

    # whether context is tried for every kernel, held-out images say: another number of solutions
    few, many = counted(
        lambda batches: supernetwork.fit(
            data.train.take(10 * batches), batch_size=10, recalibrate=0, context=False
        )
    )
    assert many - few == 4
    subnetworks = networks(supernetwork, [*PLAIN, *CASCADES])
    metrics = ["accuracy", "top5", "cross_entropy", "agreement"]

    def evaluate(batches: int) -> None:
        split = data.val.take(10 * batches)
        st.Evaluator(supernetwork, split, metrics, batch_size=10, kernels="fast").evaluate(
            subnetworks
        )

    few, many = counted(evaluate)
    assert many - few == 2 * 4  # once for the networks, once for what `agreement` compares with
    few, many = counted(
        lambda steps: supernetwork.tune(data.train.take(40), steps=steps, networks=2, batch_size=8)
    )
    assert many - few == 4


@pytest.mark.parametrize("gigabytes", [8.0, 1e-5])
def test_pixels_reach_a_device_whether_they_stay_there_or_not(
    gigabytes: float, data: st.Data
) -> None:
    view = st.View((3, 16, 16))
    here = list(data.val.take(30).batches([view], 8))
    with accelerator(gigabytes) as device:
        split = data.val.take(30)
        order = [5, 2, 29, 11]
        some = split.pick(order, [view], device)
        assert torch.equal(some.targets.cpu(), split.targets[order])
        for batch, same in zip(split.batches([view], 8, device=device), here, strict=True):
            assert batch.images[0].device == batch.targets.device == device
            assert torch.equal(batch.images[0].cpu(), same.images[0])
            assert torch.equal(batch.targets.cpu(), same.targets)


def test_a_device_that_is_full(
    workplace: Path, built_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built_once, "runs/tiny")
    supernetwork = small_pair()

    whole = nn.Module.to

    def full(self: nn.Module, device: torch.device) -> nn.Module:
        if device.type == "cuda" and not isinstance(self, fx.GraphModule):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, device)

    with accelerator(gigabytes=0.25), mock.patch("torch.nn.Module.to", full):
        with pytest.raises(ConfigError, match=r"no room .*\(0\.25 GiB are free\)"):
            supernetwork.to("cuda")
        for module in (supernetwork.a.module, supernetwork.b.module, supernetwork.stitches):
            assert {weight.device.type for weight in module.parameters()} == {"cpu"}
        assert call("search", "tiny.yaml", "--device", "cuda") == 2
    assert "End what else runs there" in capsys.readouterr().err


def test_batches_are_as_large_as_a_device_allows(data: st.Data) -> None:
    supernetwork = small_pair()
    assert st.Evaluator(supernetwork, data.val).batch_size == 50
    sizes = []
    for gigabytes in (8.0, 0.02):
        with accelerator(gigabytes):
            evaluator = st.Evaluator(supernetwork.to("cuda"), data.val)
            sizes.append(evaluator.batch_size)
            supernetwork.to("cpu")
    assert sizes[0] == 256
    assert 1 <= sizes[1] < 256


def test_operations_are_timed_by_a_devices_own_clock(data: st.Data, gpu: torch.device) -> None:
    supernetwork = small_pair().to("cuda")
    with waits() as names:
        latencies = measure_latency(
            supernetwork.supergraph, LatencySettings(batch_size=4), rounds=3
        )
    assert names.count("synchronize") == 2 * 2 * 3  # before and after each round, for both sizes
    assert latencies.device == "cuda:0 (a GPU that is not there)"
    assert min(latencies.milliseconds.values()) > 0
    objective = st.Objective(
        supernetwork, data.val.take(20), ["accuracy", "latency_ms"], latency=latencies
    )
    study = st.create_study(objective, population=3)
    st.optimize(study, objective, n_trials=3, batch=3)
    for trial in complete(study):
        network = supernetwork.subnetwork(trial.params)
        assert trial.values[1] == pytest.approx(latencies(network))
