"""Several worker processes that one command starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import optuna
import pytest
import torch
from optuna.trial import TrialState

import optuna_stitch as st
from optuna_stitch.run.launchers import devices_of
from optuna_stitch.run.workers import search_together
from optuna_stitch.search.heartbeat import WORKER, Heartbeat
from optuna_stitch.utils.errors import RunError
from optuna_stitch.utils.machine import is_running, machine_name, own_threads, usable_cores
from tests.helpers.commands import call
from tests.helpers.interrupts import interruptible
from tests.helpers.pretend import accelerator
from tests.helpers.runs import TINY, complete, study_of

# many processes wait for two cores
pytestmark = pytest.mark.timeout(1800)


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 480
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _finished() -> int:
    try:
        return len(complete(study_of()))
    except Exception:  # not there yet
        return 0


def _pids() -> list[int]:
    beats = (v for k, v in study_of().user_attrs.items() if k.startswith("worker:"))
    return [beat["pid"] for beat in beats if "pid" in beat]


@contextmanager
def _started(built_once: Path, trials: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    Path("tiny.yaml").write_text(TINY.replace("trials: 12", f"trials: {trials}"))
    shutil.copytree(built_once, "runs/tiny")
    command = [sys.executable, "-m", "optuna_stitch", "search", "tiny.yaml", "--workers", "2"]
    with interruptible():
        process = subprocess.Popen(
            [*command, *options], stderr=subprocess.PIPE, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:  # the test failed
            os.killpg(process.pid, signal.SIGKILL)


LAUNCHES = [
    pytest.param([], "", id="local"),
    pytest.param(["--launch", "ray"], "ray", id="ray"),
    pytest.param(
        ["--launch", "slurm", "--launch-option", "cluster=local"], "submitit", id="slurm"
    ),
]


def _need(module: str) -> None:
    if module:
        extra = {"submitit": "slurm"}.get(module, module)
        pytest.importorskip(module, reason=f"needs {module}: pip install 'optuna-stitch[{extra}]'")


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "module"), LAUNCHES)
def test_one_that_is_killed_is_started_again(
    launch: list[str], module: str, workplace: Path, built_once: Path
) -> None:
    _need(module)
    with _started(built_once, 400, *launch) as process:
        _wait(lambda: _finished() > 20 and bool(_pids()), process)
        os.kill(_pids()[0], signal.SIGKILL)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    if not launch:
        assert b"was killed by signal 9, as the system does where memory runs out" in said
    assert said.count(b"it is started again") == 1
    assert len(complete(study_of())) >= 400
    # it may have asked for a trial that it had not signed yet
    running = study_of().get_trials(states=(TrialState.RUNNING,))
    assert not any(WORKER in trial.user_attrs for trial in running)


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "module"), LAUNCHES)
def test_they_end_together_on_an_interruption(
    launch: list[str], module: str, workplace: Path, built_once: Path
) -> None:
    _need(module)
    with _started(built_once, 100_000, *launch) as process:
        _wait(lambda: _finished() > 20 and len(_pids()) == 2, process)
        pids = _pids()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said.decode()
    assert b"Interrupted. Run the same command again" in said
    deadline = time.monotonic() + 300
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not study_of().get_trials(states=(TrialState.RUNNING,))


@pytest.mark.slow
def test_what_fails_in_a_worker_ends_all(
    workplace: Path, built_once: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each worker finds out by itself that the supernetwork broke after it was built."""
    shutil.copytree(built_once, "runs/tiny")
    run = st.Run.open("runs/tiny", device="cpu")
    Path("runs/tiny/supernetwork.safetensors").write_bytes(b"broken")
    with pytest.raises(RunError, match=r"The supernetwork in .* cannot be loaded") as told:
        search_together(run, 2)
    assert "the others were ended" in str(told.value)
    said = capfd.readouterr().err
    assert "cannot be loaded" not in said  # it is told once
    assert "Traceback" not in said


def test_a_number_of_workers(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "many", "-1"):
        assert call("search", "tiny.yaml", f"--workers={wrong}") == 2
        assert "is neither auto nor a number from 1" in capsys.readouterr().err
    assert devices_of(3, "cpu") == ["cpu"] * 3
    for cores, workers in ((1, 1), (9, 2), (64, 16)):
        with mock.patch("optuna_stitch.run.launchers.usable_cores", return_value=cores):
            assert devices_of("auto", "cpu") == ["cpu"] * workers
    with accelerator(count=3):
        assert devices_of("auto", "auto") == ["cuda:0", "cuda:1", "cuda:2"]
        assert devices_of(4, "cuda") == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
        assert devices_of("auto", "cuda:1") == ["cuda:1"]


def test_a_worker_knows_who_shares_its_cores() -> None:
    study = optuna.create_study()
    one, other = Heartbeat(study), Heartbeat(study)
    assert one.here() == 1
    with one, other:
        study.set_user_attr("worker:elsewhere", {"beat": 1, "machine": "b", "pid": 1})
        # a scheduler gave it other cores of this machine
        apart = {"beat": 1, "machine": machine_name(), "pid": os.getpid(), "cores": "0x0"}
        study.set_user_attr("worker:apart", apart)
        assert one.here() == 2
    assert one.here() == 1


def test_cores_are_those_that_the_container_may_use(tmp_path: Path) -> None:
    free = usable_cores(tmp_path)
    assert free >= 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == free
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("environment", "threads", "wanted"),
    [
        ({}, 16, 8),
        ({}, 3, 3),
        # torchrun says one thread where nobody says how many
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 1, 4),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 3, 3),
    ],
)
def test_a_process_takes_no_more_threads_than_cores(
    environment: dict[str, str], threads: int, wanted: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch("optuna_stitch.utils.machine.usable_cores", return_value=8),
        ):
            with own_threads():
                assert torch.get_num_threads() == wanted
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
