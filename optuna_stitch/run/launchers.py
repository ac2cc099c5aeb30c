"""Who starts worker processes: this machine, a Ray cluster, or Slurm."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from optuna_stitch.utils.device import resolve_device
from optuna_stitch.utils.errors import ConfigError, RunError, first_line
from optuna_stitch.utils.machine import usable_cores
from optuna_stitch.utils.progress import console

Workers = int | Literal["auto"]

# A guess: operations are small, so that few cores serve one worker. On two cores two workers
# finish more trials than one, which tells nothing of four.
CORES_PER_WORKER = 4

# Minutes that Slurm is asked for, where nothing is said; submitit's own are 5.
_MINUTES = 60

# What Slurm is told by submitit itself; all other options are those of sbatch.
_SUBMITIT = ("setup", "teardown", "srun_args", "use_srun", "signal_delay_s")


@dataclass(frozen=True)
class End:
    """How a worker ended: well, if nothing is said.

    Args:
        failed: The message of an error that would come again.
        died: What ended it, so that another may be started in its place.
        interrupted: Whether it was asked to end.
    """

    failed: str | None = None
    died: str | None = None
    interrupted: bool = False


# What a worker does on a device; it is sent to where the worker runs.
Task = Callable[[str], End]


class Worker(Protocol):
    """One that was started."""

    def is_alive(self) -> bool:
        """Whether it waits or runs."""

    def end(self) -> End:
        """How it ended, once it is not alive."""

    def stop(self) -> None:
        """Ask it to end, so that it gives its trials back."""

    def kill(self) -> None:
        """End it."""


class Launcher(Protocol):
    """Starts workers, which all do the same.

    Attributes:
        devices: The device of each of them.
        elsewhere: Whether some run on other machines.
    """

    devices: list[str]
    elsewhere: bool

    def start(self, place: int) -> Worker:
        """Start one.

        Args:
            place: Which one; one that died is started again in its place.
        """

    def close(self) -> None:
        """Leave what was connected to, when all have ended."""


def devices_of(workers: Workers, device: str) -> list[str]:
    """The device of each worker of this machine.

    Args:
        workers: How many; ``auto`` for one per accelerator, or per four cores where there is none.
        device: What the study file or the command line says.

    Raises:
        ConfigError: If this machine has no such device.
    """
    first = resolve_device(device)
    if first.type == "cpu":
        count = max(1, usable_cores() // CORES_PER_WORKER) if workers == "auto" else workers
        return ["cpu"] * count
    # one that was named with its number is the only one
    count = 1 if ":" in device else torch.accelerator.device_count()
    there = [str(first)] if ":" in device else [f"{first.type}:{place}" for place in range(count)]
    return [there[place % count] for place in range(count if workers == "auto" else workers)]


class Local:
    """Starts processes on this machine.

    Args:
        task: What each does.
        workers: As for `devices_of`.
        device: As for `devices_of`.
        options: There are none.
        folder: The run's.

    Raises:
        ConfigError: If this machine has no such device, or an option is given.
    """

    elsewhere = False

    def __init__(
        self,
        task: Task,
        workers: Workers,
        device: str,
        options: Mapping[str, Any],
        folder: Path,
    ) -> None:
        if options:
            raise ConfigError(
                f"`--launch local` has no options, so that `{next(iter(options))}` says nothing."
            )
        self._task = task
        self.devices = devices_of(workers, device)
        count, cores = len(self.devices), usable_cores()
        shown = ", ".join(self.devices)
        if set(self.devices) == {"cpu"}:
            shown = f"{cores // count or 1} of {cores} cores each"
        console.print(f"{count} workers: {shown}.", highlight=False)
        if count > cores:
            console.print(
                f"{count} workers share {cores} cores, and wait for each other; {cores} of them "
                "would be as fast.",
                style="yellow",
                highlight=False,
            )

    def start(self, place: int) -> Worker:
        """Start a process; see `Launcher`."""
        return _Process(self._task, self.devices[place])

    def close(self) -> None:
        """There is nothing to leave."""


class _Process:
    """A worker in a process of this machine."""

    def __init__(self, task: Task, device: str) -> None:
        # a fork would share threads and database connections
        context = multiprocessing.get_context("spawn")
        self._said, say = context.Pipe(duplex=False)
        self._process = context.Process(target=_say, args=(task, device, say))
        with _deaf_to_interrupts():
            self._process.start()
        say.close()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> End:
        self._process.join()
        try:
            said: End = self._said.recv()
        except (EOFError, OSError):
            code = self._process.exitcode or 0
            why = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            if code == -9:
                why += ", as the system does where memory runs out"
            return End(died=why)
        return said

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let what is started in a ``with`` block ignore Ctrl-C.

    A terminal sends it to all processes. It is for this one, which asks the others to end, once.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(task: Task, device: str, to: Connection) -> None:
    """What each process does."""
    to.send(task(device))


def _check_no_number(launch: str, device: str) -> None:
    """Refuse a device that is one of several, where each worker is given its own."""
    kind, numbered, _ = device.partition(":")
    if numbered:
        raise ConfigError(
            f"`--launch {launch}` gives each worker a GPU of its own: say `{kind}` in place of "
            f"the device {device!r}."
        )


class Ray:
    """Starts Ray's tasks: on the cluster that Ray finds, or on this machine where there is none.

    Args:
        task: What each does.
        workers: How many; ``auto`` for one per GPU of the cluster, or per four cores.
        device: Without a number, since Ray gives each its own.
        options: ``address`` of the cluster; others are those of Ray's tasks, as ``num_cpus``.
        folder: The run's.

    Raises:
        ConfigError: If the cluster has no such device, or Ray knows no such option.
        RunError: If Ray is not installed, or its cluster does not answer.
    """

    def __init__(
        self,
        task: Task,
        workers: Workers,
        device: str,
        options: Mapping[str, Any],
        folder: Path,
    ) -> None:
        _check_no_number("ray", device)
        # nodes have their own installation: that of `uv run` need not be sent to them
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        self._ray = ray = _import("ray")
        options = dict(options)
        address = options.pop("address", None)
        self._joined = not ray.is_initialized()
        if self._joined:
            try:
                ray.init(
                    address=address,
                    include_dashboard=False,
                    logging_level="WARNING",
                    configure_logging=True,
                )
            except Exception as error:  # where a part of Ray does not start, nothing narrower
                raise RunError(
                    f"Ray's cluster at {address or os.environ.get('RAY_ADDRESS') or 'auto'} does "
                    f"not answer ({first_line(error)}). See whether `ray status` does; without an "
                    "address (`RAY_ADDRESS`, `--launch-option address=`) Ray begins on this "
                    "machine."
                ) from error
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.elsewhere = len(nodes) > 1
            count, share = ray_shares(nodes, workers, device)
            # a GPU that is not reserved is not the worker's
            self.devices = ["cpu" if device == "auto" and not share.gpus else device] * count
            self._start = self._remote(task, share, options)
        except BaseException:
            self.close()
            raise
        gpus = f"{share.gpus:.3g} GPU and " if share.gpus else ""
        console.print(
            f"{count} workers on {len(nodes)} nodes of Ray: {gpus}{share.cores:.3g} cores each.",
            highlight=False,
        )

    def _remote(self, task: Task, share: Share, options: dict[str, Any]) -> Callable[[str], Any]:
        """Ray's function for the task."""
        # a worker that died is started again by us, who say so
        known = {"num_cpus": share.cores, "num_gpus": share.gpus, "max_retries": 0}
        try:
            remote = self._ray.remote(**{**known, **options})(_call)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"Ray does not take the options {options} for its tasks: {first_line(error)}."
            ) from error
        return lambda device: remote.remote(task, device)

    def start(self, place: int) -> Worker:
        """Start a task; see `Launcher`."""
        return _RayTask(self._ray, self._start(self.devices[place]))

    def close(self) -> None:
        """Leave the cluster, if it was joined here; a local one ends."""
        if self._joined:
            self._ray.shutdown()


