"""From a study file to a saved supernetwork: parents, matches, stitches, and which are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from optuna_stitch.data.datasets import NOISE
from optuna_stitch.data.load import Data
from optuna_stitch.data.pair import DataPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.chance import check_parents
from optuna_stitch.evaluation.stitch_quality import (
    StitchQuality,
    best_stitches,
    measure_stitches,
    stitches_within,
)
from optuna_stitch.models.parent import Parent, load_parent
from optuna_stitch.models.train import train_parent
from optuna_stitch.models.zoo import random_head
from optuna_stitch.report.plots import write_stitch_quality
from optuna_stitch.run.schema import DataConfig, KeepConfig, ParentConfig, StudyFile
from optuna_stitch.stitching.genotype import BOTH, Side
from optuna_stitch.stitching.supernetwork import Supernetwork, stitch
from optuna_stitch.utils.distributed import barrier, rank, world_size
from optuna_stitch.utils.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    DataError,
    MatchError,
    first_line,
)
from optuna_stitch.utils.files import write_text
from optuna_stitch.utils.text import listed_text

# Of more than two parents there are many stitches: their weights take this share of the parents'.
_SHARE_OF_MANY = 0.1


def build(
    study_file: StudyFile,
    data: Data | DataPair,
    folder: Path,
    device: torch.device,
    *,
    show_progress_bar: bool = False,
) -> Supernetwork:
    """Load or train the parents, match them, fit, tune and measure the stitches, and save all.

    In several processes started by ``torchrun``, they share the images; the first one writes.

    Args:
        study_file: What to do.
        data: Its images.
        folder: Where to write the supernetwork and what is known of its stitches.
        device: Where to compute.
        show_progress_bar: Whether to show progress bars.

    Returns:
        The supernetwork with the stitches that are kept.

    Raises:
        DataError: If the parents tell other classes apart than the data set has, or one is no
            better than guessing.
        ConfigError: If there are more processes than images to share.
        MatchError: If no stitch is kept.
    """
    train = data.train.together if isinstance(data, DataPair) else data.train
    _check_processes(study_file, train)
    parents = study_file.parents
    made: list[Parent] = []
    data_of = {side: _data_of(data, side) for side in parents.by_side}
    for side, config in parents.by_side.items():
        own = data_of[side]
        parent = make_parent(config, own, device, show_progress_bar=show_progress_bar)
        parent.class_names = own.class_names
        made.append(parent)
    stitching = study_file.stitching
    similar_on = stitching.similarity_images
    supernetwork = stitch(
        *made,
        points=stitching.points,
        resize=stitching.resize,
        similar_on=train.take(similar_on) if similar_on else None,
        outputs=[BOTH] if study_file.two_jobs else None,
    )
    _check_classes(supernetwork, study_file.data, data_of)
    check_parents(supernetwork, data.val.take(study_file.keep.images), stop=_trained(study_file))
    fits = supernetwork.fit(data.train, study_file.fit, show_progress_bar=show_progress_bar)
    if study_file.tune is not None:
        tuned = supernetwork.tune(
            data.train,
            study_file.tune,
            checkpoint=folder / "tuning.pt",
            show_progress_bar=show_progress_bar,
        )
        if rank() == 0:
            _write_table(folder / "tuning.csv", pd.DataFrame(tuned))
    if rank() == 0:
        images = data.val.take(study_file.keep.images)
        stitch_qualities = measure_stitches(
            supernetwork, fits, images, show_progress_bar=show_progress_bar
        )
        supernetwork = _keep(supernetwork, stitch_qualities, study_file.keep, folder)
        supernetwork.save(folder)
    barrier()
    return supernetwork


def _check_processes(study_file: StudyFile, train: Split) -> None:
    """Raise where a process that ``torchrun`` started would have nothing to do."""
    images = len(train.take(study_file.fit.images))
    shared = {f"the {images} images of the fit": images}
    if study_file.tune is not None:
        batch = study_file.tune.batch_size
        shared[f"the {batch} images of a batch (`tune: {{batch_size: {batch}}}`)"] = batch
    for what, count in shared.items():
        if world_size() > count:
            raise ConfigError(
                f"torchrun started {world_size()} processes, which share {what}: start {count} at "
                "most with `--nproc-per-node`, or give more images."
            )


def _data_of(data: Data | DataPair, side: Side) -> Data:
    return data.of(side) if isinstance(data, DataPair) else data


def _check_classes(
    supernetwork: Supernetwork, config: DataConfig, data_of: Mapping[Side, Data]
) -> None:
    """Check that parents tell the classes of their data apart."""
    a, b = supernetwork.a, supernetwork.b
    counts = {side: supernetwork.supergraph.classes_of(side) for side in supernetwork.sides}
    alike = data_of["a"] is data_of["b"]
    if counts["a"] != counts["b"] and alike:
        raise DataError(
            f"{a.name} tells {counts['a']} classes apart, and {b.name} {counts['b']}: they have "
            "two jobs. Give data for each: `data: {a: {...}, b: {...}}`; or parents trained on "
            "the same classes."
        )
    for side, own in data_of.items():
        if counts[side] != own.classes:
            names = [parent.name for parent in supernetwork.parents.values()]
            who = listed_text(names) if alike else supernetwork.parents[side].name
            raise DataError(
                f"{who} {'tell' if alike else 'tells'} {counts[side]} classes apart, "
                f"the data set {config.tasks[side].dataset!r} has {own.classes}. Give parents "
                "trained on it, or a `class_map`."
            )


def _trained(study_file: StudyFile) -> list[Side]:
    """The parents that must be better than guessing: those whose weights come from elsewhere.

    What a study file trains itself, or leaves random, is as it says; and noise teaches nothing.
    """
    parents = study_file.parents
    tasks = study_file.data.tasks.values()
    if not parents.check or any(task.dataset.startswith(NOISE) for task in tasks):
        return []
    return [
        side
        for side, config in parents.by_side.items()
        if config.train is None and not config.random_weights
    ]


def read_stitch_quality(folder: Path) -> list[StitchQuality]:
    """The quality report that `build` left in a folder.

    Args:
        folder: The run's.

    Raises:
        ArtifactError: If it is missing or broken.
    """
    path = folder / "fit.csv"
    try:
        rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records")  # type: ignore[assignment]
        return [StitchQuality(**row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"The quality of the stitches in {path} cannot be read ({first_line(error)}). Put "
            "back a copy of the file, or build again in another folder (`--run`)."
        ) from error


def make_parent(
    config: ParentConfig, data: Data, device: torch.device, *, show_progress_bar: bool = False
) -> Parent:
    """Load a network as a study file says, or train it.

    Args:
        config: What it says.
        data: The images to train on.
        device: Where it shall be.
        show_progress_bar: Whether to show a progress bar.

    Raises:
        UnknownNetworkError: If there is no network of such a name.
        CheckpointError: If weights are missing, broken, or those of another network.
    """
    arguments = dict(config.model_args)
    if config.pretrained:
        other = random_head(config.network, arguments)
        if other is not None:
            raise CheckpointError(
                f"{other} Give weights that were trained on your classes as `checkpoint`, or "
                "train from nothing with `train: {...}`."
            )
    if config.train is not None:
        arguments.setdefault("num_classes", data.classes)
    parent = load_parent(config.network, model_args=arguments, **config.options).to(device)
    if config.train is not None:
        train_parent(parent, data.train, config.train, show_progress_bar=show_progress_bar)
    return parent


def _keep(
    supernetwork: Supernetwork,
    stitch_qualities: list[StitchQuality],
    config: KeepConfig,
    folder: Path,
) -> Supernetwork:
    """Write the quality report, and keep the stitches that the study file wants."""
    kept = best_stitches(stitch_qualities, **config.model_dump(exclude={"images", "max_weights"}))
    share = config.max_weights
    if share is None and len(supernetwork.sides) > 2:
        share = _SHARE_OF_MANY
    if share is not None:
        kept = stitches_within(supernetwork, stitch_qualities, kept, share)
    stitch_qualities = [
        replace(entry, kept=place in kept) for place, entry in enumerate(stitch_qualities)
    ]
    _write_table(folder / "fit.csv", pd.DataFrame(stitch_qualities))
    title = supernetwork.title
    write_stitch_quality(stitch_qualities, title, folder / "fit.png")
    if not kept:
        raise MatchError(
            f"`keep` drops all {len(stitch_qualities)} stitches of {title}; {folder / 'fit.csv'} "
            "says how good each is. Ask for less, in another folder (`--run`)."
        )
    return supernetwork if len(kept) == len(stitch_qualities) else supernetwork.keep(kept)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_text(path, table.to_csv(index=False))
