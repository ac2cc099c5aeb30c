"""Read a study file, and say what is wrong with it, line by line."""

from __future__ import annotations

import difflib
import re
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from optuna_stitch.run.schema import StudyFile
from optuna_stitch.utils.errors import ConfigError, RunError
from optuna_stitch.utils.files import LOCAL, PROGRAM

# What may change while a run goes on; anything else makes it another run.
_CHANGEABLE = {
    "parents.check",
    "device",
    "study.trials",
    "study.batch",
    "study.grace",
    "data.workers",
    "fit.memory",
    "evaluation.batch_size",
    "evaluation.memory",
    "evaluation.remember",
}

# Sections of it that may change.
_CHANGEABLE_SECTIONS = (
    "study.sampler",
    "study.steering",
    "launch",
    "report",
    "finish",
    "trackers",
)


def check_same_study(new: StudyFile, old: StudyFile, path: Path, folder: Path) -> None:
    """Raise if a run's folder belongs to a study file that says something else.

    Args:
        new: The study file.
        old: The one that the run was begun with.
        path: Where the new one is, for the message.
        folder: The run's.

    Raises:
        RunError: If they differ in what may not change while a run goes on.
    """
    before, after = flatten(old), flatten(new)
    for said in (before, after):  # what ``auto`` was called before there were devices
        if said["evaluation.kernels"] == "fast":
            said["evaluation.kernels"] = "auto"
    differing = sorted(
        key
        for key in {*before, *after} - _CHANGEABLE
        if before.get(key) != after.get(key) and not key.startswith(_CHANGEABLE_SECTIONS)
    )
    if differing:
        shown = ", ".join(
            f"{key} ({before.get(key)!r} there, {after.get(key)!r} here)" for key in differing[:3]
        )
        raise RunError(
            f"The folder {folder} belongs to another study file than {path}: they differ in "
            f"{shown}{' and more' if len(differing) > 3 else ''}. Choose another folder with "
            "`--run`, or remove this one."
        )


def load_study_file(path: str | Path) -> StudyFile:
    """Read and validate a study file.

    Paths in it are taken relative to the folder that it lies in; ``~`` is the user's.

    Args:
        path: The file.

    Raises:
        ConfigError: If it is missing, no YAML, or has a wrong key or value; names the key, the
            line and what is allowed.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=_Loader)
        content = load_yaml(text)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no study file at {path}, nor the folder of a run.") from error
    except OSError as error:
        raise ConfigError(f"The study file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The study file {path} is no text in UTF-8 (at byte {error.start}); save it as such."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values; allowed are {_allowed(StudyFile)}.")
    try:
        study_file = StudyFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, tree, e) for e in error.errors())) from error
    return _with_absolute_paths(study_file, path.parent.resolve())


class _Loader(yaml.SafeLoader):
    """Reads numbers as people mean them: ``1e-3`` is one, and ``4:00:00`` is a text."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: texts that look like numbers have quotes."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float | str:
    if ":" in node.value:  # YAML 1.1 counts in sixties
        return str(node.value)
    whole = node.tag == _INT
    return loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # YAML 1.1 wants point and sign
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
for _tag in (_INT, _FLOAT):
    _Loader.add_constructor(_tag, _number)


def load_yaml(text: str) -> Any:
    """What a study file, or the value of an option, says.

    Args:
        text: In YAML.

    Raises:
        yaml.YAMLError: If it is none.
    """
    return yaml.load(text, Loader=_Loader)


def dump_study_file(study_file: StudyFile) -> str:
    """A study file as YAML, with every default filled in.

    Args:
        study_file: The study file.
    """
    content = study_file.model_dump(mode="json")
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flatten(study_file: StudyFile) -> dict[str, Any]:
    """Every key of a study file with its value, as in ``study.sampler.name``.

    A section that is absent is one key whose value is None; one that is empty has no keys.

    Args:
        study_file: The study file.
    """
    return _flat(study_file.model_dump(mode="json"))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat


def _with_absolute_paths(study_file: StudyFile, folder: Path) -> StudyFile:
    def absolute(path: Path | str) -> Path:
        return folder / Path(path).expanduser()

    data = study_file.data
    for task in (data, data.a, data.b):
        for section in (task, task.train, task.val, task.test) if task is not None else ():
            for name in ("root", "class_map", "labels"):
                if getattr(section, name) is not None:
                    setattr(section, name, absolute(getattr(section, name)))
    if study_file.study.start.front_of is not None:
        study_file.study.start.front_of = absolute(study_file.study.start.front_of)
    students = study_file.finish.students if study_file.finish else []
    parents = study_file.parents
    for parent in (*parents.by_side.values(), *study_file.report.baselines, *students):
        if parent.checkpoint is not None:
            parent.checkpoint = absolute(parent.checkpoint)
        if parent.network.endswith(PROGRAM):
            parent.network = str(absolute(parent.network))
        elif parent.network.startswith(LOCAL):
            parent.network = f"{LOCAL}{absolute(parent.network.removeprefix(LOCAL))}"
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
    # a whole section would be long, and may hold a password
    said = "" if isinstance(error["input"], dict) else f" (it is {error['input']!r})"
    return f"{place}: {f'`{dotted}`: ' if dotted else ''}{message}{said}."


def _is_type_tag(key: Any) -> bool:
    """Whether pydantic put this into a location to tell the members of a union apart."""
    kinds = ("tuple[", "list[", "literal[")
    return isinstance(key, str) and (key in ("int", "str", "float") or key.startswith(kinds))


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
        if isinstance(key, int):
            continue  # an entry of a list of sections
        annotation = model.model_fields[key].annotation
        # of a union, or of a list
        options = typing.get_args(annotation) or (annotation,)
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model


def _allowed(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)
