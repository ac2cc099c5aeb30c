"""How busy an accelerator is, and how many subnetworks a minute it judges, against a loop.

    uv run python tests/benchmarks/gpu.py [--quick] [--device DEVICE] [--kernels KERNELS]

ResNet-152 × EfficientNet-B4 with random weights, on JPEGs that are made in place: the fit of all
stitches on 2,000 images, then the candidates of a search, in its order and in plans of 50, on
1,000 images of 224 px. The baseline extracts networks and runs each in a loop, on the same batches
and in the same precision. ``--quick`` takes two small networks, also on a processor. The last line
is JSON; what cannot be measured here is null.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import optuna
import timm
import torch
from pairs import say, state
from PIL import Image
from torch import Tensor, nn

import optuna_stitch as st
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.kernels import precision
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.utils.device import device_name, resolve_device, synchronize
from tests.helpers.networks import networks

PLAN = 50  # trials that a search asks for at once
RECORDED_ON = 50  # images on which the search runs whose candidates are judged


@dataclass(frozen=True)
class Size:
    """What is measured on."""

    names: tuple[str, str]
    side: int
    classes: int
    train: int
    val: int
    candidates: int
    sample: int
    seconds: float


FULL = Size(("resnet152", "efficientnet_b4"), 224, 1000, 2000, 1000, 300, 6, 120.0)
QUICK = Size(("test_resnet", "test_efficientnet"), 64, 10, 200, 200, 100, 6, 60.0)


class Photographs:
    """JPEGs, made here: a few different ones, again and again."""

    def __init__(self, count: int, side: int, classes: int) -> None:
        rng = np.random.default_rng(0)
        self._count = count
        self.class_count = classes
        self._files: list[bytes] = []
        for _ in range(64):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(
                (side + side // 7,) * 2, Image.Resampling.BICUBIC
            )
            noisy = np.asarray(image, np.int16) + rng.integers(-30, 30, (*image.size, 3))
            file = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            self._files.append(file.getvalue())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = Image.open(io.BytesIO(self._files[index % len(self._files)]))
        return image, index * 7919 % self.class_count


class Busy:
    """The share of time in which a GPU computes, as its driver says; None where none is asked.

    Args:
        device: Which.
    """

    def __init__(self, device: torch.device) -> None:
        self._samples: list[float] = []
        self._process: subprocess.Popen[str] | None = None
        smi = shutil.which("nvidia-smi")
        if device.type == "cuda" and smi is not None:
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
            self._process = subprocess.Popen(
                [smi, "-i", uuid, *query],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                self._samples.append(int(line) / 100)

    @contextmanager
    def during(self, found: dict[str, Any], name: str) -> Iterator[None]:
        """Write down the share during a piece of work, and how long that took.

        Args:
            found: Takes ``busy_NAME`` and ``seconds_NAME``.
            name: Of the work.
        """
        start, began = len(self._samples), time.perf_counter()
        yield
        found[f"seconds_{name}"] = time.perf_counter() - began
        own = self._samples[start:]
        found[f"busy_{name}"] = statistics.fmean(own) if own else None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks, a few minutes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
    parser.add_argument("--kernels", default="auto", help="as in study files")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    device = resolve_device(arguments.device)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    say(f"computing on {device_name(device)}, {state()}")
    found: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "networks": " x ".join(size.names),
        "quick": arguments.quick,
    }
    busy = Busy(device)
    try:
        measure(size, device, arguments.kernels, busy, found)
    finally:
        busy.stop()
    report(found)
    print(json.dumps(found))


def measure(
    size: Size, device: torch.device, kernels: Any, busy: Busy, found: dict[str, Any]
) -> None:
    view = st.View((3, size.side, size.side), crop_pct=0.875)
    images = Photographs(size.train + size.val, size.side, size.classes)
    train = Split("train", images, range(size.train), "made in place")
    val = Split("val", images, range(size.train, len(images)), "made in place")
    a, b = (parent(name, view, size.classes, train, device) for name in size.names)
    supernetwork = st.stitch(a, b)
    found["stitches"] = len(supernetwork.switches)
    say(f"{found['stitches']} stitches")
    for name in ("fit", "fit_decoded"):  # the first time images are decoded too
        with busy.during(found, name):
            supernetwork.fit(train)
            synchronize(device)
        say(f"{name}: {found[f'seconds_{name}']:.1f} s")
    evaluator = st.Evaluator(supernetwork, val, kernels=kernels)
    deviation = evaluator.settle()
    found["deviation"] = None if deviation is None else asdict(deviation)
    found["kernels"] = evaluator.kernels
    found["batch_size"] = evaluator.batch_size
    candidates = record(supernetwork, val, size, kernels)
    val.pick(range(len(val)), supernetwork.views, device)  # decodes them all
    compare(supernetwork, evaluator, candidates, size, busy, found)
    found["peak_gib"] = (
        torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    )


def parent(
    name: str, view: st.View, classes: int, train: Split, device: torch.device
) -> st.Parent:
    """A network with random weights, whose BatchNorms fit what they read, as in a trained one."""
    torch.manual_seed(0)
    options = {"zero_init_last": False} if name.startswith("resnet") else {}
    module = timm.create_model(name, num_classes=classes, **options)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the average of all batches
    module.to(device).train()
    few = train.take(32)
    with torch.no_grad():
        for batch in few.batches([view], 16, device=device):
            module(*batch.images)
    return st.load_parent(module.eval(), view=view, name=name).to(device)


def record(supernetwork: st.Supernetwork, val: Split, size: Size, kernels: Any) -> list[Genotype]:
    """What a search asks for, in its order."""
    objective = st.Objective(supernetwork, val.take(RECORDED_ON), kernels=kernels)
    study = st.create_study(objective, sampler=st.LinkageSampler(seed=0), population=PLAN, seed=0)
    st.optimize(study, objective, n_trials=size.candidates, batch=PLAN)
    return [supernetwork.subnetwork(trial.params).genotype for trial in study.trials]


def compare(
    supernetwork: st.Supernetwork,
    evaluator: st.Evaluator,
    candidates: Sequence[Genotype],
    size: Size,
    busy: Busy,
    found: dict[str, Any],
) -> None:
    """Plans with memory, in the search's order, between networks one by one."""
    rng = random.Random(0)
    warm = supernetwork.subnetwork(Genotype("ensemble"))
    alone(supernetwork, evaluator, warm)
    st.Evaluator(supernetwork, evaluator.split.take(PLAN), kernels=evaluator.kernels).evaluate(
        networks(supernetwork, candidates[:PLAN])
    )
    judged, together, shares = 0, 0.0, []
    single: list[float] = []
    generations = [candidates[i : i + PLAN] for i in range(0, len(candidates), PLAN)]
    for number, asked in enumerate(generations):
        work: dict[str, Any] = {}
        with busy.during(work, "plans"):
            evaluator.evaluate(networks(supernetwork, asked))
        judged += len(asked)
        together += work["seconds_plans"]
        if work["busy_plans"] is not None:
            shares.append(work["busy_plans"])
        if len(single) < size.sample:
            drawn = supernetwork.subnetwork(rng.choice(asked))
            single.append(alone(supernetwork, evaluator, drawn))
        say(f"generation {number}: {together:.1f} s for {judged} candidates, loop {single}")
        if together > size.seconds:
            break
    found["candidates"] = judged
    found["subnetworks_per_minute"] = 60 * judged / together
    found["loop_per_minute"] = 60 / statistics.median(single)
    found["loop_seconds"] = single
    found["ratio"] = found["subnetworks_per_minute"] / found["loop_per_minute"]
    found["busy_plans"] = statistics.fmean(shares) if shares else None


