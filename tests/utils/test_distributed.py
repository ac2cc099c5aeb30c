"""Several processes share one job, as ``torchrun`` starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


def test_two_processes_fit_and_tune_the_same_stitches_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("fitted", STUDY + FITTED), ("tuned", STUDY + TUNED)):
        Path(f"{name}.yaml").write_text(text)
        # trains the parents too, which the two processes then find in the cache
        assert call("build", f"{name}.yaml", "--run", f"one-{name}") == 0
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        # without the dashes torchrun takes our options for its own
        command = ["-m", "--", "optuna_stitch", "build", f"{name}.yaml", "--run", f"two-{name}"]
        done = subprocess.run([*launch, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("stitches, in") == 1
        one, two = (_stitches(Path(f"{kind}-{name}")) for kind in ("one", "two"))
        assert one.keys() == two.keys()
        for key, value in one.items():
            # tuning adds up gradients in float32
            allowed = 1e-6 if name == "fitted" else 1e-4
            assert torch.allclose(two[key], value, rtol=allowed, atol=allowed), key
