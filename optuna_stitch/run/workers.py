"""Several workers of one study that are started, watched and ended together."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from optuna_stitch.run.launchers import LAUNCHERS, End, Worker, Workers
from optuna_stitch.run.schema import check_launch
from optuna_stitch.utils.errors import ConfigError, OptunaStitchError, RunError
from optuna_stitch.utils.interrupt import check_lost_interrupt, heeding_interrupts
from optuna_stitch.utils.progress import console, progress_bar

if TYPE_CHECKING:
    from optuna_stitch.run.run import Run

# A worker that died so often is not started again.
_MOST_RESTARTS = 3

# Seconds between two looks at the workers, and at the study.
_LOOK, _COUNT = 0.2, 1.0

# Seconds in which workers give their trials back when they are asked to end.
_GRACE = 60.0


def search_together(
    run: Run,
    workers: Workers = "auto",
    *,
    launch: str = "local",
    options: Mapping[str, Any] | None = None,
    n_trials: int | None = None,
    batch: int | None = None,
    show_progress_bar: bool = False,
) -> None:
    """Search with several workers; they end together.

    One that dies is started again, up to three times.

    Args:
        run: The run; built already.
        workers: How many; ``auto`` for as many as there are accelerators, or groups of cores.
        launch: Who starts them: ``local``, ``ray`` or ``slurm``.
        options: Of the launcher, beside those of the study file.
        n_trials: As for `Run.search`, for each of them.
        batch: As for `Run.search`.
        show_progress_bar: Whether to show a progress bar, of the whole study.

    Raises:
        ConfigError: If there is no such device, launcher, or option of it.
        RunError: If a worker fails, or dies again and again, or the launcher cannot be used.
    """
    check_launch(launch)
    if workers != "auto" and (isinstance(workers, str) or workers < 1):
        raise ConfigError(
            f"So many workers cannot be started: {workers!r}. Say auto, or 1 or more."
        )
    said = {**getattr(run.study_file.launch, launch, {}), **(options or {})}
    task = Search(run.folder.resolve(), Path.cwd(), n_trials, batch)
    device = run.study_file.device
    with (
        heeding_interrupts(),
        closing(LAUNCHERS[launch](task, workers, device, said, task.folder)) as launcher,
    ):
        count = len(launcher.devices)
        if launcher.elsewhere:
            _warn_of_files(run)
        restarts = [0] * count
        running: dict[int, Worker] = {}
        try:
            for place in range(count):
                running[place] = launcher.start(place)
            with progress_bar(show_progress_bar=show_progress_bar) as progress:
                total = run.study_file.study.trials if n_trials is None else None
                task_bar = progress.add_task("Search", total=total, note=f"{count} workers")
                counted = -_COUNT
                while running:
                    time.sleep(_LOOK)
                    check_lost_interrupt()
                    for place, worker in list(running.items()):
                        if worker.is_alive():
                            continue
                        del running[place]
                        if _is_to_start_again(worker.end(), restarts, place):
                            running[place] = launcher.start(place)
                    now = time.monotonic()
                    if show_progress_bar and (not running or now - counted > _COUNT):
                        progress.update(task_bar, completed=_finished(run))
                        counted = now
        finally:
            _end(list(running.values()))


@dataclass(frozen=True)
class Search:
    """What each worker does, wherever it runs.

    Args:
        folder: Of the run.
        directory: Where the command was called, which relative paths in a study file's storage
            and artifacts mean.
        n_trials: As for `Run.search`.
        batch: As for `Run.search`.
    """

    folder: Path
    directory: Path
    n_trials: int | None
    batch: int | None

    def __call__(self, device: str) -> End:
        """Search on a device; an error whose message is for the user is handed back."""
        from optuna_stitch.run.folder import COPY
        from optuna_stitch.run.run import Run

        if not (self.folder / COPY).is_file():
            return End(
                failed=f"{platform.node()} does not see the run's folder {self.folder}. Workers "
                "on other machines need it on a file system that all of them mount: give such a "
                "place with `--run`."
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            if self.directory.is_dir():
                os.chdir(self.directory)
            with heeding_interrupts():
                run = Run.open(self.folder, device=device)
                run.search(n_trials=self.n_trials, batch=self.batch)
        except KeyboardInterrupt:
            return End(interrupted=True)
        except OptunaStitchError as error:
            return End(failed=str(error))
        finally:
            signal.signal(signal.SIGTERM, before)
        return End()


def _warn_of_files(run: Run) -> None:
    """Say what workers on other machines have to reach."""
    storage = run.storage_url
    files = f"They read the run in {run.folder.resolve()}"
    if storage.startswith(("sqlite", "journal")):
        files += f" and write to {storage}"
    console.print(
        f"{files}, which must be on a file system that their machines mount.",
        style="yellow",
        highlight=False,
        soft_wrap=True,
    )
    if storage.startswith("sqlite"):
        console.print(
            "SQLite's locks do not hold on many such file systems: take a `journal:///` there, or "
            "a database server (`postgresql://`, `grpc://`).",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _finished(run: Run) -> int:
    """How many trials are finished; none before a worker has begun the study."""
    try:
        trials = run.study.get_trials(deepcopy=False)
    except RunError:
        return 0
    return sum(trial.state.is_finished() for trial in trials)


def _is_to_start_again(end: End, restarts: list[int], place: int) -> bool:
    """Whether a worker that ended should be started again; raise where that would not help."""
    if end.interrupted:
        raise KeyboardInterrupt
    if end.failed is not None:
        raise RunError(f"{end.failed} (That says worker {place}; the others were ended.)")
    if end.died is None:
        return False
    restarts[place] += 1
    if restarts[place] > _MOST_RESTARTS:
        raise RunError(
            f"Worker {place} {end.died}, for the {restarts[place]}th time. Where memory is short, "
            "take fewer workers, a smaller `evaluation.memory`, or a smaller `batch`. Finished "
            "trials are kept."
        )
    console.print(
        f"Worker {place} {end.died}; it is started again.",
        style="yellow",
        highlight=False,
        soft_wrap=True,
    )
    return True


def _end(workers: Sequence[Worker]) -> None:
    """End workers that still run; they are asked first, so that they give their trials back."""
    for worker in workers:
        if worker.is_alive():
            worker.stop()
    deadline = time.monotonic() + _GRACE
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    for worker in workers:
        if worker.is_alive():
            with suppress(Exception):  # there is nothing more that we could do
                worker.kill()
