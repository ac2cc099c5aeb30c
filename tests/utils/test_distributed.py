"""Several processes share one job, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import optuna_stitch as st
from optuna_stitch.utils.distributed import all_reduce, barrier, process_group, rank, world_size
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call

STUDY = """\
parents:
  a: {network: test_resnet, input_size: 32, train: {epochs: 2}}
  b: {network: test_efficientnet, input_size: 32, train: {epochs: 2}}
data: {train: {images: 230}, val: {images: 50}}
stitching: {points: blocks}
"""
FITTED = "fit: {recalibrate: 40}\n"
# each process would match BatchNorms on its own part of a batch
TUNED = "fit: {recalibrate: 0}\ntune: {steps: 3, networks: 2, batch_size: 8}\n"


def _stitches(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "supernetwork.safetensors")
    return {key: value for key, value in weights.items() if key.startswith("stitches.")}


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        pytest.param(FITTED, 1e-6, id="fitted", marks=pytest.mark.slow),
        pytest.param(
            TUNED, 1e-4, id="tuned", marks=pytest.mark.slow
        ),  # adds up gradients in float32
    ],
)
def test_two_processes_make_the_same_stitches_as_one(
    settings: str, allowed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY + settings)
    # trains the parents too, which the two processes then find in the cache
    assert call("build", "study.yaml", "--run", "one") == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    # without the dashes torchrun takes our options for its own
    command = ["-m", "--", "optuna_stitch", "build", "study.yaml", "--run", "two"]
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *command], capture_output=True, text=True, check=False, env=alike
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stitches, in") == 1
    one, two = (_stitches(Path(run)) for run in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(two[key], value, rtol=allowed, atol=allowed), key
    fits = [pd.read_csv(Path(run) / "fit.csv") for run in ("one", "two")]
    columns = ["switch", "ridge", "kernel", "rank"]
    assert fits[0][columns].equals(fits[1][columns])
    assert fits[0]["r2"].to_numpy() == pytest.approx(fits[1]["r2"].to_numpy(), abs=1e-6)


def test_one_process_alone_is_the_whole_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group():
        assert (rank(), world_size()) == (0, 1)
        tensor = torch.ones(2)
        all_reduce([tensor])
        barrier()
        assert torch.equal(tensor, torch.ones(2))


@pytest.mark.parametrize(
    ("processes", "settings", "said"),
    [
        (101, "", "which share the 100 images of the fit: start 100 at most"),
        (9, "tune: {steps: 3, batch_size: 8}", "the 8 images of a batch .* start 8 at most"),
    ],
)
def test_more_processes_than_images_are_told(
    processes: int, settings: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY.replace("230", "100") + settings)
    monkeypatch.setattr("optuna_stitch.run.build.world_size", lambda: processes)
    with pytest.raises(ConfigError, match=said):
        st.Run.start("study.yaml").build()
