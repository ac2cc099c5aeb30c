"""What several commands take: a study file or a run, and how it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer
import yaml

from optuna_stitch.run.schema import check_launch
from optuna_stitch.run.study_file import load_study_file, load_yaml
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.progress import console

if TYPE_CHECKING:
    from optuna_stitch.run.run import Run


def user_path(text: str) -> Path:
    """A path as it is typed, where ``~`` is the user's folder, also behind ``--option=``.

    Args:
        text: What was typed.
    """
    return Path(text).expanduser()


StudyArgument = Annotated[
    Path,
    typer.Argument(
        help="A study file, or the folder of a run.", metavar="STUDY", parser=user_path
    ),
]

FolderOption = Annotated[
    # typer evaluates this at run time, on Python 3.10 too
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--run",
        help="Folder of the run; runs/<name of the study file>, if absent.",
        metavar="PATH",
        parser=user_path,
    ),
]


DeviceOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--device",
        help="Where to compute: auto, cpu, cuda, cuda:1, mps or xpu; as the study file says, if "
        "absent.",
    ),
]


def worker_count(value: str | None) -> int | Literal["auto"] | None:
    """How many workers are asked for.

    Args:
        value: What was given.
    """
    if value is None or value == "auto":
        return value  # type: ignore[return-value]
    if not (value.isdecimal() and int(value) > 0):
        raise ConfigError(f"`--workers {value}` is neither auto nor a number from 1.")
    return int(value)


def launch_options(launch: str | None, values: list[str] | None) -> dict[str, Any]:
    """Options of a launcher by their names.

    Args:
        launch: Which one, if one was named.
        values: What was given: ``time=240``.

    Raises:
        ConfigError: If there is no such launcher, or an option is no key with a value.
    """
    if launch is not None:
        check_launch(launch)
    options: dict[str, Any] = {}
    for value in values or ():
        key, equals, said = value.partition("=")
        if not (key and equals):
            raise ConfigError(f"`--launch-option {value}` is no `key=value`.")
        try:
            options[key] = load_yaml(said)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"`--launch-option {value}`: {said!r} is no value. Put texts that look otherwise "
                "into quotes."
            ) from error
    return options


def start_run(
    study: Path,
    folder: Path | None,
    *,
    smoke: bool = False,
    device: str | None = None,
    elsewhere: bool = False,
) -> Run:
    """Begin the run of a study file, or go on with it or with the run of a folder.

    Args:
        study: Either of them.
        folder: Where the run is kept, if not in its usual place.
        smoke: Whether to try the study file out; see `Run.start`.
        device: Where to compute, in place of what the study file says.
        elsewhere: Whether that is on other machines; see `Run.start`.
    """
    run = _import_run(study)
    if study.is_dir():
        if smoke:
            raise ConfigError(
                f"`--smoke` tries a study file out, and {study} is the folder of a run. Name the "
                "study file."
            )
        return run.open(study, folder, device=device)
    return run.start(study, folder, smoke=smoke, device=device, elsewhere=elsewhere)


def open_run(study: Path, folder: Path | None, *, device: str | None = None) -> Run:
    """Open a run to read it; see `Run.open`.

    Args:
        study: Its folder, or its study file.
        folder: Where the run is kept, if not in its usual place.
        device: Where to compute, in place of what the study file says.
    """
    return _import_run(study).open(study, folder, device=device)


def check_study_file(study: Path) -> None:
    """Raise if a study file is wrong, before torch and timm are imported.

    Args:
        study: A study file, or the folder of a run, which is not looked at.

    Raises:
        ConfigError: If it is wrong.
    """
    if not study.is_dir():
        load_study_file(study)


def _import_run(study: Path) -> type[Run]:
    check_study_file(study)
    with console.status("Loading torch and timm"):
        import optuna

        from optuna_stitch.run.run import Run

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Run
