"""The folder of a run, as it is read: study file, data, storage, study, supernetwork, front."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import torch

from optuna_stitch.data.load import Data, load_data
from optuna_stitch.data.pair import DataPair
from optuna_stitch.evaluation.stitch_quality import StitchQuality
from optuna_stitch.report.evaluate import evaluate_front
from optuna_stitch.report.front import Front
from optuna_stitch.run.build import make_parent, read_stitch_quality
from optuna_stitch.run.finish import kept_finished
from optuna_stitch.run.schema import StudyFile
from optuna_stitch.run.search import make_objective
from optuna_stitch.run.study_file import dump_study_file
from optuna_stitch.search.study import CONTENT, load_study
from optuna_stitch.stitching.io import is_saved
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.storage.artifacts import download_files, open_artifact_store
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.device import device_name, resolve_device
from optuna_stitch.utils.errors import ArtifactError, ConfigError, RunError, StudyNotFoundError
from optuna_stitch.utils.files import is_writable, write_text
from optuna_stitch.utils.progress import console

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

# The study file of a run, with every default, in its folder.
COPY = "study.yaml"


class RunFolder:
    """What a run's folder and its storage hold; `Run` has the stages that fill them.

    Before there is a study, `study`, `supernetwork` and `evaluate_front` fail, and leave nothing
    behind.

    Args:
        study_file: What to do.
        folder: Where everything is kept.

    Attributes:
        study_file: What to do.
        folder: Where everything is kept.
    """

    def __init__(self, study_file: StudyFile, folder: str | Path) -> None:
        self.study_file = study_file
        self.folder = Path(folder).expanduser()
        self._called = shlex.quote(str(folder))
        self._storage: BufferedStorage | None = None
        self._supernetwork: Supernetwork | None = None

    @cached_property
    def name(self) -> str:
        """Name of the study: what `study.yaml` says, wherever the folder is moved to.

        Where a study file does not name it, a new one is called as its folder is.
        """
        named = self.study_file.study.name
        if named is None and "{run}" in self.study_file.study.storage:
            # runs of earlier versions were called as their folder was, and may have moved since
            try:
                names = optuna.get_all_study_names(self._open_storage(create=False))
            except StudyNotFoundError:
                names = []
            named = names[0] if len(names) == 1 else None
        return named or self.folder.resolve().name or "study"

    def check_writable(self) -> None:
        """Raise before anything is computed that cannot be kept.

        Raises:
            RunError: If the folder is there and read-only.
        """
        if self.folder.is_dir() and not is_writable(self.folder):
            raise RunError(
                f"The folder {self.folder} is read-only. Copy it to where you may write; "
                "`export` and `compare` read it where it is, and so does `Run.evaluate_front`."
            )

    def write_study_file(self) -> None:
        """Keep the study file in the folder, with every default and the study's name."""
        filled = self.study_file.model_copy(deep=True)
        filled.study.name = self.name
        write_text(self.folder / COPY, dump_study_file(filled))

    @cached_property
    def device(self) -> torch.device:
        """Where everything is computed.

        Raises:
            ConfigError: If this machine has no such device.
        """
        device = resolve_device(self.study_file.device)
        if device.type != "cpu":
            console.print(f"Computing on {device_name(device)}.", highlight=False)
        return device

    @cached_property
    def data(self) -> Data | DataPair:
        """The three splits; of two jobs, those of each.

        Raises:
            DataError: If they cannot be read, or are too small.
        """
        config = self.study_file.data
        if not config.two_jobs:
            data = load_data(**config.model_dump(exclude={"a", "b"}))
            return DataPair(data, data) if self.study_file.two_jobs else data
        a, b = (load_data(**task.model_dump(exclude={"a", "b"})) for task in config.tasks.values())
        return DataPair(a, b)

    @property
    def storage_url(self) -> str:
        """Where the study is kept.

        Raises:
            ConfigError: If it names a variable that the environment does not have.
        """
        return self._place(self.study_file.study.storage)

    @property
    def storage(self) -> BufferedStorage:
        """The storage of the study, made where there is none.

        Raises:
            StudyError: If it cannot be reached.
        """
        return self._open_storage(create=True)

    def _open_storage(self, *, create: bool) -> BufferedStorage:
        if self._storage is None:
            self._storage = open_storage(self.storage_url, create=create)
        return self._storage

    @property
    def artifact_store(self) -> ArtifactStore:
        """Where the study's files are kept: the supernetwork, drawings."""
        return open_artifact_store(self._place(self.study_file.study.artifacts))

    def _place(self, said: str) -> str:
        """What a study file says of a place, with the run's folder and the environment in it."""
        for name in set(re.findall(r"\$\{(\w+)\}", said)):
            if name not in os.environ:
                raise ConfigError(
                    f"The study file says {said!r}, but the environment has no {name}: set it, as "
                    f"in `export {name}=...`."
                )
            said = said.replace(f"${{{name}}}", os.environ[name])
        return said.replace("{run}", self.folder.as_posix())

    @property
    def study(self) -> optuna.Study:
        """The study, to read it.

        Raises:
            RunError: If no search has begun yet.
            StudyError: If its storage cannot be reached.
        """
        try:
            return load_study(study_name=self.name, storage=self._open_storage(create=False))
        except StudyNotFoundError:
            raise RunError(
                f"{self.folder} has no study yet; run `optuna-stitch search {self._called}` first."
            ) from None

    @property
    def supernetwork(self) -> Supernetwork:
        """The supernetwork that was built; where the study has begun elsewhere, from there.

        Raises:
            RunError: If none was built yet.
            ArtifactError: If it is broken, or cannot be fetched.
        """
        if self._supernetwork is None:
            if not is_saved(self.folder) and not self._fetch():
                raise RunError(
                    f"{self.folder} has no supernetwork yet; run `optuna-stitch build "
                    f"{self._called}` first."
                )
            self._supernetwork = Supernetwork.load(self.folder).to(self.device)
        return self._supernetwork

    def _fetch(self) -> bool:
        """Fetch the supernetwork of a study that has begun elsewhere; whether there is one."""
        try:
            study = self.study
        except RunError:
            return False
        self.write_study_file()
        download_files(study, self.artifact_store, self.folder)
        found, wanted = Supernetwork.load(self.folder).content_hash(), study.user_attrs[CONTENT]
        if found != wanted:
            raise ArtifactError(
                f"The artifact store has the supernetwork {found}, but the study {self.name!r} "
                f"was made for {wanted}. Remove {self.folder} and see who wrote to the store."
            )
        return True

    @property
    def stitch_quality(self) -> list[StitchQuality]:
        """How well each stitch was fitted, and whether the search may use it; see `build`."""
        return read_stitch_quality(self.folder)

    def evaluate_front(
        self, *, only: Sequence[int] | None = None, show_progress_bar: bool = False
    ) -> Front:
        """Evaluate the front on the test split, beside the baselines.

        Args:
            only: Numbers of trials to evaluate; the front's, if None.
            show_progress_bar: Whether to show a progress bar.

        Raises:
            RunError: If no search has begun yet.
            StudyError: If no trial is complete, or one of ``only`` is not.
            DataError: If the test split has no labels, or a baseline tells other classes apart.
            ArtifactError: If a finished network is broken, or of another supernetwork.
        """
        study = self.study  # before a supernetwork is fetched
        # without a database for results, into which it would write
        objective = make_objective(self.study_file, self.supernetwork, self.data.val, self.folder)
        data, others = self.data, []
        if isinstance(data, Data):  # study files of two jobs name none
            named = self.study_file.report.baselines
            others = [make_parent(other, data, self.device) for other in named]
        return evaluate_front(
            study,
            objective,
            data.test,
            train=data.train if isinstance(data, DataPair) else None,
            others=others,
            only=only,
            finished=kept_finished(self, only),
            show_progress_bar=show_progress_bar,
        )
