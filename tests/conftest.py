"""Small parents and a supernetwork, made once for all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch

import optuna_stitch as st

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[Path]:
    """Trained parents are kept for the session, apart from the user's own.

    Or for longer, in a folder that ``OPTUNA_STITCH_TEST_CACHE`` names.
    """
    with tempfile.TemporaryDirectory() as passing:
        folder = os.environ.get("OPTUNA_STITCH_TEST_CACHE", passing)
        os.environ["OPTUNA_STITCH_CACHE"] = folder
        yield Path(folder)
        del os.environ["OPTUNA_STITCH_CACHE"]


@pytest.fixture(scope="session")
def data() -> st.Data:
    return st.load_data("sklearn/digits", train={"images": 300}, val={"images": 200})


def _parent(name: str, data: st.Data, epochs: int, **model_args: object) -> st.Parent:
    view = st.View((3, 32, 32))
    parent = st.load_parent(name, num_classes=10, view=view, model_args=model_args)
    st.train_parent(parent, data.train, st.Recipe(epochs=epochs, learning_rate=4e-3))
    return parent


@pytest.fixture(scope="session")
def a(data: st.Data, cache: Path) -> st.Parent:
    return _parent("test_resnet", data, 4)


@pytest.fixture(scope="session")
def b(data: st.Data, cache: Path) -> st.Parent:
    return _parent("test_efficientnet", data, 6)


@pytest.fixture(scope="session")
def vit(data: st.Data, cache: Path) -> st.Parent:
    return _parent("test_vit", data, 2, img_size=32, patch_size=4)


@pytest.fixture(scope="session")
def supernetwork(a: st.Parent, b: st.Parent, data: st.Data) -> st.Supernetwork:
    made = st.stitch(a, b)
    st.fit(made, data.train)
    return made


@pytest.fixture(scope="session")
def cnn_vit(a: st.Parent, vit: st.Parent, data: st.Data) -> st.Supernetwork:
    made = st.stitch(a, vit)
    st.fit(made, data.train)
    return made


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
