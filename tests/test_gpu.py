"""A real accelerator: ``uv run pytest -m gpu -n 0``, on a machine that has one.

``OPTUNA_STITCH_TEST_DEVICE=cpu`` runs them on the processor, and ``pretend`` on an accelerator
that is not there, as far as these go.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.latency import Clock, measure_latency
from optuna_stitch.evaluation.settings import LatencySettings
from optuna_stitch.stitching.genotype import Genotype, single_stitch_genotypes
from optuna_stitch.stitching.program import Program
from optuna_stitch.utils.device import float32_products, resolve_device, sums_in_float64
from tests.helpers.commands import call
from tests.helpers.networks import map_of, networks, small_pair
from tests.helpers.pretend import accelerator, waits
from tests.helpers.runs import complete, study_of

pytestmark = pytest.mark.gpu

WANTED = os.environ.get("OPTUNA_STITCH_TEST_DEVICE", "auto")
CROSSED = [Genotype("a"), Genotype("ensemble"), Genotype("b", frozenset([2]))]


@contextmanager
def _device() -> Iterator[torch.device]:
    if WANTED == "pretend":
        with accelerator() as pretended:
            yield pretended
    else:
        yield resolve_device(WANTED)


@pytest.fixture
def device() -> Iterator[torch.device]:
    if WANTED == "auto" and not torch.accelerator.is_available():
        pytest.skip(
            f"needs an accelerator, and torch {torch.__version__} finds none: install a build for "
            "it, and run this on a machine that has one"
        )
    with _device() as found:
        yield found


def _pair(kind: str, parents: list[st.Parent]) -> st.Supernetwork:
    if kind in ("small", "segments"):
        return small_pair(segments=kind == "segments")
    return st.stitch(*map(copy.deepcopy, parents), points="blocks")


def _figures(supernetwork: st.Supernetwork, split: st.Split, **options: Any) -> list[Any]:
    metrics = ["mean_iou" if supernetwork.segments else "accuracy", "macs"]
    evaluator = st.Evaluator(supernetwork, split, metrics, **options)
    return evaluator.evaluate(networks(supernetwork, CROSSED))


@pytest.mark.parametrize("kind", ["small", "segments", "cnn", "vit"])
def test_fits_and_answers_are_the_processors(
    kind: str, request: pytest.FixtureRequest, data: st.Data, device: torch.device
) -> None:
    names = {"cnn": ("a", "b"), "vit": ("a", "vit")}.get(kind, ())
    parents = [request.getfixturevalue(name) for name in names]
    part = {"images": 40}
    some = st.load_data("noise/5/pixels", train=part, val={"images": 20})
    some = some if kind == "segments" else data
    train, val = some.train.take(40), some.val.take(20)
    here, there = _pair(kind, parents), _pair(kind, parents).to(device)
    for network in (here, there):
        network.fit(train, recalibrate=20)
    genotypes = [*CROSSED, *single_stitch_genotypes(here.switches)[:4]]
    with float32_products(device, exact=True):
        evaluators = [st.Evaluator(n, val, (), kernels="plain") for n in (here, there)]
        answers = [e.logits(networks(e.supernetwork, genotypes)) for e in evaluators]
    for one, other in zip(*answers, strict=True):
        assert (one - other).norm() <= 1e-3 * one.norm()


def test_plain_kernels_are_the_extracted_module(data: st.Data, device: torch.device) -> None:
    supernetwork = small_pair().to(device)
    supernetwork.fit(data.train.take(40), recalibrate=20)
    subnetworks = networks(supernetwork, CROSSED)
    val = data.val.take(20)
    kept = st.Evaluator(supernetwork, val, kernels="plain", batch_size=10).logits(subnetworks)
    with torch.no_grad(), float32_products(device, exact=True):
        for subnetwork, logits in zip(subnetworks, kept, strict=True):
            module = subnetwork.extract()
            batches = val.batches(supernetwork.views, 10, device=device)
            answers = torch.cat([module(*batch.images) for batch in batches])
            assert torch.equal(answers.cpu(), logits)


def test_sixteen_bits_are_near(
    a: st.Parent, b: st.Parent, data: st.Data, device: torch.device
) -> None:
    supernetwork = st.stitch(copy.deepcopy(a), copy.deepcopy(b), points="blocks").to(device)
    supernetwork.fit(data.train.take(60), recalibrate=20)
    for kernels in ("float16", "bfloat16"):
        deviation = st.Evaluator(supernetwork, data.val, kernels=kernels).settle()
        assert deviation is not None
        # bfloat16 has an eighth of float16's precision, and may be told to be too far
        assert deviation.is_near or kernels == "bfloat16"
        assert 0 < deviation.logits < 1


@contextmanager
def _little_memory(device: torch.device, mebibytes: int) -> Iterator[None]:
    """Let no more than so much be taken beyond what is; of a real GPU by its allocator's limit."""
    if WANTED == "auto" and device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = torch.cuda.memory_reserved(device) + mebibytes * 2**20
        torch.cuda.set_per_process_memory_fraction(allowed / total, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    whole, observe = Program.run, Program.observe

    def scarce(self: Program, images: Any, *args: Any) -> Any:
        if 4 * self.elements * len(images[0]) > mebibytes * 2**20:
            raise torch.OutOfMemoryError("out of memory")
        return (observe if args and callable(args[0]) else whole)(self, images, *args)

    with mock.patch.object(Program, "run", scarce), mock.patch.object(Program, "observe", scarce):
        yield


def test_memory_that_runs_out_halves_plans_and_fits(
    data: st.Data, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = data.train.take(40), data.val.take(100)
    supernetwork = small_pair(side=64).to(device)
    fits = supernetwork.fit(train, recalibrate=10)
    genotypes = single_stitch_genotypes(supernetwork.switches)

    def judge() -> list[Any]:
        options = {"kernels": "fast", "batch_size": 100}
        evaluator = st.Evaluator(supernetwork, val, ["accuracy"], **options)
        return [e.figures for e in evaluator.evaluate(networks(supernetwork, genotypes))]

    judge()  # libraries take their workspace
    expected = judge()
    with _little_memory(device, 30):
        found = judge()
    assert "Memory ran out" in capsys.readouterr().err
    for one, other in zip(expected, found, strict=True):
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.011)  # an image of 100
    with _little_memory(device, 6):
        same = supernetwork.fit(train, recalibrate=10)
    assert "images at once" in " ".join(capsys.readouterr().err.split())
    assert [fit.rank for fit in fits] == [fit.rank for fit in same]
    assert [fit.r2 for fit in fits] == pytest.approx([fit.r2 for fit in same], abs=1e-4)


def test_a_device_is_waited_for_once_a_batch(data: st.Data, device: torch.device) -> None:
    supernetwork = small_pair().to(device)
    supernetwork.fit(data.train.take(40), recalibrate=10)
    subnetworks = networks(supernetwork, [*CROSSED, Genotype("a then both", threshold=0.3)])

    def count(batches: int) -> int:
        split = data.val.take(20 * batches)
        options = {"kernels": "fast", "batch_size": 20}
        evaluator = st.Evaluator(supernetwork, split, ["accuracy", "top5"], **options)
        if WANTED == "pretend":
            with waits() as names:
                evaluator.evaluate(subnetworks)
            return len(names)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                evaluator.evaluate(subnetworks)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in said)

    if device.type != "cuda":
        pytest.skip("only CUDA counts what waits for it; run this on an NVIDIA GPU")
    count(2)
    few, many = count(2), count(6)
    assert many - few == 4


