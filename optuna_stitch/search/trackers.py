"""Experiment trackers as callbacks of a study: MLflow, and Weights & Biases.

All workers of a study log to one run, each the trials that it finishes, so that none is there
twice; a study that goes on goes on in its run. A tracker that cannot be reached never stops a
study: trials are kept until it can be. What is left at the end of a process is noted in the study,
for whoever logs next.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import FrozenTrial

from optuna_stitch.utils.errors import ConfigError, first_line
from optuna_stitch.utils.progress import console

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from typing_extensions import Self

# A study's attributes: what its run is called in every tracker, and which trials a process could
# not log.
_KEY, _MISSED = "tracked_as", "untracked"

# Seconds until another worker's key is seen, where two begin at once.
_SETTLED = 0.3

# Seconds until a tracker that cannot be reached is tried again; doubled every time.
_PAUSE = 30.0


class Tracker(ABC):
    """What trackers have in common; a callback for ``study.optimize`` and `optimize`.

    It is a context manager, at whose end `finish` is called.
    """

    name: str
    """What people call it."""
    package: str
    """What it needs to be installed, which is also the name of the extra."""

    def __init__(self) -> None:
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"Tracking in {self.name} needs it to be installed: "
                f"pip install 'optuna-stitch[{self.package}]'."
            )
        self._study: optuna.Study | None = None
        self._waiting: dict[int, FrozenTrial] = {}
        self._complained = False
        self._pause = _PAUSE
        self._not_before = 0.0
        self._own = uuid.uuid4().hex

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Log a trial that is finished.

        Args:
            study: Its study.
            trial: The trial.
        """
        self._study = study
        self._waiting[trial.number] = trial
        if time.monotonic() >= self._not_before:
            self._flush(study)

    def log_files(self, study: optuna.Study, paths: Iterable[Path], folder: str = "") -> bool:
        """Log files as artifacts of the study's run.

        Args:
            study: The study.
            paths: Files and folders.
            folder: What they lie in there; at its root, if empty.

        Returns:
            Whether that was possible; if not, the console is told.
        """
        self._study = study
        there = [path for path in paths if path.exists()]
        try:
            self._open(study)
            self._log_files(there, folder)
        except Exception as error:  # each client has errors of its own
            self._complain(error, "Files are not logged; report or export again to log them.")
            return False
        return True

    def finish(self, study: optuna.Study | None = None) -> None:
        """Log what is left, also by processes before, and end this process's part of the run.

        Args:
            study: The study; the one whose trials were logged last, if None.
        """
        study = study or self._study
        if study is None:
            return
        missed = {
            key: numbers
            for key, numbers in study.user_attrs.items()
            if key.startswith(self._missed("")) and numbers
        }
        if missed:
            trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
            self._waiting |= {
                number: trials[number] for some in missed.values() for number in some
            }
        if self._flush(study):
            for key in missed:
                study.set_user_attr(key, [])
        elif self._waiting:
            study.set_user_attr(self._missed(self._own), sorted(self._waiting))
        try:
            self._close()
        except Exception as error:
            self._complain(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish()

    def _missed(self, process: str) -> str:
        return f"{_MISSED}:{self.package}:{process}"

    def _flush(self, study: optuna.Study) -> bool:
        """Log all trials that wait; whether none is left."""
        try:
            if self._waiting:
                self._open(study)
            for number in sorted(self._waiting):
                self._log_trial(study, self._waiting[number])
                del self._waiting[number]
        except Exception as error:
            self._complain(error, "The study goes on; its trials are logged once that is there.")
            self._not_before = time.monotonic() + self._pause
            self._pause *= 2
            return False
        self._pause = _PAUSE
        return True

    def _complain(self, error: Exception, then: str = "") -> None:
        """Say once that the tracker cannot be reached."""
        if not self._complained:
            console.print(
                f"{self.name} cannot be reached ({first_line(error)}). {then}".rstrip(),
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        self._complained = True

    @abstractmethod
    def _open(self, study: optuna.Study) -> None:
        """Find or make the run of a study; nothing where that is done."""

    @abstractmethod
    def _log_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Log one trial."""

    @abstractmethod
    def _log_files(self, paths: Sequence[Path], folder: str) -> None:
        """Log files that exist."""

    @abstractmethod
    def _close(self) -> None:
        """End this process's part of the run."""


class MLflowTracker(Tracker):
    """Log a study to a run of MLflow.

    Objectives are metrics, with the number of the trial as their step; parameters, state and user
    attributes of each trial are in ``trials/<number>.json``.

    Args:
        tracking_uri: Where MLflow keeps runs, ``http://host:5000`` or ``sqlite:///mlflow.db``; as
            MLflow's own environment says, if None.
        experiment: The experiment that the run belongs to; the study's name, if None.

    Example:
        >>> tracker = st.MLflowTracker("sqlite:///mlflow.db", experiment="digits")
        >>> tracker.name
        'MLflow'
    """

    name, package = "MLflow", "mlflow"

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None) -> None:
        super().__init__()
        self._uri = tracking_uri
        self._experiment = experiment
        self._client: MlflowClient | None = None
        self._run = ""

    def _open(self, study: optuna.Study) -> None:
        if self._run:
            return
        # its own retries would hold up the study for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        experiment = _experiment(client, self._experiment or study.study_name)
        tag = {"optuna_stitch.study": _key_of(study)}
        mine = None
        if not _runs(client, experiment, tag):
            mine = client.create_run(experiment, tags=tag, run_name=study.study_name).info.run_id
        # of workers that come at once, all take the first one's
        self._run = _runs(client, experiment, tag)[0]
        if mine is not None and mine != self._run:
            client.delete_run(mine)
        self._client = client

    def _log_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        when = int((trial.datetime_complete or trial.datetime_start).timestamp() * 1000)  # type: ignore[union-attr]
        found = [
            Metric(name, value, when, trial.number)
            for name, value in _values(study, trial).items()
        ]
        said = {
            "number": trial.number,
            "state": trial.state.name,
            "values": _values(study, trial),
            "params": trial.params,
            "user_attrs": trial.user_attrs,
        }
        self._client.log_dict(self._run, said, f"trials/{trial.number:06d}.json")
        if found:  # last: what was logged twice in between would be there twice
            self._client.log_batch(self._run, metrics=found)

    def _log_files(self, paths: Sequence[Path], folder: str) -> None:
        assert self._client is not None
        for path in paths:
            if path.is_dir():
                inside = f"{folder}/{path.name}" if folder else path.name
                self._client.log_artifacts(self._run, str(path), inside)
            else:
                self._client.log_artifact(self._run, str(path), folder or None)

    def _close(self) -> None:
        if self._client is not None and self._run:
            self._client.set_terminated(self._run)


class WandbTracker(Tracker):
    """Log a study to a run of Weights & Biases.

    Objectives, parameters, state and user attributes of a trial are a line of the run's history,
    by the number of the ``trial``.

    Args:
        project: The project that the run belongs to; ``optuna-stitch``, if None.
        entity: Whose project; the user's own, if None.
        mode: ``online``, or ``offline`` to keep the run in a folder for ``wandb sync``; as the
            environment says, if None.
        folder: Where local files are kept; the current folder's ``wandb``, if None.

    Example:
        >>> tracker = st.WandbTracker("digits", mode="offline")
        >>> tracker.name
        'Weights & Biases'
    """

    name, package = "Weights & Biases", "wandb"

    def __init__(
        self,
        project: str | None = None,
        *,
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._project = project or "optuna-stitch"
        self._entity = entity
        self._mode = mode or os.environ.get("WANDB_MODE", "online")
        self._folder = folder
        self._run: Any = None

    def _open(self, study: optuna.Study) -> None:
        if self._run is not None:
            return
        import wandb

        # several processes may write to a run of a server in its mode ``shared`` only
        mode = "shared" if self._mode == "online" else self._mode
        run = wandb.init(
            project=self._project,
            entity=self._entity,
            name=study.study_name,
            id=_key_of(study),
            resume=None if mode == "shared" else "allow",
            dir=None if self._folder is None else str(self._folder),
            settings=wandb.Settings(mode=mode, silent=True, init_timeout=30),
            reinit="create_new",
        )
        run.define_metric("trial")
        run.define_metric("*", step_metric="trial")
        self._run = run

    def _log_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._run.log(
            {
                "trial": trial.number,
                "state": trial.state.name,
                **_values(study, trial),
                "params": trial.params,
                "user_attrs": trial.user_attrs,
            }
        )

    def _log_files(self, paths: Sequence[Path], folder: str) -> None:
        import wandb

        pictures = [path for path in paths if path.suffix == ".png"]
        if pictures:
            self._run.log({path.stem: wandb.Image(str(path)) for path in pictures})
        artifact = wandb.Artifact(f"{folder or 'report'}-{self._run.id}", folder or "report")
        for path in paths:
            if path.is_dir():
                artifact.add_dir(str(path))
            else:
                artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def _close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


def _values(study: optuna.Study, trial: FrozenTrial) -> dict[str, float]:
    """A trial's values by the names of the objectives; empty where it has none."""
    if trial.values is None:
        return {}
    names = study.metric_names or [f"value_{place}" for place in range(len(trial.values))]
    return dict(zip(names, trial.values, strict=True))


def _key_of(study: optuna.Study) -> str:
    """What a study's run is called, the same for all its workers and later processes."""
    if _KEY not in study.user_attrs:
        study.set_user_attr(_KEY, uuid.uuid4().hex[:12])
        time.sleep(_SETTLED)
    return str(study.user_attrs[_KEY])


def _experiment(client: MlflowClient, name: str) -> str:
    """The number of an experiment, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except Exception:  # another worker was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _runs(client: MlflowClient, experiment: str, tag: Mapping[str, str]) -> list[str]:
    """The runs with a tag, the oldest first."""
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tag.items())
    found = client.search_runs([experiment], wanted)
    return [
        run.info.run_id
        for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))
    ]
