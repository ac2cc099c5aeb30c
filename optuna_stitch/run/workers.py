"""Several workers on this machine: processes with a device each, or a share of the cores."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from rich.markup import escape

from optuna_stitch.utils.device import resolve_device
from optuna_stitch.utils.errors import OptunaStitchError, RunError
from optuna_stitch.utils.machine import usable_cores
from optuna_stitch.utils.progress import console, progress_bar

if TYPE_CHECKING:
    from optuna_stitch.run.run import Run

Workers = int | Literal["auto"]

# A guess, not measured: operations are small, so that few cores serve one worker.
CORES_PER_WORKER = 4

# A worker that died so often is not started again.
_MOST_RESTARTS = 3

# Exit codes: the message was printed; Ctrl-C.
_TOLD, _INTERRUPTED = 2, 130

_LOOK = 1.0  # seconds between two looks at the study


def devices_of(workers: Workers, device: str) -> list[str]:
    """The device of each worker.

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


def search_together(
    run: Run,
    workers: Workers,
    *,
    n_trials: int | None = None,
    batch: int | None = None,
    show_progress_bar: bool = False,
) -> None:
    """Search with several worker processes; they end together.

    One that dies is started again, up to three times.

    Args:
        run: The run; built already.
        workers: As for `devices_of`.
        n_trials: As for `Run.search`, for each of them.
        batch: As for `Run.search`.
        show_progress_bar: Whether to show a progress bar, of the whole study.

    Raises:
        ConfigError: If this machine has no such device.
        RunError: If a worker fails, or dies again and again.
    """
    devices = devices_of(workers, run.study_file.device)
    console.print(f"{len(devices)} workers: {', '.join(devices)}.", highlight=False)
    # a fork would share threads and database connections
    context = multiprocessing.get_context("spawn")
    restarts = [0] * len(devices)

    def start(place: int) -> BaseProcess:
        arguments = (run.folder, devices[place], n_trials, batch)
        process = context.Process(target=_work, args=arguments, name=f"worker {place}")
        # Ctrl-C is for this process, which asks the others to end, once
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        return process

    running = {place: start(place) for place in range(len(devices))}
    try:
        with progress_bar(show_progress_bar=show_progress_bar) as progress:
            total = run.study_file.study.trials if n_trials is None else None
            task = progress.add_task("Search", total=total, note=f"{len(devices)} workers")
            while running:
                wait([process.sentinel for process in running.values()], timeout=_LOOK)
                for place, process in list(running.items()):
                    if process.is_alive():
                        continue
                    process.join()
                    del running[place]
                    if process.exitcode == 0:
                        continue
                    _check(process, restarts, place)
                    running[place] = start(place)
                if show_progress_bar:
                    progress.update(task, completed=_finished(run))
    finally:
        _end(list(running.values()))


def _finished(run: Run) -> int:
    """How many trials are finished; none before a worker has begun the study."""
    try:
        trials = run.study.get_trials(deepcopy=False)
    except RunError:
        return 0
    return sum(trial.state.is_finished() for trial in trials)


def _check(process: BaseProcess, restarts: list[int], place: int) -> None:
    """Say why a worker ended, and raise where it should not be started again."""
    code = process.exitcode or 0
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code == _TOLD:
        raise RunError(f"A {process.name} failed, as it says above; the others were ended.")
    why = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == -9:
        why += ", as the system does where memory runs out"
    restarts[place] += 1
    if restarts[place] > _MOST_RESTARTS:
        raise RunError(
            f"The {process.name} {why}, for the {restarts[place]}th time. Take fewer workers, a "
            "smaller `evaluation.memory`, or a smaller `batch`. Finished trials are kept."
        )
    console.print(
        f"The {process.name} {why}; it is started again.", style="yellow", highlight=False
    )


def _end(processes: list[BaseProcess]) -> None:
    """End workers that still run; they are asked first, so that they give their trials back."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    deadline = time.monotonic() + 10
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(folder: Path, device: str, n_trials: int | None, batch: int | None) -> None:
    """What each process does."""
    import optuna

    from optuna_stitch.run.run import Run

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        Run.open(folder, device=device).search(n_trials=n_trials, batch=batch)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except OptunaStitchError as error:
        text = escape(str(error))
        console.print(f"[red]Error:[/red] {text}", highlight=False, soft_wrap=True)
        sys.exit(_TOLD)
