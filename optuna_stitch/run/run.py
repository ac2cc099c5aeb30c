"""A run: one study file, one folder, and the stages from names to a front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from rich.console import Console

from optuna_stitch.data.load import Data, load_data
from optuna_stitch.evaluation.metrics import resolve_metrics
from optuna_stitch.report.dashboard import publish
from optuna_stitch.report.evaluate import evaluate_front
from optuna_stitch.report.front import Front, find
from optuna_stitch.report.tables import stitch_quality_table, summary
from optuna_stitch.run.build import build, make_parent, read_stitch_quality
from optuna_stitch.run.report import export_command, facts, write_results
from optuna_stitch.run.schema import StudyFile, smoke
from optuna_stitch.run.search import LATENCY, make_objective, make_study
from optuna_stitch.run.study_file import check_same_study, dump_study_file, load_study_file
from optuna_stitch.search.objective import Objective, resolve_constraints
from optuna_stitch.search.samplers.by_name import make_sampler
from optuna_stitch.search.study import content_of
from optuna_stitch.search.worker import optimize
from optuna_stitch.stitching.io import FILES, is_saved
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.storage.artifacts import download_files, open_artifact_store, upload_files
from optuna_stitch.storage.buffered import BufferedStorage
from optuna_stitch.storage.open import open_storage
from optuna_stitch.utils.errors import ArtifactError, RunError
from optuna_stitch.utils.files import write_text
from optuna_stitch.utils.progress import console


class Run:
    """The stages of a study file, each of which picks up where it was.

    Args:
        study_file: What to do.
        folder: Where everything is kept.
    """

    def __init__(self, study_file: StudyFile, folder: Path) -> None:
        self.study_file = study_file
        self.folder = folder
        self.name = study_file.study.name or folder.name
        self._data: Data | None = None
        self._storage: BufferedStorage | None = None

    @staticmethod
    def start(path: Path, folder: Path | None = None, *, tiny: bool = False) -> Run:
        """Begin, or go on with, the run of a study file.

        Args:
            path: The study file.
            folder: Where the run is kept; ``runs/<name of the file>`` if None.
            tiny: Whether to try the file out, with random weights and images; see `smoke`.

        Raises:
            ConfigError: If the study file is wrong.
            RunError: If the folder belongs to another study file.
        """
        study_file = load_study_file(path)
        if tiny:
            study_file = smoke(study_file)
        folder = folder or Path("runs") / f"{path.stem}{'-smoke' if tiny else ''}"
        copy = folder / "study.yaml"
        begun = folder.is_dir() and any(path.name != copy.name for path in folder.iterdir())
        if copy.is_file() and begun:
            check_same_study(study_file, load_study_file(copy), path, folder)
        elif begun:
            raise RunError(
                f"The folder {folder} has files in it but no study.yaml, so it is no run. Choose "
                "another with `--run`."
            )
        # checked before anything is made, so that a typing error costs nothing
        make_sampler(study_file.study.sampler.name, study_file.study.sampler.arguments, seed=0)
        resolve_metrics(study_file.study.objectives)
        resolve_constraints(study_file.study.constraints)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(copy, dump_study_file(study_file))
        return Run(study_file, folder)

    @staticmethod
    def open(folder: Path) -> Run:
        """Open an existing run.

        Raises:
            RunError: If the folder is no run.
        """
        copy = folder / "study.yaml"
        if not copy.is_file():
            raise RunError(f"{folder} is no run: it has no study.yaml. Start with a study file.")
        return Run(load_study_file(copy), folder)

    @property
    def data(self) -> Data:
        """The three splits."""
        if self._data is None:
            self._data = load_data(**self.study_file.data.model_dump())
        return self._data

    @property
    def storage_url(self) -> str:
        """Where the study is kept."""
        return self.study_file.study.storage.replace("{run}", self.folder.as_posix())

    @property
    def storage(self) -> BufferedStorage:
        """The storage, with its tables made.

        Raises:
            StudyError: If it cannot be reached.
        """
        if self._storage is None:
            self._storage = open_storage(self.storage_url)
        return self._storage

    def reach_storage(self) -> None:
        """Open the storage before work is done that would need it.

        Raises:
            StudyError: If it cannot be reached.
        """
        _ = self.storage

    def build(self, *, show_progress_bar: bool = False) -> Supernetwork:
        """Load or train the parents, match them, fit the stitches, save the supernetwork.

        Returns:
            The supernetwork: from the run's folder where it was built before, or from the
            artifact store where the study has begun elsewhere.
        """
        if is_saved(self.folder):
            return Supernetwork.load(self.folder)
        if self._joins():
            return Supernetwork.load(self.folder)
        return build(self.study_file, self.data, self.folder, show_progress_bar=show_progress_bar)

    def show_stitch_quality(self, to: Console) -> None:
        """Print the quality report of the fit."""
        stitch_qualities = read_stitch_quality(self.folder)
        to.print(stitch_quality_table(stitch_qualities))
        to.print(summary(stitch_qualities))

    def search(
        self,
        supernetwork: Supernetwork,
        *,
        n_trials: int | None = None,
        batch: int | None = None,
        show_progress_bar: bool = False,
    ) -> optuna.Study:
        """Search until the study has as many trials as its file says.

        Args:
            supernetwork: What `build` returned.
            n_trials: How many trials this worker shall add, instead.
            batch: How many it judges together, if not as the study file says.
            show_progress_bar: Whether to show a progress bar.
        """
        config = self.study_file.study
        objective = self._objective(supernetwork)
        study = self._study(objective)
        optimize(
            study,
            objective,
            n_trials=n_trials,
            until=config.trials if n_trials is None else None,
            batch=batch or config.batch,
            grace=config.grace,
            show_progress_bar=show_progress_bar,
        )
        return study

    def report(
        self,
        supernetwork: Supernetwork,
        *,
        show_progress_bar: bool = False,
    ) -> Front:
        """Evaluate the front on the test split, and write tables, pictures and the report.

        What optuna-dashboard shows of the study is written into its storage.

        Args:
            supernetwork: What `build` returned.
            show_progress_bar: Whether to show a progress bar.
        """
        study, front = self.judge(supernetwork, show_progress_bar=show_progress_bar)
        figures = write_results(
            front,
            study,
            supernetwork,
            self.data,
            self.folder,
            title=f"{self.name}: {supernetwork.a.name} × {supernetwork.b.name}",
            facts=facts(self.study_file, self.data, supernetwork, study, self.storage_url),
        )
        left = publish(
            study,
            front,
            supernetwork,
            self.artifact_store,
            figures=figures,
            summary=find(front).sentence,
            command=export_command(self.folder),
        )
        if left:
            console.print(f"Notes that were edited in the dashboard stay: {', '.join(left)}.")
        return front

    def judge(
        self,
        supernetwork: Supernetwork,
        *,
        only: Sequence[int] | None = None,
        show_progress_bar: bool = False,
    ) -> tuple[optuna.Study, Front]:
        """Evaluate the front, or some trials, on the test split, beside the baselines.

        Args:
            supernetwork: What `build` returned.
            only: Numbers of trials; the front's, if None.
            show_progress_bar: Whether to show a progress bar.

        Returns:
            The study, and what was found.
        """
        objective = self._objective(supernetwork)
        study = self._study(objective)
        front = evaluate_front(
            study,
            objective,
            self.data.test,
            others=[make_parent(other, self.data) for other in self.study_file.report.baselines],
            only=only,
            show_progress_bar=show_progress_bar,
        )
        return study, front

    def _objective(self, supernetwork: Supernetwork) -> Objective:
        return make_objective(
            self.study_file, supernetwork, self.data.val, self.storage, self.folder
        )

    def _study(self, objective: Objective) -> optuna.Study:
        warm = self.study_file.study.start.front_of
        begins = warm is not None and content_of(self.name, self.storage) is None
        return make_study(
            self.study_file,
            self.name,
            objective,
            self.storage,
            stitch_qualities=read_stitch_quality(self.folder),
            front=Run.open(warm)._front() if warm is not None and begins else (),
            prepare=self._share,
        )

    def _front(self) -> list[FrozenTrial]:
        """The best trials of this run, for another to start from."""
        if content_of(self.name, self.storage) is None:
            raise RunError(f"{self.folder} has no study whose front another could start from.")
        return optuna.load_study(study_name=self.name, storage=self.storage).best_trials

    def _joins(self) -> bool:
        """Fetch the supernetwork of a study that was begun elsewhere; whether there is one."""
        content = content_of(self.name, self.storage)
        if content is None:
            return False
        study = optuna.load_study(study_name=self.name, storage=self.storage)
        download_files(study, self.artifact_store, self.folder)
        found = Supernetwork.load(self.folder).content_hash()
        if found != content:
            raise ArtifactError(
                f"The artifact store has the supernetwork {found}, but the study {self.name!r} "
                f"was made for {content}. Remove {self.folder} and see who wrote to the store."
            )
        return True

    def _share(self, study: optuna.Study) -> None:
        """Put what another worker needs into the artifact store; the description last."""
        paths = [self.folder / name for name in ("fit.csv", LATENCY, *FILES)]
        upload_files(study, self.artifact_store, [path for path in paths if path.exists()])

    @property
    def artifact_store(self) -> Any:
        """Where the study's files are kept: the supernetwork, drawings."""
        place = self.study_file.study.artifacts.replace("{run}", self.folder.as_posix())
        return open_artifact_store(place)