def _call(task: Task, device: str) -> End:
    return task(device)


class _RayTask:
    """A worker that is a task of Ray's."""

    def __init__(self, ray: Any, ref: Any) -> None:
        self._ray, self._ref = ray, ref

    def is_alive(self) -> bool:
        return not self._ray.wait([self._ref], timeout=0)[0]

    def end(self) -> End:
        try:
            said: End = self._ray.get(self._ref)
        except self._ray.exceptions.TaskCancelledError:
            return End(interrupted=True)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # what was raised in a worker stands below its trace
            told = lines[-1] if isinstance(error, self._ray.exceptions.RayTaskError) else lines[0]
            return End(died=f"died, as Ray says: {type(error).__name__}: {told.rstrip('.')}")
        return said

    def stop(self) -> None:
        self._ray.cancel(self._ref)

    def kill(self) -> None:
        self._ray.cancel(self._ref, force=True)


@dataclass(frozen=True)
class Share:
    """What every worker has of a cluster: cores and GPUs, or a part of one."""

    cores: float
    gpus: float


def ray_shares(
    nodes: Sequence[Mapping[str, float]], workers: Workers, device: str
) -> tuple[int, Share]:
    """How many workers a Ray cluster gets, and what each of them gets of it.

    Args:
        nodes: The resources of each node, as Ray names them: ``CPU``, ``GPU``.
        workers: How many; ``auto`` for one per GPU, or per four cores where there is none.
        device: What the study file or the command line says.

    Raises:
        ConfigError: If a GPU is asked for, and there is none.
    """
    cores = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if not any(gpus) and device in ("cuda", "xpu"):
        raise ConfigError(
            f"The Ray cluster has no GPUs for `device: {device}`, in {len(nodes)} nodes. Start "
            "Ray on machines that have some (`ray start --num-gpus` where it does not see them), "
            "or choose `device: auto` or `device: cpu`."
        )
    if not any(cores):
        raise ConfigError(f"The Ray cluster has no cores for workers, in {len(nodes)} nodes.")
    if any(gpus) and device in ("auto", "cuda", "xpu"):
        count = sum(gpus) if workers == "auto" else workers
        each = math.ceil(count / sum(gpus))  # workers of a GPU
        own = min(core // (gpu * each) for core, gpu in zip(cores, gpus, strict=True) if gpu)
        return count, Share(own, _part(each))
    if workers == "auto":
        workers = sum(max(1, core // CORES_PER_WORKER) for core in cores if core)
    for most in range(max(cores), 0, -1):
        if sum(core // most for core in cores) >= workers:
            return workers, Share(most, 0)
    return workers, Share(_part(math.ceil(workers / sum(cores))), 0)


def _part(count: int) -> float:
    """What one of so many gets of a thing, as Ray counts: in ten thousandths."""
    return 1 if count == 1 else (10_000 // count) / 10_000


class Slurm:
    """Submits jobs to Slurm, by submitit.

    Args:
        task: What each does.
        workers: How many.
        device: Without a number; ``cuda`` and ``xpu`` ask for a GPU where no option does.
        options: As sbatch calls them, and some of submitit's; ``time`` in minutes; ``cluster`` for
            another of submitit's, as ``local``.
        folder: The run's, in which the logs are kept.

    Raises:
        ConfigError: If the number of workers is left open, or an option is wrong.
        RunError: If submitit is not installed, or this machine has no Slurm.
    """

    def __init__(
        self,
        task: Task,
        workers: Workers,
        device: str,
        options: Mapping[str, Any],
        folder: Path,
    ) -> None:
        if workers == "auto":
            raise ConfigError("`--launch slurm` starts as many jobs as you say: `--workers 4`.")
        _check_no_number("slurm", device)
        submitit = _import("submitit", "slurm")
        said = {key.replace("-", "_"): value for key, value in options.items()}
        cluster = str(said.pop("cluster", "slurm"))
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise RunError(
                "`--launch slurm` needs Slurm's command sbatch, which this machine does not have. "
                "Call it where jobs are submitted, or try it out with `--launch-option "
                "cluster=local`, which starts the same jobs here."
            )
        self._task, self._failure = task, submitit.core.utils.FailedJobError
        self._log, self._cluster = folder / "slurm", cluster
        self.devices = [device] * workers
        self.elsewhere = cluster == "slurm"
        minutes = _minutes(said.pop("time", _MINUTES))
        if device in ("cuda", "xpu") and not any("gpu" in key or key == "gres" for key in said):
            said["gpus_per_node"] = 1
        said.setdefault("cpus_per_task", CORES_PER_WORKER)
        own = {f"slurm_{key}": said.pop(key) for key in _SUBMITIT if key in said}
        try:
            self._executor = submitit.AutoExecutor(folder=self._log, cluster=cluster)
            self._executor.update_parameters(
                name="optuna-stitch",
                timeout_min=minutes,
                cpus_per_task=said["cpus_per_task"],
                gpus_per_node=said.get("gpus_per_node"),
                slurm_additional_parameters=said,
                **own,
            )
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise ConfigError(
                f"submitit does not take the options {dict(options)}: {first_line(error)}."
            ) from error
        console.print(
            f"{workers} jobs of up to {minutes} minutes each (`--launch-option time=`); their "
            f"logs are in {self._log}.",
            highlight=False,
        )

    def start(self, place: int) -> Worker:
        """Submit a job; see `Launcher`."""
        try:
            with _deaf_to_interrupts():
                job = self._executor.submit(self._task, self.devices[place])
        except self._failure as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise RunError(
                f"sbatch refused the job of a worker: {lines[-1] if lines else error}"
            ) from error
        console.print(
            f"Worker {place} is job {job.job_id}: {job.paths.stderr}",
            highlight=False,
            soft_wrap=True,
        )
        return _SlurmJob(job) if self._cluster != "local" else _LocalJob(job)

    def close(self) -> None:
        """There is nothing to leave."""


class _SlurmJob:
    """A worker that is a job of Slurm's."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def is_alive(self) -> bool:
        return not self._job.done()

    def end(self) -> End:
        error = self._job.exception()
        if error is None:
            said: End = self._job.result()
            return said
        state = f"ended as {self._job.state}"
        return End(died=f"{state}, and its log is {self._job.paths.stderr}")

    def stop(self) -> None:
        self._job.cancel(check=False)

    def kill(self) -> None:
        self._job.cancel(check=False)


class _LocalJob(_SlurmJob):
    """A job that submitit runs on this machine, by a process that watches over it.

    Where the job is cancelled, that process kills it after a second. It hands a SIGTERM on, as
    Slurm does first.
    """

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(int(self._job.job_id), signal.SIGTERM)

    def kill(self) -> None:
        self.stop()  # a second one is not held


def _minutes(time: Any) -> int:
    """Minutes, as a number or as Slurm writes them: ``4:00:00``, ``1-12``."""
    try:
        days, _, rest = str(time).rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if days:  # then hours come first
            hours, minutes = [*parts, 0][:2]
            total = (int(days) * 24 + hours) * 60 + minutes
        else:
            total = parts[0] * 60 + parts[1] if len(parts) == 3 else parts[0]
    except ValueError:
        total = 0
    if total < 1:
        raise ConfigError(
            f"The option time={time} of `--launch slurm` is no time: give minutes, or hours, "
            "minutes and seconds as 4:00:00."
        )
    return total


def _import(module: str, extra: str | None = None) -> Any:
    """Import what is only needed for a launcher."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = extra or module
        raise RunError(
            f"`--launch {extra}` needs the package {module}: pip install 'optuna-stitch[{extra}]'."
        ) from error


LAUNCHERS: dict[str, Callable[[Task, Workers, str, Mapping[str, Any], Path], Launcher]] = {
    "local": Local,
    "ray": Ray,
    "slurm": Slurm,
}
