"""The command line: parse, call, print."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.markup import escape

from optuna_stitch.cli.latency import app as latency
from optuna_stitch.cli.networks import advise, init, inspect, zoo
from optuna_stitch.cli.options import (
    DeviceOption,
    FolderOption,
    StudyArgument,
    check_study_file,
    launch_options,
    open_run,
    start_run,
    worker_count,
)
from optuna_stitch.cli.results import compare, export, pick
from optuna_stitch.utils.errors import ConfigError, OptunaStitchError
from optuna_stitch.utils.progress import console, results

if TYPE_CHECKING:
    from optuna_stitch.report.front import Front
    from optuna_stitch.run.run import Run

# Commands import what they need themselves: torch and timm take seconds, which neither the help
# nor a wrong key in a study file should cost.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Stitch trained networks into one supernetwork and search it with Optuna.",
)

for command in (init, zoo, inspect, advise):
    app.command()(command)


SmokeOption = Annotated[
    bool,
    typer.Option("--smoke", help="Try the study file out, with random weights and few images."),
]


def main() -> None:
    """Run the command line; an expected error is one message and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # what a terminal has no sign for is shown by its number, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    # before torch is loaded: threads that spin while they wait for one that is descheduled keep
    # it from its core, so that a busy machine stalls all of them
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except OptunaStitchError as error:
        console.print(f"[red]Error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        text = escape(
            f"{error.strerror or error}{place}. See that it may be read and written, or name "
            "another place."
        )
        console.print(f"[red]Error:[/red] {text}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        from optuna_stitch.storage.retry import is_storage_error, reason, way_out

        if not is_storage_error(error):  # wherever the study is read
            raise
        again = "Nothing that is finished is lost; run the same command again to go on."
        text = escape(f"{reason(error)}. {way_out(error, again)}")
        console.print(
            f"[red]Error:[/red] The storage failed: {text}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(2)


@app.command()
def run(
    study: StudyArgument,
    folder: FolderOption = None,
    smoke: SmokeOption = False,
    device: DeviceOption = None,
) -> None:
    """Build, search, finish what the study file says, and report.

    After an interruption it goes on where it was.
    """
    with _resumable():
        started = start_run(study, folder, smoke=smoke, device=device)
        started.build(show_progress_bar=True)
        started.search(show_progress_bar=True)
        if started.study_file.finish is not None and started.study_file.finish.trials:
            started.finish(show_progress_bar=True)
        _show(started, started.report(show_progress_bar=True))


@app.command()
def build(study: StudyArgument, folder: FolderOption = None, device: DeviceOption = None) -> None:
    """Load or train the parents, match them, fit the stitches, save the supernetwork.

    Several processes share the images under
    `torchrun --nproc-per-node 2 -m -- optuna_stitch build STUDY`.
    """
    check_study_file(study)
    from optuna_stitch.report.tables import stitch_quality_sentence, stitch_quality_table
    from optuna_stitch.utils.distributed import barrier, process_group, rank

    with _resumable(), process_group():
        if rank() > 0:
            barrier()  # the first one makes the folder
        started = start_run(study, folder, device=device)
        if rank() == 0:
            barrier()
        supernetwork = started.build(show_progress_bar=rank() == 0)
        if rank() == 0:
            out = results()
            out.print(stitch_quality_table(started.stitch_quality))
            out.print(stitch_quality_sentence(started.stitch_quality))
            out.print(
                f"{supernetwork.title}: {len(supernetwork.matches)} "
                f"matches, {len(supernetwork.switches)} stitches, in {escape(str(started.folder))}"
            )


@app.command()
def search(
    study: StudyArgument,
    folder: FolderOption = None,
    trials: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Trials that this worker adds; up to the study file's number, if absent.", min=1
        ),
    ] = None,
    batch: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Trials evaluated together; the study file's number, if absent.", min=1),
    ] = None,
    device: DeviceOption = None,
    workers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Worker processes: a number, or auto for one per accelerator, or per four cores; "
            "one in this process, if absent.",
            metavar="N|auto",
        ),
    ] = None,
    launch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Who starts the workers: this machine (local), a Ray cluster, or Slurm.",
            metavar="local|ray|slurm",
        ),
    ] = None,
    launch_option: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="An option of Ray's tasks (num_gpus=0.5), or of Slurm's sbatch (partition=gpu); "
            "any number of times.",
            metavar="KEY=VALUE",
        ),
    ] = None,
) -> None:
    """Search for subnetworks, building first where that was not done.

    Start it any number of times, here or on other machines: all that reach the study's storage
    work on the same study. One that joins fetches the supernetwork from the artifact store.
    """
    count, options = worker_count(workers), launch_options(launch, launch_option)
    with _resumable():
        started = start_run(study, folder, device=device, elsewhere=launch not in (None, "local"))
        found = started.search(
            n_trials=trials,
            batch=batch,
            workers=count,
            launch=launch,
            launch_options=options,
            show_progress_bar=True,
        )
    finished = sum(trial.state.is_finished() for trial in found.get_trials(deepcopy=False))
    results().print(
        f"{finished} trials; next: optuna-stitch report {shlex.quote(str(started.folder))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command()
def finish(
    study: StudyArgument,
    trial: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Number of a trial; may be repeated.", min=0),
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="All stitched networks of the study's front.")
    ] = False,
    epochs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Passes over the train split at most; 0 to polish only.", min=0),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="How long a network may take, about."),
    ] = None,
    stitches: Annotated[
        bool, typer.Option("--stitches", help="Train stitches and what follows them, not all.")
    ] = False,
    controls: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(help="Whether parents are finished likewise, to compare with."),
    ] = None,
    student: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Another network to finish likewise, by timm's name, from random weights; may be "
            "repeated.",
            metavar="NAME",
        ),
    ] = None,
    folder: FolderOption = None,
    device: DeviceOption = None,
) -> None:
    """Train found networks to answer as the parents do, and parents likewise, to compare with.

    What is not said here is as `finish:` in the study file says. Several processes share each
    batch under `torchrun --nproc-per-node 2 -m -- optuna_stitch finish STUDY --trial 14`.
    """
    check_study_file(study)
    if front and trial:
        raise ConfigError("Name trials by `--trial`, or all of the front by `--front`, not both.")
    from optuna_stitch.utils.distributed import process_group, rank

    said: dict[str, Any] = {
        "epochs": epochs,
        "minutes": minutes,
        "trains": "stitches" if stitches else None,
    }
    with _resumable(), process_group():
        opened = open_run(study, folder, device=device)
        finished = opened.finish(
            "front" if front else trial,
            controls=controls,
            students=student,
            show_progress_bar=True,
            **{name: value for name, value in said.items() if value is not None},
        )
        if rank() == 0:
            place = shlex.quote(str(opened.folder))
            number = next(iter(finished))
            results().print(
                f"{len(finished)} finished; next: optuna-stitch report {place}, and "
                f"optuna-stitch export {place} --trial {number} --finished --to PATH",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


@app.command()
def report(study: StudyArgument, folder: FolderOption = None, device: DeviceOption = None) -> None:
    """Evaluate the front on the test split and write the report."""
    with _resumable():
        opened = open_run(study, folder, device=device)
        _show(opened, opened.report(show_progress_bar=True))


@app.command()
def demo(
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Whether to open the page.")
    ] = True,
) -> None:
    """Look at a finished study: two small networks on digits, nothing to configure.

    The first time it trains, stitches and searches them in the cache folder, in a minute or two.
    """
    with console.status("Loading torch and timm"):
        import webbrowser

        import optuna

        from optuna_stitch.run.demo import demo as run_demo

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _resumable():
        finished, page = run_demo(show_progress_bar=True)
    opened = browser and webbrowser.open(page.resolve().as_uri())
    quoted = shlex.quote(str(finished.folder))
    results().print(
        f"{'Opened in the browser' if opened else 'Open in a browser'}: {page}\n"
        f"What was found is in {finished.folder / 'report.md'}\n"
        f"Pick a network: optuna-stitch pick {quoted} --max-macs 3e6\n"
        f"Look at every trial: optuna-stitch dashboard {quoted}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


# what comes after a report; the bounds of `pick` are any figures
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(pick)

app.command()(export)

app.command()(compare)

app.add_typer(latency, name="latency")


@app.command()
def dashboard(
    study: StudyArgument,
    folder: FolderOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
) -> None:
    """Open optuna-dashboard on a run's study.

    It has to be at the root of its host: a reverse proxy must give it a name or port of its own.
    """
    opened = open_run(study, folder)
    name = opened.study.study_name
    from optuna_stitch.report.dashboard_server import serve_dashboard

    console.print(f"The study {name!r} is at http://{host}:{port}/ (stop with Ctrl-C)")
    serve_dashboard(opened.storage, artifact_store=opened.artifact_store, host=host, port=port)


@app.command()
def proxy(
    study: StudyArgument,
    folder: FolderOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 13000,
) -> None:
    """Serve a study's storage to workers elsewhere, by Optuna's gRPC proxy."""
    # made where there is none, since workers elsewhere may be the first to search
    storage = start_run(study, folder).storage
    from optuna_stitch.storage.open import serve_proxy

    console.print(f"Workers reach the storage as grpc://{host}:{port} (stop with Ctrl-C)")
    serve_proxy(storage, host=host, port=port)


def _show(reported: Run, front: Front) -> None:
    from optuna_stitch.report.tables import rich_table

    out = results()
    out.print(rich_table(front))
    out.print(front.headline, highlight=False)
    folder = reported.folder
    out.print(
        f"\nThe report is {folder}/report.md, the plot {folder}/front.html\n"
        f"Look at every trial: optuna-stitch dashboard {shlex.quote(str(folder))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _resumable() -> Iterator[None]:
    """Turn Ctrl-C into a hint and the shell's own exit code.

    SIGTERM, which schedulers send before they end a process, counts as Ctrl-C: trials are given
    back.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print("Interrupted. Run the same command again to go on where it was.")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
