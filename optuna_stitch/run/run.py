"""A run: one study file, one folder, and the stages from names to a front."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna

from optuna_stitch.evaluation.latency import Latencies
from optuna_stitch.evaluation.metrics import (
    check_sides,
    metrics_of_one_job,
    resolve_metrics,
)
from optuna_stitch.report.dashboard import publish
from optuna_stitch.report.front import Front
from optuna_stitch.report.picking import Pick
from optuna_stitch.run.build import build
from optuna_stitch.run.export import export_trial
from optuna_stitch.run.finish import Trials, finish_trials
from optuna_stitch.run.folder import COPY, RunFolder
from optuna_stitch.run.latency import export_latency, import_latency
from optuna_stitch.run.launchers import Workers
from optuna_stitch.run.report import export_command, pick_network, write_results, written
from optuna_stitch.run.schema import (
    FinishConfig,
    ParentConfig,
    StudyFile,
    check_launch,
    smoke_test,
)
from optuna_stitch.run.search import (
    LATENCY,
    known_genotypes,
    make_objective,
    sampler_for,
    trackers_of,
)
from optuna_stitch.run.study_file import check_same_study, load_study_file
from optuna_stitch.run.workers import search_together
from optuna_stitch.search.objective import resolve_constraints
from optuna_stitch.search.samplers.by_name import check_sampler, make_sampler
from optuna_stitch.search.study import create_study
from optuna_stitch.search.worker import optimize
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.stitching.io import FILES, is_saved
from optuna_stitch.stitching.settings import Finishing
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.storage.artifacts import upload_files
from optuna_stitch.storage.open import result_cache_engine
from optuna_stitch.utils.errors import ConfigError, RunError
from optuna_stitch.utils.machine import own_threads
from optuna_stitch.utils.progress import console
from optuna_stitch.utils.settings import settings_of


class Run(RunFolder):
    """A study file, the folder of its results, and the stages between them.

    Each stage goes on where it was. `build` and `search` write; what only reads (`study`,
    `supernetwork`, `evaluate_front`, `report`, `export`) fails before there is a study, and leaves
    nothing behind then.

    Args:
        study_file: What to do.
        folder: Where everything is kept; `start` and `open` check it.

    Attributes:
        study_file: What to do.
        folder: Where everything is kept.

    Example:
        >>> file = tmp_path / "tiny.yaml"
        >>> _ = file.write_text('''
        ... parents:
        ...   a: {network: test_resnet, input_size: 32, train: {epochs: 1}}
        ...   b: {network: test_efficientnet, input_size: 32, train: {epochs: 1}}
        ... data: {train: {images: 30}, val: {images: 30}, test: {images: 30}}
        ... stitching: {points: blocks}
        ... study: {objectives: [accuracy, macs], trials: 6, start: {population: 6}}
        ... ''')
        >>> run = st.Run.start(file, tmp_path / "tiny")
        >>> supernetwork = run.build()
        >>> study = run.search()
        >>> front = run.report()
        >>> network = run.export(study.best_trials[0].number, tmp_path / "network")
        >>> st.Run.open(tmp_path / "tiny").study.best_trials == study.best_trials
        True
    """

    @staticmethod
    def start(
        study_file: str | Path,
        folder: str | Path | None = None,
        *,
        smoke: bool = False,
        device: str | None = None,
        elsewhere: bool = False,
    ) -> Run:
        """Begin the run of a study file, or go on with it.

        Args:
            study_file: Path of the study file.
            folder: Where the run is kept; ``runs/<name of the file>`` if None.
            smoke: Whether to try the file out, with random weights and images; see `smoke_test`.
            device: Where to compute, in place of what the study file says; see `resolve_device`.
            elsewhere: Whether that is on other machines, so that this one need not have it.

        Raises:
            ConfigError: If the study file is wrong, or there is no such device.
            RunError: If the folder belongs to another study file, or is read-only.
        """
        run = Run._of_file(Path(study_file).expanduser(), folder, smoke)._on(device)
        if not elsewhere:
            _ = run.device  # before anything is made
        run.check_writable()
        run.write_study_file()
        return run

    @staticmethod
    def open(
        run: str | Path, folder: str | Path | None = None, *, device: str | None = None
    ) -> Run:
        """Open a run to read it; nothing is written.

        Args:
            run: The run's folder, or the path of its study file.
            folder: Where the run of a study file is kept; ``runs/<name of the file>`` if None.
            device: As for `start`.

        Raises:
            ConfigError: If the study file is wrong.
            RunError: If the folder is no run, or belongs to another study file, or there are two.
        """
        path = Path(run).expanduser()
        if path.is_file():
            return Run._of_file(path, folder, smoke=False)._on(device)
        if folder is not None and path.is_dir():
            raise RunError(
                f"Both {path} and {folder} (`--run`) name a folder. Name a study file and the "
                "folder of its run, or the folder alone."
            )
        if not (path / COPY).is_file():
            raise RunError(f"{path} is no run: it has no {COPY}. Start with a study file.")
        return Run(load_study_file(path / COPY), path)._on(device)

    def _on(self, device: str | None) -> Run:
        """The same run, on another device than the study file says."""
        if device is not None:
            self.study_file.device = device
        return self

    @staticmethod
    def _of_file(path: Path, folder: str | Path | None, smoke: bool) -> Run:
        study_file = load_study_file(path)
        if smoke:
            study_file = smoke_test(study_file)
        usual = Path("runs") / f"{path.stem}{'-smoke' if smoke else ''}"
        place = Path(folder or usual).expanduser()
        copy = place / COPY
        begun = place.is_dir() and any(entry.name != COPY for entry in place.iterdir())
        if copy.is_file():
            kept = load_study_file(copy)
            # what the run is called, it was called at its start
            study_file.study.name = study_file.study.name or kept.study.name
            if begun:
                check_same_study(study_file, kept, path, place)
        elif begun:
            raise RunError(
                f"The folder {place} has files in it but no {COPY}, so it is no run. Choose "
                "another with `--run`."
            )
        # checked before anything is made, so that a typing error costs nothing
        _check_sampler(study_file)
        trackers_of(study_file, place)
        objectives = resolve_metrics(study_file.study.objectives)
        bounds = resolve_constraints(study_file.study.constraints)
        figures = [*objectives, *(bound.metric for bound in bounds)]
        if study_file.study.steering is not None and objectives[0].direction != "maximize":
            raise ConfigError(
                f"`study.steering` is a floor on the first objective, and {objectives[0].name} "
                "shall be small. Name one first that shall be large, as accuracy, or leave it out."
            )
        if study_file.two_jobs:
            check_sides(figures)
        else:
            metrics_of_one_job(list(dict.fromkeys(figures)))
        run = Run(study_file, place)
        if not copy.is_file():
            run._called = shlex.join([str(path), *(["--run", str(folder)] if folder else [])])
        return run

    @own_threads()
    def build(self, *, show_progress_bar: bool = False) -> Supernetwork:
        """Load or train the parents, match them, fit the stitches, save the supernetwork.

        Args:
            show_progress_bar: Whether to show progress bars.

        Returns:
            The supernetwork; what was built before, here or where the study has begun, is loaded.

        Raises:
            StudyError: If the study's storage cannot be reached, before anything is computed.
            DataError: If the parents tell other classes apart than the data set has.
            MatchError: If the parents cannot be stitched, or no stitch is kept.
            ConfigError: If the sampler cannot search for so many objectives.
            RunError: If the search shall start from the front of another run, which is not there.
        """
        _check_sampler(self.study_file)
        _ = self.storage
        if is_saved(self.folder) or self._fetch():
            return self.supernetwork
        other = self.study_file.study.start.front_of
        if other is not None:
            Run.open(other)  # it is needed once all is built
        self._supernetwork = build(
            self.study_file,
            self.data,
            self.folder,
            self.device,
            show_progress_bar=show_progress_bar,
        )
        return self._supernetwork

    @own_threads()
    def search(
        self,
        *,
        n_trials: int | None = None,
        batch: int | None = None,
        workers: Workers | None = None,
        launch: str | None = None,
        launch_options: Mapping[str, Any] | None = None,
        show_progress_bar: bool = False,
    ) -> optuna.Study:
        """Search until the study has as many trials as its file says; build first, if need be.

        Args:
            n_trials: How many trials this worker adds; up to the study file's number, if None.
            batch: How many trials are evaluated together; the study file's number, if None.
            workers: If given, so many processes search, each on its own accelerator or with its
                share of the cores; ``auto`` for as many as this machine is good for.
            launch: Who starts them: ``local``, on this machine; ``ray``; ``slurm``.
            launch_options: Of Ray or Slurm, beside those in the study file.
            show_progress_bar: Whether to show a progress bar.

        Raises:
            StudyError: If the storage fails, or the study was made for another supernetwork.
            ConfigError: If nothing starts workers in the way that is asked for.
            RunError: If there is no study whose front the search shall start from, or a worker
                fails, or what starts workers is not there.
        """
        if workers is not None or launch is not None or launch_options:
            check_launch(launch or "local")
            self._build_for_workers(show_progress_bar=show_progress_bar)
            search_together(
                self,
                "auto" if workers is None else workers,
                launch=launch or "local",
                options=launch_options,
                n_trials=n_trials,
                batch=batch,
                show_progress_bar=show_progress_bar,
            )
            return self.study
        supernetwork = self.build(show_progress_bar=show_progress_bar)
        config, storage = self.study_file.study, self.storage
        cache = self.study_file.evaluation.remember
        objective = make_objective(
            self.study_file,
            supernetwork,
            self.data.val,
            self.folder,
            result_cache=result_cache_engine(storage, self.folder) if cache else None,
        )
        study = create_study(
            objective,
            study_name=self.name,
            storage=storage,
            load_if_exists=True,
            population=config.start.population,
            probability=config.start.probability,
            stitch_qualities=self.stitch_quality,
            genotypes=self._other_front(supernetwork),
            seed=config.seed,
            prepare=self._share,
        )
        study.sampler = sampler_for(study, objective, config)
        with ExitStack() as stack:
            trackers = trackers_of(self.study_file, self.folder)
            optimize(
                study,
                objective,
                n_trials=n_trials,
                until=config.trials if n_trials is None else None,
                batch=config.batch if batch is None else batch,
                grace=config.grace,
                callbacks=[stack.enter_context(tracker) for tracker in trackers],
                show_progress_bar=show_progress_bar,
            )
        return study

    def _build_for_workers(self, *, show_progress_bar: bool) -> None:
        """See that there is a supernetwork, without a place on a device, which is theirs."""
        _check_sampler(self.study_file)
        _ = self.storage
        if is_saved(self.folder) or self._fetch():
            return
        try:
            _ = self.device
        except ConfigError as error:
            raise ConfigError(
                f"{error} The supernetwork has to be built first, by `optuna-stitch build` where "
                "there is one, or here with `--device cpu`."
            ) from error
        self.build(show_progress_bar=show_progress_bar)
        self._supernetwork = None

    def _other_front(self, supernetwork: Supernetwork) -> list[Genotype]:
        """What a new study starts from: the front of another run, where the study file names it.

        Args:
            supernetwork: The supernetwork of this run.
        """
        other = self.study_file.study.start.front_of
        if other is None:
            return []
        try:
            _ = self.study
        except RunError:
            return known_genotypes(Run.open(other).study.best_trials, supernetwork)
        return []  # it has begun

    def _share(self, study: optuna.Study) -> None:
        """Put what another worker needs into the artifact store; the description last."""
        paths = [self.folder / name for name in ("fit.csv", LATENCY, *FILES)]
        upload_files(study, self.artifact_store, [path for path in paths if path.exists()])

    @own_threads()
    def finish(
        self,
        trials: int | Trials | None = None,
        settings: Finishing | None = None,
        *,
        controls: bool | None = None,
        students: Sequence[str | ParentConfig] | None = None,
        show_progress_bar: bool = False,
        **options: Any,
    ) -> dict[int, Subnetwork]:
        """Train found networks to their end, and parents likewise, to compare with.

        What is done is kept in the run's folder, where `report` and `export` find it. After an
        interruption the same call goes on where it was.

        Args:
            trials: The number of a trial, several, or ``front`` for the stitched networks of the
                study's front; those of the study file, if None.
            settings: How; as the study file says, if None.
            controls: Whether parents are finished likewise; as the study file says, if None.
            students: Names of other networks that are, from random weights; those of the study
                file, if None.
            show_progress_bar: Whether to show progress bars.
            **options: Fields of `Finishing`, in place of what the study file says: ``epochs=5``.

        Returns:
            The finished networks, by trial.

        Raises:
            RunError: If the run has no study yet, or its folder is read-only.
            StudyError: If a trial is none, or not complete.
            ConfigError: If no trial is named, an option is unknown or has a wrong value, or there
                are options beside ``settings``.
            FitError: As `optuna_stitch.finish` says; other networks are finished first.
        """
        said = self.study_file.finish or FinishConfig()
        if isinstance(trials, int):
            trials = [trials]
        if isinstance(trials, str) and trials != "front":
            raise ConfigError(f"Trials are named by their numbers, or `front`, not {trials!r}.")
        chosen = said.trials if trials is None else trials
        if not chosen:
            raise ConfigError(
                "No trial is named to be finished. Name one, or all of the front: "
                "`optuna-stitch finish RUN --trial 14`, `--front`, or `finish: {trials: front}` "
                "in the study file."
            )
        if settings is None:
            options = {**said.how.model_dump(exclude_unset=True), **options}
        how = settings_of(Finishing, settings, options)
        named = said.students if students is None else students
        return finish_trials(
            self,
            chosen,
            how,
            controls=said.controls if controls is None else controls,
            students=[
                one
                if isinstance(one, ParentConfig)
                else ParentConfig(network=one, random_weights=True)
                for one in named
            ],
            show_progress_bar=show_progress_bar,
        )

    @own_threads()
    def report(self, *, show_progress_bar: bool = False) -> Front:
        """Evaluate the front on the test split, and write tables, pictures and the report.

        What optuna-dashboard shows of the study is written into its storage.

        Args:
            show_progress_bar: Whether to show a progress bar.

        Raises:
            RunError: If no search has begun yet, or the folder is read-only.
            StudyError: If no trial is complete.
            DataError: If the test split has no labels, or a baseline tells other classes apart.
        """
        self.check_writable()
        front = self.evaluate_front(show_progress_bar=show_progress_bar)
        self.write_study_file()
        figures = write_results(self, front)
        left = publish(
            self.study,
            front,
            self.artifact_store,
            figures=figures,
            summary=front.headline,
            command=export_command(self.folder),
        )
        if left:
            console.print(f"Notes that were edited in the dashboard stay: {', '.join(left)}.")
        self._track(written(self.folder))
        return front

    def _track(self, paths: Sequence[Path], folder: str = "") -> None:
        """Log files of this run to the trackers that the study file names."""
        for tracker in trackers_of(self.study_file, self.folder):
            with tracker:
                tracker.log_files(self.study, paths, folder)

    def pick(self, *, knee: bool = False, fixed_cost: bool = False, **bounds: float) -> Pick:
        """Pick a network from the last report, by its figures on the test split.

        Args:
            knee: Whether to pick the one from which on more cost pays less.
            fixed_cost: Whether cascades, which cost less for some images, are left out.
            bounds: ``max_macs=5e7``, ``min_accuracy=0.93``; of any figure in ``front.csv``.

        Raises:
            RunError: If there is no report yet.
            ConfigError: If a bound is about no figure of the report.
            StudyError: If no network keeps to the bounds; names the one that comes nearest.
        """
        return pick_network(self, bounds, knee=knee, fixed_cost=fixed_cost)

    @own_threads()
    def export_latency(self, to: str | Path) -> Path:
        """Write the supernetwork in pieces, with a script that times them on another device.

        Args:
            to: The folder.

        Returns:
            The script, which needs onnxruntime and numpy there.

        Raises:
            RunError: If there is no supernetwork yet, or the folder has files in it.
            ConfigError: If a package is missing, or an operator has no counterpart in ONNX.
        """
        return export_latency(self, Path(to).expanduser())

    def import_latency(self, table: str | Path) -> Latencies:
        """Let ``latency_ms`` count with the times that another device measured.

        Args:
            table: What the script of `export_latency` wrote.

        Raises:
            ArtifactError: If it is no such table, not whole, or of another supernetwork.
            RunError: If trials were counted with other times, or the folder is read-only.
        """
        return import_latency(self, Path(table).expanduser())

    @own_threads()
    def export(
        self,
        trial: int,
        to: str | Path,
        *,
        formats: Sequence[str] = ("python",),
        force: bool = False,
        push: str | None = None,
        private: bool = True,
        max_drop: float | None = None,
        command: str | None = None,
        finished: bool = False,
        show_progress_bar: bool = False,
    ) -> Path:
        """Export the network of one trial, with its figures on the test split.

        Args:
            trial: Number of the trial.
            to: Folder to write into.
            formats: ``python``, ``program``, ``onnx``, ``all`` of these, or formats for a certain
                target: ``onnx-float16``, ``onnx-int8``, ``openvino``, ``tensorrt``, ``coreml``.
            force: Whether to replace the files of an earlier export.
            push: Repository on the Hugging Face Hub to upload the folder to, ``user/name``.
            private: Whether a new repository is private.
            max_drop: If given, points of quality that a file may lose on the validation images;
                nothing is written, where one loses more.
            command: What the user called, for the model card.
            finished: Whether to export the network as `finish` trained it.
            show_progress_bar: Whether to show a progress bar.

        Returns:
            The folder.

        Raises:
            RunError: If no search has begun yet.
            ExportError: If there is no such trial, it is not complete, or its network cannot be
                written or pushed.
        """
        network = export_trial(
            self,
            trial,
            to,
            formats=formats,
            force=force,
            push=push,
            private=private,
            max_drop=max_drop,
            command=command,
            finished=finished,
            show_progress_bar=show_progress_bar,
        )
        self._track([network], f"trial-{trial}")
        return network


def _check_sampler(study_file: StudyFile) -> None:
    """Make the sampler of a study file, and see that it can do what is asked for."""
    study = study_file.study
    sampler = make_sampler(study.sampler.name, study.sampler.arguments, seed=0)
    check_sampler(sampler, len(study.objectives))
