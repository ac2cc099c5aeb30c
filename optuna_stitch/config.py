"""A study file: one short YAML file that says the whole job."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from optuna_stitch.errors import ConfigError

# How the file of a program saved by `torch.export.save` ends.
PROGRAM = ".pt2"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class RecipeConfig(_Section):
    """How to train a parent; see `Recipe`."""

    epochs: int = Field(gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    batch_size: int = Field(50, gt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    seed: int = 0


class ParentConfig(_Section):
    """A parent: a name or the path of an exported program, and one source of its weights."""

    network: str
    pretrained: bool = False
    checkpoint: Path | None = None
    train: RecipeConfig | None = None
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


class ParentsConfig(_Section):
    """The two networks to stitch."""

    a: ParentConfig
    b: ParentConfig


class SplitConfig(_Section):
    """What differs for one split from the data set's own settings."""

    dataset: str | None = None
    root: Path | None = None
    class_map: Path | None = None
    split: str | None = None
    images: int | None = Field(None, gt=0)


class DataConfig(_Section):
    """Images; see `load_data`."""

    dataset: str = "sklearn/digits"
    root: Path | None = None
    class_map: Path | None = None
    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    test: SplitConfig = SplitConfig()
    seed: int = 0


class StitchingConfig(_Section):
    """Which points are matched; see `stitch`."""

    points: Literal["auto", "all", "dominators", "blocks"] = "auto"
    resize: bool = True
    similarity_images: int | None = Field(None, gt=1)


class FitConfig(_Section):
    """How stitches are fitted; see `fit`."""

    images: int | None = Field(None, gt=0)
    positions: int = Field(64, gt=0)
    match_variance: bool = True
    seed: int = 0


class SamplerConfig(BaseModel):
    """A sampler by name, or the dotted path of its class; other keys go to its constructor."""

    model_config = ConfigDict(extra="allow")

    name: str = "nsga2"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor is given."""
        return dict(self.model_extra or {})


class StartConfig(_Section):
    """The first trials; see `enqueue_starts`."""

    population: int = Field(50, ge=3)
    probability: float = Field(0.05, gt=0, lt=1)


class StudyConfig(_Section):
    """The Optuna study."""

    name: str | None = None
    storage: str = "sqlite:///{run}/study.db"
    objectives: list[str] = Field(["accuracy", "macs"], min_length=1)
    sampler: SamplerConfig = SamplerConfig()
    trials: int = Field(300, gt=0)
    batch: int = Field(10, gt=0)
    start: StartConfig = StartConfig()
    seed: int = 0


class StudyFile(_Section):
    """All of a study file."""

    parents: ParentsConfig
    data: DataConfig = DataConfig()
    stitching: StitchingConfig = StitchingConfig()
    fit: FitConfig = FitConfig()
    study: StudyConfig = StudyConfig()


def load_study_file(path: str | Path) -> StudyFile:
    """Read and validate a study file.

    Paths in it are taken relative to the folder that it lies in.

    Args:
        path: The file.

    Raises:
        ConfigError: If it is missing, no YAML, or has a wrong key or value; names the key, the
            line and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text()
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no study file at {path}.") from error
    except OSError as error:
        raise ConfigError(f"The study file {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values; allowed are {_allowed(StudyFile)}.")
    try:
        study_file = StudyFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, tree, e) for e in error.errors())) from error
    return _with_absolute_paths(study_file, path.parent.resolve())


def smoke(study_file: StudyFile) -> StudyFile:
    """The same study, tiny: random weights, random images and few trials.

    It shows whether a study file works from end to end where neither weights nor data are at hand.
    """
    tiny = study_file.model_copy(deep=True)
    segments = "mean_iou" in tiny.study.objectives or "pixel_accuracy" in tiny.study.objectives
    for parent in (tiny.parents.a, tiny.parents.b):
        if not parent.network.endswith(PROGRAM):
            parent.pretrained, parent.checkpoint, parent.train = False, None, None
            parent.random_weights = True
            if segments:  # every pixel costs, and convolutions take any size
                parent.input_size = 128
    classes = tiny.parents.a.model_args.get("num_classes", 21 if segments else 1000)
    part = SplitConfig(images=12)
    tiny.data = DataConfig(
        dataset=f"noise/{classes}{'/pixels' if segments else ''}", train=part, val=part, test=part
    )
    tiny.stitching.similarity_images = tiny.stitching.similarity_images and 4
    tiny.fit.images, tiny.fit.positions = 12, 8
    tiny.study.trials, tiny.study.batch, tiny.study.start.population = 6, 3, 6
    return tiny


def dump_study_file(study_file: StudyFile) -> str:
    """A study file as YAML, with every default filled in."""
    return yaml.safe_dump(study_file.model_dump(mode="json"), sort_keys=False)


def _with_absolute_paths(study_file: StudyFile, folder: Path) -> StudyFile:
    data = study_file.data
    for section in (data, data.train, data.val, data.test):
        for name in ("root", "class_map"):
            if getattr(section, name) is not None:
                setattr(section, name, folder / getattr(section, name))
    for parent in (study_file.parents.a, study_file.parents.b):
        if parent.checkpoint is not None:
            parent.checkpoint = folder / parent.checkpoint
        if parent.network.endswith(PROGRAM):
            parent.network = str(folder / parent.network)
    return study_file


def _explain(path: Path, tree: yaml.Node | None, error: Any) -> str:
    """One line for one of pydantic's errors: the place, the key, what is allowed."""
    keys = [key for key in error["loc"] if not _is_type_tag(key)]
    dotted = ".".join(map(str, keys))
    place = f"{path}:{_line(tree, keys)}"
    if error["type"] == "extra_forbidden":
        section = _section(StudyFile, keys[:-1])
        names = list(section.model_fields) if section else []
        near = difflib.get_close_matches(str(keys[-1]), names, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        return f"{place}: unknown key `{dotted}`; allowed here: {', '.join(names)}.{hint}"
    if error["type"] == "missing":
        return f"{place}: the key `{dotted}` is missing."
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: `{dotted}`: {message} (it is {error['input']!r})."


def _is_type_tag(key: Any) -> bool:
    """Whether pydantic put this into a location to tell the members of a union apart."""
    return isinstance(key, str) and (key in ("int", "str", "float") or key.startswith("tuple["))


def _line(tree: yaml.Node | None, keys: list[Any]) -> int:
    """The line of the key, or of the nearest section around it that exists."""
    line = 1
    node = tree
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == str(key):
                    line, node = name.start_mark.line + 1, value
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _section(model: type[BaseModel], keys: list[Any]) -> type[BaseModel] | None:
    """The model that describes the section at these keys."""
    for key in keys:
        annotation = model.model_fields[key].annotation
        options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _allowed(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)
