"""What a study file may say: every key with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from optuna_stitch.evaluation.settings import EvaluationSettings, LatencySettings
from optuna_stitch.models.recipe import Recipe
from optuna_stitch.stitching.genotype import BOTH, LETTERS, OUTPUTS, Output, Side, outputs_of
from optuna_stitch.stitching.settings import Finishing, FitSettings, PointKind, Tuning
from optuna_stitch.utils.errors import ConfigError
from optuna_stitch.utils.files import PROGRAM

# How devices may be called, as torch calls them.
DEVICES = r"auto|cpu|(cuda|mps|xpu)(:\d+)?"


class _Section(BaseModel):
    # not `Settings`: paths become absolute, and a smoke test changes much
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ParentConfig(_Section):
    """A parent: a name or the path of an exported program, and one source of its weights."""

    network: str
    pretrained: bool = False
    checkpoint: Path | None = None
    train: Recipe | None = None
    random_weights: bool = False
    output: str | None = None
    model_args: dict[str, Any] = {}
    input_size: int | tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_source(self) -> ParentConfig:
        sources = [
            self.pretrained,
            self.checkpoint is not None,
            self.train is not None,
            self.random_weights,
            self.network.endswith(PROGRAM),  # comes with its weights
        ]
        if sum(sources) != 1:
            raise ValueError(
                "give exactly one of `pretrained: true`, `checkpoint: FILE` and `train: {...}` "
                "(or `random_weights: true`, to try something out); an exported program has its "
                "own weights"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What `load_parent` takes of it, but for the arguments of the model."""
        taken = {"pretrained", "checkpoint", "output", "input_size"}
        return self.model_dump(include={*taken, "mean", "std", "interpolation", "crop_pct"})


class ParentsConfig(_Section):
    """The networks to stitch, by letter; ``check``: whether each must be better than guessing."""

    a: ParentConfig
    b: ParentConfig
    c: ParentConfig | None = None
    d: ParentConfig | None = None
    e: ParentConfig | None = None
    f: ParentConfig | None = None
    g: ParentConfig | None = None
    h: ParentConfig | None = None
    check: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> ParentsConfig:
        """Refuse a letter after one that is left out."""
        for letter, one in zip(self.by_side, LETTERS, strict=False):
            if letter != one:
                raise ValueError(f"there is a parent {letter}, but no {one}; leave none out")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only parents that there are, so that files of two say nothing of others."""
        said: dict[str, Any] = serialize(self)
        return {name: value for name, value in said.items() if value is not None}

    @property
    def by_side(self) -> dict[Side, ParentConfig]:
        """All parents by their letters, in order."""
        found = {letter: getattr(self, letter) for letter in LETTERS}
        return {letter: parent for letter, parent in found.items() if parent is not None}


class SplitConfig(_Section):
    """What differs for one split from the data set's own settings."""

    dataset: str | None = None
    root: Path | None = None
    class_map: Path | None = None
    labels: Path | None = None
    column: str | None = None
    split: str | None = None
    images: int | None = Field(None, gt=0)


class TaskConfig(_Section):
    """Images, and the question that their labels answer; see `load_data`."""

    dataset: str = "sklearn/digits"
    root: Path | None = None
    class_map: Path | None = None
    labels: Path | None = None
    column: str | None = None
    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    test: SplitConfig = SplitConfig()
    unreadable: Literal["stop", "skip"] = "stop"
    workers: int | None = Field(None, ge=0)
    seed: int = 0


class DataConfig(TaskConfig):
    """Images; of two jobs ``a`` and ``b``, for both of which what stands beside them holds."""

    a: TaskConfig | None = None
    b: TaskConfig | None = None

    @model_validator(mode="after")
    def _filled(self) -> DataConfig:
        """Let what is said for both questions hold for each, where that says nothing else."""
        if (self.a is None) != (self.b is None):
            raise ValueError("give the data of both jobs, `a` and `b`, or of one")
        shared = {name: getattr(self, name) for name in self.model_fields_set - {"a", "b"}}
        for side in ("a", "b"):
            own: TaskConfig | None = getattr(self, side)
            if own is not None:
                said = {name: getattr(own, name) for name in own.model_fields_set}
                setattr(self, side, TaskConfig(**{**shared, **said}))
        return self

    @property
    def tasks(self) -> dict[Side, TaskConfig]:
        """The data of each parent; the same for both, if they have one job."""
        return {"a": self.a or self, "b": self.b or self}

    @property
    def two_jobs(self) -> bool:
        """Whether there are data for each parent."""
        return self.a is not None


class StitchingConfig(_Section):
    """Which points are matched; see `stitch`."""

    points: PointKind = "auto"
    resize: bool = True
    similarity_images: int | None = Field(None, gt=1)


class KeepConfig(_Section):
    """Which stitches the search may use; see `best_stitches`. All of them, if nothing is said.

    ``max_weights`` bounds the weights of all stitches, as a share of the parents' in bytes; it is
    0.1 for more than two parents, if nothing is said.
    """

    best: int | None = Field(None, gt=0)
    min_r2: float | None = Field(None, le=1)
    max_accuracy_drop: float | None = None
    max_weights: float | None = Field(None, gt=0)
    images: int = Field(300, gt=0)


