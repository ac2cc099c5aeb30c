"""A storage in front of another, which waits where the other cannot be reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from optuna_stitch.database import PATIENCE, patiently

T = TypeVar("T")


class PatientStorage(BaseStorage):
    """Pass on what concerns studies; trials are left to subclasses.

    Args:
        backend: Any storage of Optuna's.
        patience: Seconds for which a storage that went away is tried again.
    """

    def __init__(self, backend: BaseStorage, *, patience: float = PATIENCE) -> None:
        self.backend = backend
        self.patience = patience

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._call(lambda: self.backend.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._call(lambda: self.backend.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._call(lambda: self.backend.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(lambda: self.backend.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """See `optuna.storages.BaseStorage`."""
        return self._call(self.backend.get_all_studies)

    def remove_session(self) -> None:
        """See `optuna.storages.BaseStorage`."""
        self.backend.remove_session()

    def _call(self, call: Callable[[], T]) -> T:
        return patiently(call, patience=self.patience)
