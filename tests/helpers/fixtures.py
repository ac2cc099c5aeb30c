"""Small parents and a supernetwork, made once for all tests and examples."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import optuna
import pytest
import torch
from alembic.config import Config
from alembic.script import ScriptDirectory
from filelock import FileLock

import optuna_stitch as st

optuna.logging.set_verbosity(optuna.logging.WARNING)
# several workers share the cores: threads that wait for each other would stall all of them
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session, common to all its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def cache(shared: Path) -> Iterator[Path]:
    """Trained parents are kept for the session, apart from the user's own, by all its workers.

    Or for longer, in a folder that ``OPTUNA_STITCH_TEST_CACHE`` names.
    """
    folder = os.environ.get("OPTUNA_STITCH_TEST_CACHE", str(shared / "cache"))
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ["OPTUNA_STITCH_CACHE"] = folder
    yield Path(folder)
    del os.environ["OPTUNA_STITCH_CACHE"]


@pytest.fixture(scope="session", autouse=True)
def _read_migrations_once() -> Iterator[None]:
    """Optuna reads the files of its migrations twice for every database that it opens."""
    read = ScriptDirectory.from_config
    known: dict[str | None, ScriptDirectory] = {}
    lock = Lock()

    def read_once(config: Config) -> ScriptDirectory:
        with lock:
            place = config.get_main_option("script_location")
            if place not in known:
                known[place] = read(config)
                known[place].get_current_head()  # now, and not when threads ask at once
            return known[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", read_once)
        yield


@pytest.fixture(scope="session")
def data() -> st.Data:
    return st.load_data(
        "sklearn/digits", train={"images": 300}, val={"images": 200}, test={"images": 500}
    )


def _parent(name: str, data: st.Data, cache: Path, epochs: int, **model_args: object) -> st.Parent:
    view = st.View((3, 32, 32))
    parent = st.load_parent(name, num_classes=10, view=view, model_args=model_args)
    with FileLock(cache / f"{name}.lock"):  # one worker trains it, the others wait
        st.train_parent(parent, data.train, st.Recipe(epochs=epochs, learning_rate=4e-3))
    return parent


@pytest.fixture(scope="session")
def a(data: st.Data, cache: Path) -> st.Parent:
    return _parent("test_resnet", data, cache, 4)


@pytest.fixture(scope="session")
def b(data: st.Data, cache: Path) -> st.Parent:
    return _parent("test_efficientnet", data, cache, 6)


@pytest.fixture(scope="session")
def pair(data: st.Data) -> st.DataPair:
    """The digits with two questions: which digit, and whether its ink closes a loop."""
    splits = {"train": {"images": 300}, "val": {"images": 200}}
    return st.DataPair(data, st.load_data("sklearn/digits", column="loop", **splits))


@pytest.fixture(scope="session")
def loops(pair: st.DataPair, cache: Path) -> st.Parent:
    """A network that answers the second of these."""
    parent = st.load_parent("test_efficientnet", num_classes=2, view=st.View((3, 32, 32)))
    with FileLock(cache / "loops.lock"):
        st.train_parent(parent, pair.b.train, st.Recipe(epochs=6, learning_rate=4e-3))
    return parent


@pytest.fixture(scope="session")
def two_jobs(a: st.Parent, loops: st.Parent, pair: st.DataPair, shared: Path) -> st.Supernetwork:
    """Parents with two jobs, with a few fitted stitches."""
    folder = shared / "two_jobs"
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return st.Supernetwork.load(folder)
        made = st.stitch(a, loops, points="blocks")
        made.fit(pair.train, images=100)
        made.save(folder)
    return made


@pytest.fixture(scope="session")
def vit(data: st.Data, cache: Path) -> st.Parent:
    return _parent("test_vit", data, cache, 2, img_size=32, patch_size=4)


# What suffices for stitches that work, in half of the time.
FITTED = {"images": 150, "recalibrate": 32}


def _fitted(a: st.Parent, b: st.Parent, data: st.Data, folder: Path) -> st.Supernetwork:
    with FileLock(f"{folder}.lock"):  # one worker fits it, the others load it
        if folder.exists():
            return st.Supernetwork.load(folder)
        made = st.stitch(a, b)
        made.fit(data.train, **FITTED)
        made.save(folder)
    return made


@pytest.fixture(scope="session")
def supernetwork(a: st.Parent, b: st.Parent, data: st.Data, shared: Path) -> st.Supernetwork:
    return _fitted(a, b, data, shared / "supernetwork")


@pytest.fixture(scope="session")
def cnn_vit(a: st.Parent, vit: st.Parent, data: st.Data, shared: Path) -> st.Supernetwork:
    return _fitted(a, vit, data, shared / "cnn_vit")


@pytest.fixture(scope="session")
def unfitted() -> st.Supernetwork:
    """A CNN and a ViT with random weights, whose stitches are all zero."""
    view = st.View((3, 32, 32))
    return st.stitch(
        st.load_parent("test_resnet", num_classes=10, view=view),
        st.load_parent(
            "test_vit", num_classes=10, view=view, model_args={"img_size": 32, "patch_size": 4}
        ),
    )


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def objective(supernetwork: st.Supernetwork, data: st.Data) -> st.Objective:
    """What examples in docstrings call ``objective``."""
    return st.Objective(supernetwork, data.val)


@pytest.fixture(scope="session")
def study(objective: st.Objective) -> optuna.Study:
    """A small finished study in memory; what examples in docstrings call ``study``."""
    study = st.create_study(objective, population=12)
    st.optimize(study, objective, n_trials=12, batch=6)
    return study


@pytest.fixture(autouse=True)
def _names_for_examples(request: pytest.FixtureRequest) -> None:
    """Give the examples in docstrings the names that they use, and an empty folder to write to."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    used = set(re.findall(r"\w+", "".join(e.source for e in request.node.dtest.examples)))
    names: dict[str, Any] = {"st": st, "optuna": optuna, "torch": torch}
    for name in ("data", "a", "b", "supernetwork", "objective", "study", "tmp_path"):
        if name in used:
            names[name] = request.getfixturevalue(name)
    if "tmp_path" in names:
        request.getfixturevalue("monkeypatch").chdir(names["tmp_path"])
    request.node.dtest.globs.update(names)
