"""Files of finished trials, where optuna-dashboard shows them."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna_dashboard.artifact import get_artifact_path

from optuna_stitch.errors import ArtifactError, first_line

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

# Where the dashboard looks for artifacts of trials that are finished: those take none themselves.
_RECORD = "dashboard:artifacts:{trial_id}:{artifact_id}"
_RECORDS = re.compile(r"dashboard:artifacts:(?P<trial_id>\d+):(?P<artifact_id>.+)")
_TYPES = {"svg": "image/svg+xml", "csv": "text/csv"}


@dataclass(frozen=True)
class FinishedTrial:
    """A finished trial, as optuna-dashboard's functions take one.

    `optuna.Trial` would ask the sampler.

    Args:
        study: Which it is of.
        _trial_id: Its id in the storage.
    """

    study: optuna.Study
    _trial_id: int

    @staticmethod
    def numbered(study: optuna.Study, number: int) -> FinishedTrial:
        """The trial of a number."""
        find = study._storage.get_trial_id_from_study_id_trial_number
        return FinishedTrial(study, find(study._study_id, number))

    @property
    def storage(self) -> BaseStorage:
        """Where it is kept."""
        return self.study._storage

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self.storage.get_trial_number_from_id(self._trial_id)


class Shelf:
    """Our files of finished trials: each in the artifact store, with a record in the study.

    Files are named ``trial-<number>`` with an ending. One that is written again keeps its id.

    Args:
        study: Whose trials these are.
        store: Where the files are.
    """

    def __init__(self, study: optuna.Study, store: ArtifactStore) -> None:
        self.study = study
        self.store = store
        self._ids: dict[FinishedTrial, dict[str, str]] = {}
        for key, value in study._storage.get_study_system_attrs(study._study_id).items():
            found = _RECORDS.fullmatch(key)
            record = json.loads(value) if found else None  # null, where it was removed
            if not found or not record:
                continue
            trial = FinishedTrial(study, int(found["trial_id"]))
            for ending in _TYPES:
                if record["filename"] == _filename(trial, ending):
                    self._ids.setdefault(trial, {})[ending] = found["artifact_id"]

    def trials(self) -> list[FinishedTrial]:
        """The trials that have files."""
        return list(self._ids)

    def put(self, trial: FinishedTrial, ending: str, text: str) -> str:
        """Write a file of a trial.

        Args:
            trial: The trial.
            ending: Of the file's name, ``svg`` or ``csv``.
            text: What is in it.

        Returns:
            The address at which the dashboard has it.

        Raises:
            ArtifactError: If the store fails.
        """
        ids = self._ids.setdefault(trial, {})
        if ending not in ids:
            ids[ending] = str(uuid.uuid4())
            meta = {"filename": _filename(trial, ending), "mimetype": _TYPES[ending]}
            # the record first: what has none would never be removed
            self._record(
                trial, ids[ending], {"artifact_id": ids[ending], **meta, "encoding": None}
            )
        with _reached("written to"):
            self.store.write(ids[ending], io.BytesIO(text.encode()))
        path: str = get_artifact_path(trial, ids[ending])
        return path

    def clear(self, trial: FinishedTrial) -> None:
        """Remove the files of a trial.

        Raises:
            ArtifactError: If the store fails.
        """
        for artifact_id in self._ids.pop(trial).values():
            with _reached("removed from"), suppress(ArtifactNotFound):
                self.store.remove(artifact_id)
            self._record(trial, artifact_id, None)

    def _record(self, trial: FinishedTrial, artifact_id: str, meta: dict[str, Any] | None) -> None:
        key = _RECORD.format(trial_id=trial._trial_id, artifact_id=artifact_id)
        trial.storage.set_study_system_attr(self.study._study_id, key, json.dumps(meta))


def _filename(trial: FinishedTrial, ending: str) -> str:
    return f"trial-{trial.number}.{ending}"


@contextmanager
def _reached(what: str) -> Iterator[None]:
    """Turn what an artifact store raises into an error of ours."""
    try:
        yield
    except Exception as error:  # every store has exceptions of its own
        raise ArtifactError(
            f"The drawings of the front cannot be {what} the artifact store: "
            f"{first_line(error)}. Check that it can be reached and has room."
        ) from error
