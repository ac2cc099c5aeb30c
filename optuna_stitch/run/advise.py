"""Advice on networks and data as they are named on a command line, or in a study file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from optuna_stitch.data.load import Data, load_data
from optuna_stitch.models.parent import Parent, load_parent
from optuna_stitch.models.zoo import list_networks, random_head
from optuna_stitch.report.advice import Advice
from optuna_stitch.report.advise import advise
from optuna_stitch.run.build import make_parent
from optuna_stitch.run.folder import COPY
from optuna_stitch.run.schema import ParentConfig, StudyFile
from optuna_stitch.run.study_file import load_study_file
from optuna_stitch.utils.device import resolve_device
from optuna_stitch.utils.errors import CheckpointError, ConfigError
from optuna_stitch.utils.files import PROGRAM


def advise_on(
    names: Sequence[str],
    data: str,
    *,
    images: int = 400,
    fit_images: int = 200,
    depths: int = 4,
    crossed: int = 3,
    device: str | None = None,
    show_progress_bar: bool = False,
) -> Advice:
    """Ask for advice as a command line does; see `optuna_stitch.report.advise.advise`.

    Args:
        names: Networks: ``resnet50``, with wildcards ``resnet*``; ``resnet50=weights.safetensors``
            with weights of one's own; what a study file calls parents, ``a`` and ``b``, or names
            as their ``network``, as it says. Of a study file its parents, if none is named.
        data: A study file, the folder of a run, a folder with one for each class, or the name of
            a data set.
        images: As for `advise`.
        fit_images: Likewise.
        depths: Likewise.
        crossed: Likewise.
        device: Where to compute, in place of what the study file says.
        show_progress_bar: Whether to show progress bars.

    Raises:
        ConfigError: If the study file is wrong, or is about two jobs, or a network is named twice.
        UnknownNetworkError: If there is no network of such a name.
        CheckpointError: If weights are missing, broken, or those of another network.
        DataError: If images cannot be read, or networks do not know them.
    """
    study_file, loaded = _open(data, images, fit_images)
    where = resolve_device(device or (study_file.device if study_file else "auto"))
    known: dict[str, ParentConfig] = {}
    if study_file is not None:
        parents = study_file.parents
        own = parents.by_side
        named = (*reversed(own.values()), *reversed(study_file.report.baselines))
        known = {config.network: config for config in named}
        known |= own
    wanted = list(names) or (list(study_file.parents.by_side) if study_file else [])
    found = [
        _parent(name, known, loaded, where, show_progress_bar=show_progress_bar)
        for pattern in wanted
        for name in _expanded(pattern)
    ]
    return advise(
        found,
        loaded,
        images=images,
        fit_images=fit_images,
        depths=depths,
        crossed=crossed,
        device=where,
        show_progress_bar=show_progress_bar,
    )


def _open(data: str, images: int, fit_images: int) -> tuple[StudyFile | None, Data]:
    """The study file that is named, if one is, and images."""
    path = Path(data).expanduser()
    copy = path / COPY
    if path.suffix in (".yaml", ".yml") or copy.is_file():
        study_file = load_study_file(copy if copy.is_file() else path)
        if study_file.two_jobs:
            raise ConfigError(
                f"{data} is about two jobs; advice is on networks that tell the same classes "
                "apart."
            )
        return study_file, load_data(**study_file.data.model_dump(exclude={"a", "b"}))
    root = path if path.exists() else None
    if root is None and "/" not in data:
        raise ConfigError(
            f"There is no study file, run or folder of images at {data}, and no data set of that "
            "name, as sklearn/digits is one."
        )
    return None, load_data(
        data if root is None else "",
        root=root,
        train={"images": fit_images},
        val={"images": images},
    )


def _expanded(pattern: str) -> list[str]:
    return list_networks(pattern) if any(sign in pattern for sign in "*?[") else [pattern]


def _parent(
    name: str,
    known: Mapping[str, ParentConfig],
    data: Data,
    device: torch.device,
    *,
    show_progress_bar: bool,
) -> Parent | str:
    """A network as it was named; one whose weights the zoo has stays a name."""
    if name in known:
        return make_parent(known[name], data, device, show_progress_bar=show_progress_bar)
    network, equals, file = name.partition("=")
    if equals:
        return load_parent(network, checkpoint=Path(file).expanduser(), num_classes=data.classes)
    if network.endswith(PROGRAM):
        return load_parent(Path(network).expanduser())
    other = random_head(network, {"num_classes": data.classes})
    if other is not None:
        raise CheckpointError(
            f"{other} Give weights that were trained on your classes, as in "
            f"`{network}=weights.safetensors`."
        )
    return network