def test_sums_in_pairs_of_float32(data: st.Data, device: torch.device) -> None:
    """As consumers' GPUs need them, which have float64 but compute in it slowly."""
    train, val = data.train.take(40), data.val.take(20)
    answers: list[list[Tensor]] = []
    for fast in (True, False):
        supernetwork = small_pair().to(device)
        name = "optuna_stitch.stitching.moments.sums_in_float64"
        with mock.patch(name, lambda at, fast=fast: fast and sums_in_float64(at)):
            supernetwork.fit(train, recalibrate=0, positions=8)
        genotypes = single_stitch_genotypes(supernetwork.switches)
        evaluator = st.Evaluator(supernetwork, val, kernels="plain")
        answers.append(evaluator.logits(networks(supernetwork, genotypes)))
    for one, other in zip(*answers, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


def test_loader_processes_beside_a_device(data: st.Data, device: torch.device) -> None:
    torch.zeros(1, device=device)
    splits = [
        Split("val", data.val.dataset, data.val.indices[:60], "digits", workers=workers)
        for workers in (0, 2)
    ]
    view = st.View((3, 16, 16))
    for one, other in zip(*(s.batches([view], 25, device=device) for s in splits), strict=True):
        assert torch.equal(one.images[0].cpu(), other.images[0].cpu())
        assert torch.equal(one.targets.cpu(), other.targets.cpu())


def test_latencies_are_those_of_whole_networks(
    a: st.Parent, b: st.Parent, device: torch.device
) -> None:
    """Up to what is lost between operations: in order of size."""
    supernetwork = st.stitch(copy.deepcopy(a), copy.deepcopy(b), points="blocks").to(device)
    settings = LatencySettings(batch_size=32)
    latencies = measure_latency(supernetwork.supergraph, settings)
    images = [torch.randn(32, *view.input_size).to(device) for view in supernetwork.views]
    for side in ("a", "b"):
        subnetwork = supernetwork.subnetwork(Genotype(side))
        module = subnetwork.extract()
        times: list[float] = []
        with torch.inference_mode():
            for _ in range(13):
                clock = Clock(device)
                module(*images)
                clock.mark()
                times += clock.read()
        whole = sorted(times[3:])[5]
        assert whole / 5 < latencies(subnetwork) < 5 * whole


def _judge(wanted: str, queue: Any) -> None:
    """What each of two processes does; with a device of its own choice."""
    with _device():
        data = st.load_data("sklearn/digits", train={"images": 300}, val={"images": 200})
        supernetwork = small_pair().to("cpu" if wanted == "cpu" else "auto")
        supernetwork.fit(data.train.take(40), recalibrate=10)
        queue.put([e.figures for e in _figures(supernetwork, data.val, kernels="plain")])


def test_two_processes_share_a_device(data: st.Data, device: torch.device) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_judge, args=(WANTED, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    supernetwork = small_pair().to(device)
    supernetwork.fit(data.train.take(40), recalibrate=10)
    expected = [e.figures for e in _figures(supernetwork, data.val, kernels="plain")]
    assert found == [expected, expected]


STUDY = """\
parents:
  a: {network: test_resnet, input_size: 32, train: {epochs: 1}}
  b: {network: test_efficientnet, input_size: 32, train: {epochs: 1}}
data: {train: {images: 230}, val: {images: 50}}
stitching: {points: blocks}
fit: {recalibrate: 40}
"""


def test_processes_with_a_gpu_each_share_a_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """By nccl on GPUs, where there are two, and by gloo on processors."""
    if WANTED == "pretend":
        pytest.skip("processes of their own do not pretend; this needs two GPUs, or `cpu`")
    count = torch.accelerator.device_count() if device.type != "cpu" else 2
    if count < 2:
        pytest.skip("needs two accelerators; this machine has one")
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    place = ["--device", WANTED]
    assert call("build", "study.yaml", "--run", "one", *place) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "--", "optuna_stitch", "build", "study.yaml", "--run", "two", *place]
    done = subprocess.run([*launch, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for one, two in zip(
        *(st.Supernetwork.load(run).stitches for run in ("one", "two")), strict=True
    ):
        assert (map_of(one) - map_of(two)).norm() <= 1e-3 * map_of(one).norm()


ALONE = """\
import sys
import torch, torch.distributed as dist
from optuna_stitch.utils.distributed import all_reduce, barrier, process_group, rank, world_size
with process_group():
    device = torch.device(sys.argv[1])
    sums = [torch.full((3,), 2.0, dtype=torch.float64, device=device), torch.ones(2)]
    for tensor in sums:
        dist.all_reduce(tensor)
    all_reduce(sums)
    barrier()
    assert world_size() == 1 and rank() == 0
    assert sums[0].cpu().tolist() == [2.0] * 3
print("done")
"""


def test_nccl_on_one_gpu(tmp_path: Path, device: torch.device) -> None:
    if WANTED == "pretend":
        pytest.skip("processes of their own do not pretend; this needs a GPU, or `cpu`")
    script = tmp_path / "alone.py"
    # a group of one, which `process_group` leaves out
    script.write_text(ALONE.replace("with process_group():", _GROUP))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*launch, str(script), str(device)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout


_GROUP = """\
dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
with process_group():"""


def test_a_run_from_its_networks_to_its_report(
    workplace: Path, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("tiny.yaml").read_text()
    objectives = "study:\n  objectives: [accuracy, latency_ms]"
    Path("tiny.yaml").write_text(text.replace("study:", objectives))
    name = "cuda" if WANTED == "pretend" else WANTED
    assert call("run", "tiny.yaml", "--device", name) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert len(complete(study_of())) == 12
    report = Path("runs/tiny/report.md").read_text(encoding="utf-8")
    if device.type != "cpu":
        assert f"Computing on {device}" in said
        assert "this report: float32" in report
    # what was searched there is read here
    assert call("report", "runs/tiny", "--device", "cpu") == 0
