"""What every export needs besides a network: a story for its card, and a place elsewhere."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache as once
from pathlib import Path

import pytest
from filelock import FileLock

import optuna_stitch as st
from optuna_stitch.export.card import Comparison, Figures, Origin, ParentOrigin, Results
from optuna_stitch.export.export import export_subnetwork
from tests.helpers.exports import best_single_stitch

# A network that was exported in every format, and where.
Exported = tuple[st.Subnetwork, Path]


@pytest.fixture(scope="session")
def origin(data: st.Data) -> Origin:
    def figures(name: str, accuracy: float, macs: float) -> Figures:
        return Figures(name, accuracy, (accuracy - 0.02, accuracy + 0.01), macs, 1234)

    results = Results(
        network=figures("trial 7", 0.96, 3e6),
        baselines=[
            figures("parent a", 0.95, 4e6),
            figures("parent b", 0.965, 5e6),
            figures("ensemble", 0.98, 9e6),
        ],
        comparisons={
            "parent a": Comparison(0.01, 0.004),
            "parent b": Comparison(-0.005, 0.3),
            "ensemble": Comparison(-0.02, 1.0),
        },
        images=1297,
        dataset="sklearn/digits",
    )
    return Origin(
        parents={
            "a": ParentOrigin("test_resnet", "pretrained, from timm", "apache-2.0", "timm/r"),
            "b": ParentOrigin("test_efficientnet", "trained in this run, 6 epochs"),
        },
        trial=7,
        study="scans",
        results=results,
        data=[("test", "1,297 images that the figures are measured on: sklearn/digits")],
        command="optuna-stitch export runs/scans --trial 7 --to trial-7",
        facts=[("versions", "torch 2")],
        class_names=data.class_names,
    )


@pytest.fixture(scope="session")
def exported(
    request: pytest.FixtureRequest,
    data: st.Data,
    origin: Origin,
    shared: Path,
) -> Callable[[str, str], Exported]:
    """The best network of a pair with one stitch and some output, in every format.

    Each is exported once for all tests that look at it, whichever worker runs them.
    """

    @once
    def export(pair: str, output: str) -> Exported:
        supernetwork: st.Supernetwork = request.getfixturevalue(pair)
        subnetwork = best_single_stitch(supernetwork, output, data.val)
        to = shared / f"exported-{pair}-{output}"
        with FileLock(f"{to}.lock"):
            if not to.exists():
                export_subnetwork(subnetwork, to, split=data.test, origin=origin, formats=["all"])
        return subnetwork, to

    return export


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
    # compiling all of it would take longer than what is tested
    quick = {**os.environ, "UV_COMPILE_BYTECODE": "0"}
    subprocess.run([uv, "pip", "install", "--python", python, *versions], check=True, env=quick)
    yield python
    shutil.rmtree(environment)