class EvaluationConfig(EvaluationSettings):
    """How subnetworks are evaluated in the search; see `Evaluator`.

    Args:
        remember: Whether figures are kept in a database, for other workers and later searches.
        latency: What ``latency_ms`` means.
    """

    remember: bool = True
    latency: LatencySettings = LatencySettings()


class SamplerConfig(BaseModel):
    """A sampler by name, or the dotted path of its class; other keys go to its constructor."""

    model_config = ConfigDict(extra="allow")

    name: str = "linkage"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor is given."""
        return dict(self.model_extra or {})


class StartConfig(_Section):
    """The first trials; see `enqueue_starts`. ``front_of`` is the folder of another run."""

    population: int = Field(50, ge=3)
    probability: float = Field(0.05, gt=0, lt=1)
    front_of: Path | None = None


class SteeringConfig(_Section):
    """A floor on the first objective; see `SteeredSampler`.

    It ends at a share of the weaker parent's, after a share of the study's trials.
    """

    share: float = Field(0.9, gt=0)
    over: float = Field(0.5, gt=0, le=1)


class StudyConfig(_Section):
    """The Optuna study."""

    name: str | None = None
    storage: str = "sqlite:///{run}/study.db"
    artifacts: str = "{run}/artifacts"
    objectives: list[str] = Field(["accuracy", "macs"], min_length=1)
    constraints: dict[str, float] = {}
    space: Literal["flat", "reachable"] = "flat"
    outputs: list[Output] = Field(list(OUTPUTS), min_length=1)
    sampler: SamplerConfig = SamplerConfig()
    trials: int = Field(300, gt=0)
    batch: int = Field(10, gt=0)
    grace: float = Field(60.0, gt=0)
    start: StartConfig = StartConfig()
    steering: SteeringConfig | None = None
    seed: int = 0


class FinishConfig(Finishing):
    """Which networks are trained to their end, and how; see `Finishing`.

    Args:
        trials: Their numbers, or ``front`` for the stitched networks of the study's front.
        controls: Whether parents are finished likewise, to compare with.
        students: Other networks that are.
    """

    trials: Literal["front"] | list[int] = Field([])
    controls: bool = True
    students: list[ParentConfig] = Field([])

    @property
    def how(self) -> Finishing:
        """What is said of the training itself."""
        names = Finishing.model_fields.keys() & self.model_fields_set
        return Finishing(**{name: getattr(self, name) for name in names})


class LaunchConfig(_Section):
    """Options of what starts workers; see `--launch`. Those of the command line come before."""

    ray: dict[str, Any] = {}
    slurm: dict[str, Any] = {}


class MLflowConfig(_Section):
    """Where MLflow keeps the run; see `MLflowTracker`."""

    tracking_uri: str | None = None
    experiment: str | None = None


class WandbConfig(_Section):
    """Where Weights & Biases keeps the run; see `WandbTracker`."""

    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None


class TrackersConfig(_Section):
    """Experiment trackers that trials, front, pictures and exported networks are logged to."""

    mlflow: MLflowConfig | None = None
    wandb: WandbConfig | None = None


class ReportConfig(_Section):
    """What the report compares with, besides the parents: networks as those are given."""

    baselines: list[ParentConfig] = []


class StudyFile(_Section):
    """All of a study file; ``device``: where everything is computed, see `resolve_device`."""

    device: str = "auto"
    parents: ParentsConfig
    data: DataConfig = DataConfig()
    stitching: StitchingConfig = StitchingConfig()
    fit: FitSettings = FitSettings()
    tune: Tuning | None = None
    finish: FinishConfig | None = None
    keep: KeepConfig = KeepConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    study: StudyConfig = StudyConfig()
    launch: LaunchConfig = LaunchConfig()
    trackers: TrackersConfig = TrackersConfig()
    report: ReportConfig = ReportConfig()

    @property
    def two_jobs(self) -> bool:
        """Whether the parents answer different questions."""
        return self.data.two_jobs or BOTH in self.study.outputs

    @model_validator(mode="after")
    def _answers(self) -> StudyFile:
        """Let networks of two jobs answer both questions, and be judged by both answers."""
        said = self.study.model_fields_set
        sides = tuple(self.parents.by_side)
        if "outputs" not in said:
            outputs = (BOTH,) if self.data.two_jobs else outputs_of(sides)
            self.study = self.study.model_copy(update={"outputs": list(outputs)})
        if len(sides) > 2 and self.two_jobs:
            raise ValueError(
                f"two jobs are for two parents, and there are {len(sides)}: leave out parents "
                f"{' and '.join(sides[2:])}, or `data.a` and `data.b` and the output `both`"
            )
        allowed = (*outputs_of(sides), *((BOTH,) if len(sides) == 2 else ()))
        for output in self.study.outputs:
            if output not in allowed:
                raise ValueError(
                    f"`study.outputs` of parents {', '.join(sides)} are {', '.join(allowed)}; "
                    f"{output!r} is none of these"
                )
        if not self.two_jobs:
            return self
        if self.study.outputs != [BOTH]:
            raise ValueError(
                "with data for two jobs, `a` and `b`, the only one of `study.outputs` is `both`"
            )
        if "objectives" not in said:
            self.study = self.study.model_copy(update={"objectives": ["retained", "macs"]})
        for value, what in (
            (self.evaluation.racing, "`evaluation.racing`"),
            (self.report.baselines or None, "`report.baselines`"),
            (self.finish.students or None if self.finish else None, "`finish.students`"),
        ):
            if value is not None:
                raise ValueError(f"{what} is not there for two jobs; leave it out")
        return self

    @model_validator(mode="after")
    def _times_of_others(self) -> StudyFile:
        """Refuse what asks for the times of networks that another device did not measure."""
        if self.evaluation.latency.runtime != "imported" or not self.counts_latency:
            return self
        left = "`report.baselines`" if self.report.baselines else ""
        left = "two jobs, whose reports fit linear probes" if self.two_jobs else left
        if left:
            raise ValueError(
                f"imported latencies are of this supernetwork only, and not of {left}; leave that "
                "out, or measure here: `evaluation: {latency: {runtime: onnxruntime}}`"
            )
        return self

    @property
    def counts_latency(self) -> bool:
        """Whether latencies are among its figures."""
        return any(
            "latency_ms" in name for name in (*self.study.objectives, *self.study.constraints)
        )

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        """Refuse what is no device anywhere; whether this machine has it is seen when it runs."""
        if not re.fullmatch(DEVICES, device):
            raise ValueError("choose auto, cpu, cuda, cuda:1, mps or xpu")
        return device

    @model_validator(mode="after")
    def _one_seed(self) -> StudyFile:
        """Let races draw their images by the seed of the study, unless they have their own."""
        racing = self.evaluation.racing
        if racing is not None and "seed" not in racing.model_fields_set:
            racing = racing.model_copy(update={"seed": self.study.seed})
            self.evaluation = self.evaluation.model_copy(update={"racing": racing})
        return self


def check_launch(launch: str) -> None:
    """Raise if nothing starts workers by this name.

    Args:
        launch: What was asked for.

    Raises:
        ConfigError: If it is unknown.
    """
    known = ("local", *LaunchConfig.model_fields)
    if launch not in known:
        raise ConfigError(f"`--launch {launch}` is unknown; choose {', '.join(known)}.")


def _segments(study: StudyConfig, suffix: str) -> bool:
    """Whether objectives are of networks that label pixels.

    Args:
        study: With the objectives.
        suffix: What names of metrics end with.
    """
    pixels = {f"{name}{suffix}" for name in ("mean_iou", "pixel_accuracy")}
    return bool(pixels & set(study.objectives))


def smoke_test(study_file: StudyFile) -> StudyFile:
    """The same study, tiny: random weights, random images and few trials.

    It shows whether a study file works from end to end where neither weights nor data are at hand.

    Args:
        study_file: The study; it is left as it is.
    """
    tiny = study_file.model_copy(deep=True)
    two_jobs = study_file.two_jobs
    parents = tiny.parents.by_side
    segmenting = [
        side for side in parents if _segments(tiny.study, f"_{side}" if two_jobs else "")
    ]
    segments = bool(segmenting)
    for side, parent in parents.items():
        if not parent.network.endswith(PROGRAM):
            parent.pretrained, parent.checkpoint, parent.train = False, None, None
            parent.random_weights = True
            if side in segmenting:  # every pixel costs, and convolutions take any size
                parent.input_size = 128
    part = SplitConfig(images=12)
    noise: dict[Side, TaskConfig] = {}
    for side, parent in parents.items():
        classes = parent.model_args.get("num_classes", 21 if side in segmenting else 1000)
        name = f"noise/{classes}{'/pixels' if side in segmenting else ''}"
        noise[side] = TaskConfig(dataset=name, train=part, val=part, test=part)
    if tiny.data.two_jobs:
        tiny.data = DataConfig(a=noise["a"], b=noise["b"])
    else:
        tiny.data = DataConfig(**noise["a"].model_dump())
    tiny.stitching.similarity_images = tiny.stitching.similarity_images and 4
    tiny.fit = tiny.fit.model_copy(update={"images": 12, "positions": 8, "recalibrate": 4})
    if tiny.tune is not None:
        few = {"steps": 2, "batch_size": 4}
        tiny.tune = None if segments else tiny.tune.model_copy(update=few)
    if tiny.evaluation.latency.runtime == "imported":
        here = tiny.evaluation.latency.model_copy(update={"runtime": "onnxruntime"})
        tiny.evaluation = tiny.evaluation.model_copy(update={"latency": here})
    tiny.report, tiny.trackers = ReportConfig(), TrackersConfig()
    if tiny.finish is not None:
        little: dict[str, Any] = {"epochs": 1, "minutes": None, "batch_size": 4, "students": []}
        tiny.finish = tiny.finish.model_copy(update=little)
    tiny.keep = KeepConfig()  # random stitches would all be dropped
    tiny.study.trials, tiny.study.batch, tiny.study.start.population = 6, 3, 6
    return tiny
