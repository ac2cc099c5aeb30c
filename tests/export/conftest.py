"""What every export needs besides a network: a story for its card, and a place elsewhere."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pandas as pd
import pytest

import optuna_stitch as st
from optuna_stitch.export.card import Ancestor, Origin
from optuna_stitch.report.front import Entry, Front, PairedComparison


@pytest.fixture(scope="session")
def origin(data: st.Data) -> Origin:
    def entry(name: str, kind: str, accuracy: float, macs: float) -> Entry:
        test = {"accuracy": accuracy, "macs": macs}
        interval = {"accuracy": (accuracy - 0.02, accuracy + 0.01)}
        return Entry(name, kind, test, "accuracy", interval, parameters=1234)

    trial = entry("trial 7", "stitched", 0.96, 3e6)
    trial.trial = 7
    trial.comparisons = [
        PairedComparison("parent a", 0.01, 0.004),
        PairedComparison("parent b", -0.005, 0.3),
        PairedComparison("ensemble", -0.02, 1.0),
    ]
    entries = [
        entry("parent a", "parent", 0.95, 4e6),
        entry("parent b", "parent", 0.965, 5e6),
        entry("ensemble", "ensemble", 0.98, 9e6),
        trial,
    ]
    return Origin(
        trial=7,
        study="scans",
        front=Front(entries, ["accuracy", "macs"], pd.DataFrame(), images=1297),
        ancestors={
            "a": Ancestor("test_resnet", "pretrained, from timm", "apache-2.0"),
            "b": Ancestor("test_efficientnet", "trained in this run, 6 epochs"),
        },
        data=[("test", "1,297 images that the figures are measured on: sklearn/digits")],
        command="optuna-stitch export runs/scans --trial 7 --to trial-7",
        facts=[("versions", "torch 2")],
        class_names=data.class_names,
    )


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A python that has nothing but what cards ask for; it is large, so that it does not stay."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is missing, which makes the environment: pip install uv")
    environment = tmp_path_factory.mktemp("fresh") / "environment"
    python = str(environment / "bin" / "python")
    versions = [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("torch", "torchvision", "timm", "safetensors", "onnxruntime")
    ]
    subprocess.run([uv, "venv", "--python", sys.executable, str(environment)], check=True)
    subprocess.run([uv, "pip", "install", "--python", python, *versions], check=True)
    yield python
    shutil.rmtree(environment)
