"""The supernetwork of a study in Optuna's artifact store, from which any worker fetches it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.artifacts import (
    Backoff,
    Boto3ArtifactStore,
    FileSystemArtifactStore,
    download_artifact,
    upload_artifact,
)
from optuna.artifacts.exceptions import ArtifactNotFound

from optuna_stitch.utils.errors import ArtifactError, first_line
from optuna_stitch.utils.files import write_whole

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_S3 = "s3://"

# The study's attribute that holds, by file name, the ids of what was uploaded.
_FILES = "supernetwork_files"


def open_artifact_store(place: str) -> ArtifactStore:
    """Open an artifact store.

    Args:
        place: A folder, which is made if it does not exist, or ``s3://bucket``. For S3 the keys,
            the region and the endpoint come from the environment, as boto3 has it.

    Returns:
        A store for `upload_files`, `download_files` and Optuna's own functions.

    Raises:
        ArtifactError: If boto3 is not installed.
    """
    if not place.startswith(_S3):
        folder = Path(place).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(str(folder))
    try:
        import boto3  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            f"The artifact store {place} needs boto3: pip install 'optuna-stitch[s3]'."
        ) from error
    bucket = place.removeprefix(_S3).strip("/")
    return Backoff(Boto3ArtifactStore(bucket), max_retries=5, min_delay=0.2)


def upload_files(study: optuna.Study, store: ArtifactStore, paths: Iterable[Path]) -> None:
    """Upload files of a study, for `download_files`.

    Args:
        study: Whose files; their ids become an attribute of it.
        store: Where to.
        paths: The files, each with a name of its own.

    Raises:
        ArtifactError: If the store does not take them.

    Example:
        >>> store = open_artifact_store(str(tmp_path / "artifacts"))
        >>> _ = (tmp_path / "fit.csv").write_text("stitch,error")
        >>> upload_files(study, store, [tmp_path / "fit.csv"])
        >>> download_files(study, store, tmp_path / "worker")
        >>> (tmp_path / "worker" / "fit.csv").read_text()
        'stitch,error'
    """
    try:
        ids = {
            path.name: upload_artifact(
                study_or_trial=study, file_path=str(path), artifact_store=store
            )
            for path in paths
        }
    except Exception as error:  # every store has exceptions of its own
        raise ArtifactError(
            f"The supernetwork cannot be put into the artifact store: {first_line(error)}. Check "
            "that it can be reached and has room."
        ) from error
    study.set_user_attr(_FILES, ids)


def download_files(study: optuna.Study, store: ArtifactStore, folder: Path) -> None:
    """Download the files of a study, whole or not at all.

    Args:
        study: One for which `upload_files` was called.
        store: The same store.
        folder: Where to put them.

    Raises:
        ArtifactError: If there are none, or the store fails.
    """
    files = study.user_attrs.get(_FILES)
    if not files:
        raise ArtifactError(
            f"The study {study.study_name!r} has no supernetwork in an artifact store. Copy the "
            "run's folder to this machine, or search where it is."
        )
    for name, artifact_id in files.items():
        download = partial(download_artifact, artifact_store=store, artifact_id=artifact_id)
        try:
            write_whole(folder / Path(name).name, lambda to: download(file_path=to))  # noqa: B023
        except ArtifactNotFound as error:
            raise ArtifactError(
                f"The artifact store does not have {name} of the study {study.study_name!r}. "
                "`study: {artifacts: ...}` must name the place that the study was begun with, "
                "and this machine must reach it."
            ) from error
        except Exception as error:
            raise ArtifactError(
                f"{name} cannot be read from the artifact store: {first_line(error)}."
            ) from error