def alone(
    supernetwork: st.Supernetwork, evaluator: st.Evaluator, subnetwork: st.Subnetwork
) -> float:
    """Seconds of what anybody would do: take a network out, and run it."""
    device = supernetwork.device
    began = time.perf_counter()
    static = supernetwork.subnetwork(Genotype("ensemble", subnetwork.on))
    module = (static if subnetwork.is_cascade else subnetwork).extract()
    layout = torch.contiguous_format
    if evaluator.kernels != "plain":
        layout = torch.channels_last
        module = module.to(memory_format=layout)
    right: list[Tensor] = []
    with torch.inference_mode(), precision(device, evaluator.kernels):
        for batch in evaluator.split.batches(
            supernetwork.views, evaluator.batch_size, device=device
        ):
            laid_out = [view.contiguous(memory_format=layout) for view in batch.images]
            right.append(module(*laid_out).argmax(dim=1) == batch.targets)
    assert 0 <= float(torch.cat(right).float().mean()) <= 1
    return time.perf_counter() - began


def report(found: dict[str, Any]) -> None:
    def share(name: str) -> str:
        return "not measured" if found[name] is None else f"{found[name]:.0%}"

    print(f"\n{found['networks']} on {found['device']}, torch {found['torch']}\n")
    print("| | seconds | device busy |\n|---|---|---|")
    for name, words in (("fit", "fit, images decoded in it"), ("fit_decoded", "fit again")):
        print(f"| {words} | {found[f'seconds_{name}']:.1f} | {share(f'busy_{name}')} |")
    print(
        f"\n{found['candidates']} candidates in plans of {PLAN}, {found['kernels']} kernels, "
        f"batches of {found['batch_size']}: {found['subnetworks_per_minute']:.0f} a minute, "
        f"device busy {share('busy_plans')}; in a loop {found['loop_per_minute']:.1f} a minute: "
        f"{found['ratio']:.1f} times as many.\n"
    )


if __name__ == "__main__":
    main()
