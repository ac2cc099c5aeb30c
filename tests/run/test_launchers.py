"""Who starts workers: this machine, Ray, Slurm; and what is said where one is not there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest

import optuna_stitch as st
from optuna_stitch.run.launchers import Local, Share, Slurm, ray_shares
from optuna_stitch.run.workers import End, Search
from optuna_stitch.utils.errors import ConfigError
from tests.helpers.commands import call


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--launch", "pbs"], "`--launch pbs` is unknown; choose local, ray, slurm."),
        (["--launch", "slurm", "--launch-option", "time"], "`--launch-option time` is no `key="),
        (["--launch", "local", "--launch-option", "time=5"], "has no options, so that `time`"),
        (["--workers", "2", "--launch-option", "time=5"], "has no options, so that `time`"),
        (["--launch", "slurm"], "starts as many jobs as you say: `--workers 4`"),
        (["--launch", "slurm", "--workers", "2"], "needs Slurm's command sbatch"),
        (["--launch", "slurm", "--workers", "2", "--device", "cuda:1"], "say `cuda` in place of"),
        (["--launch", "ray", "--device", "cuda:1"], "gives each worker a GPU of its own"),
    ],
)
def test_what_cannot_be_launched_is_told(
    arguments: list[str],
    said: str,
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("ray", "submitit"):  # also where they are not installed
        monkeypatch.setitem(sys.modules, module, mock.Mock())
    monkeypatch.setenv("PATH", "")
    assert call("search", "tiny.yaml", *arguments) == 2
    assert said in _said(capsys)
    assert not (built / "slurm").exists()


@pytest.mark.parametrize(("launch", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed_is_named(
    launch: str,
    module: str,
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert call("search", "tiny.yaml", "--launch", launch, "--workers", "2") == 2
    needed = f"needs the package {module}: pip install 'optuna-stitch[{launch}]'"
    assert needed in _said(capsys)


def test_workers_elsewhere_need_no_device_here(
    workplace: Path, built_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch("torch.accelerator.is_available", return_value=False):
        command = ["search", "tiny.yaml", "--launch=slurm", "--workers=2", "--device=cuda"]
        assert call(*command) == 2
        assert "has to be built first, by `optuna-stitch build` where" in _said(capsys)
        run = st.Run.start("tiny.yaml", "elsewhere", device="cuda", elsewhere=True)
        assert run.study_file.device == "cuda"
        with pytest.raises(ConfigError, match="'cuda' is not there"):
            st.Run.start("tiny.yaml", "here", device="cuda")


def test_too_few_cores_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("optuna_stitch.run.launchers.usable_cores", return_value=2):
        assert Local(_task, 2, "cpu", {}, tmp_path).devices == ["cpu"] * 2
        assert "2 workers: 1 of 2 cores each." in _said(capsys)
        Local(_task, 3, "cpu", {}, tmp_path)
    assert "3 workers share 2 cores, and wait for each other; 2 of them would" in _said(capsys)


def test_a_worker_that_does_not_see_the_run_says_so(tmp_path: Path) -> None:
    end = Search(tmp_path / "away", tmp_path, None, None)("cpu")
    assert end.failed is not None
    assert "does not see the run's folder" in end.failed
    assert "give such a place with `--run`" in end.failed


FOUR, EIGHT = {"CPU": 4.0}, {"CPU": 8.0}
GPUS = {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "wanted"),
    [
        ([EIGHT], "auto", "auto", (2, Share(4, 0))),
        ([EIGHT, FOUR, {"CPU": 2.0}], "auto", "cpu", (4, Share(2, 0))),
        ([FOUR, FOUR, FOUR], 4, "auto", (4, Share(2, 0))),  # three could not start a fourth
        ([FOUR], 6, "cpu", (6, Share(0.5, 0))),
        ([GPUS, GPUS, FOUR], "auto", "auto", (4, Share(8, 1))),
        ([GPUS], 5, "cuda", (5, Share(2, 0.3333))),
        ([GPUS], "auto", "cpu", (4, Share(4, 0))),
    ],
)
def test_workers_share_a_cluster(
    nodes: list[Mapping[str, float]],
    workers: int,
    device: str,
    wanted: tuple[int, Share],
) -> None:
    assert ray_shares(nodes, workers, device) == wanted


def test_a_cluster_without_gpus_is_told() -> None:
    with pytest.raises(ConfigError, match=r"no GPUs for `device: cuda`, in 2 nodes"):
        ray_shares([FOUR, FOUR], "auto", "cuda")


def _sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Commands of these names, to which submitit talks."""
    for name in ("sbatch", "srun", "scancel", "sacct"):
        (folder / name).write_text(f"#!/bin/sh\n{text if name == 'sbatch' else ''}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def _task(device: str) -> End:
    return End()


def test_a_job_asks_slurm_for_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install 'optuna-stitch[slurm]'")
    _sbatch(tmp_path, monkeypatch, f"cp $1 {tmp_path}/job.sh; echo Submitted batch job 17")
    options = {"partition": "gpu", "time": "1-12", "mail-type": "END", "setup": ["module load x"]}
    slurm = Slurm(_task, 1, "cuda", options, tmp_path)
    slurm.start(0)
    lines = (tmp_path / "job.sh").read_text().splitlines()
    for option in (
        "partition=gpu",
        "time=2160",
        "mail-type=END",
        "gpus-per-node=1",
        "cpus-per-task=4",
        "job-name=optuna-stitch",
        f"error={tmp_path}/slurm/%j_0_log.err",
    ):
        assert f"#SBATCH --{option}" in lines
    assert "module load x" in lines
    with pytest.raises(ConfigError, match=r"The option time=soon of `--launch slurm` is no time"):
        Slurm(_task, 1, "cpu", {"time": "soon"}, tmp_path)


def test_what_sbatch_refuses_is_told(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install 'optuna-stitch[slurm]'")
    refusal = "sbatch: error: invalid partition specified: gpu"
    tools = built / "tools"
    tools.mkdir()
    _sbatch(tools, monkeypatch, f"echo '{refusal}' >&2; exit 1")
    assert call("search", "tiny.yaml", "--launch", "slurm", "--workers", "2") == 2
    said = _said(capsys)
    assert f"sbatch refused the job of a worker: {refusal}" in said
    # the folder is this machine's only, and so is the database
    assert "which must be on a file system that their machines mount" in said
    assert "SQLite's locks do not hold on many such file systems" in said
