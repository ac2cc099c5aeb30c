"""Export a trial of a run: its network, figures on the test split, and whose weights it has."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from optuna_stitch.data.load import Data
from optuna_stitch.data.pair import DataPair
from optuna_stitch.export.card import Comparison, Figures, Origin, ParentOrigin, Results
from optuna_stitch.export.export import (
    FILES,
    check_folder,
    check_max_drop,
    export_subnetwork,
)
from optuna_stitch.export.formats import select_formats
from optuna_stitch.export.hub import check_push, push_folder
from optuna_stitch.models.parent import Parent
from optuna_stitch.report.entries import STITCHED, Entry
from optuna_stitch.report.front import Front
from optuna_stitch.run.finish import kept_finished
from optuna_stitch.run.folder import RunFolder
from optuna_stitch.run.report import versions
from optuna_stitch.run.schema import DataConfig, ParentConfig, SplitConfig, TaskConfig
from optuna_stitch.stitching.genotype import SIDES, Side
from optuna_stitch.stitching.settings import Tuning
from optuna_stitch.utils.errors import ExportError

# Trials that an error names.
_NAMED = 12


def export_trial(
    run: RunFolder,
    number: int,
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
    """Export the network of one trial of a run, with its figures on the test split.

    Args:
        run: The run.
        number: Number of the trial.
        to: Folder to write into; see `export_subnetwork`.
        formats: ``python``, ``program``, ``onnx``, ``all`` of these, or formats for a certain
            target; see `export_subnetwork`.
        force: Whether to replace files of an earlier export.
        push: Repository on the Hugging Face Hub to upload the folder to, ``user/name``.
        private: Whether a new repository is private.
        max_drop: If given, points of quality that a file may lose on the validation images.
        command: What the user called, for the model card.
        finished: Whether to export the network as it was finished.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        RunError: If the run has no study yet.
        ExportError: If there is no such trial or it is not complete, or as `export_subnetwork`
            and `push_folder` say.
    """
    to = Path(to).expanduser()
    # what can be checked is checked before anything is computed
    select_formats(formats)
    check_folder(to, force=force)
    check_max_drop(max_drop)
    if push is not None:
        check_push(push)
    _check_complete(run.study, number)
    if finished and number not in kept_finished(run, [number]):
        place = shlex.quote(str(run.folder))
        raise ExportError(
            f"Trial {number} is not finished: `optuna-stitch finish {place} "
            f"--trial {number}` first, or export it as it was found, without `--finished`."
        )
    supernetwork, config = run.supernetwork, run.study_file
    data = run.data
    names_of: dict[Side, tuple[str, ...] | None] = {}
    if isinstance(data, DataPair):
        names_of = {side: data.of(side).class_names for side in SIDES}
    front = run.evaluate_front(only=[number], show_progress_bar=show_progress_bar)
    origin = Origin(
        parents={
            side: parent_origin(parent, config.parents.by_side[side], config.tune)
            for side, parent in supernetwork.parents.items()
        },
        trial=number,
        study=run.name,
        results=results_of(front, number, dataset=_dataset(config.data), finished=finished),
        data=_data(run),
        command=command,
        facts=[("supernetwork", supernetwork.content_hash()), ("versions", versions())],
        class_names=data.class_names if isinstance(data, Data) else None,
        names_of=names_of,
    )
    subnetwork = front.entry(number, finished=finished).subnetwork
    assert subnetwork is not None, "entries of trials are subnetworks"
    export_subnetwork(
        subnetwork,  # the very one with the figures; a cascade with its exit
        to,
        split=data.test,
        origin=origin,
        formats=formats,
        force=force,
        validation=data.val,
        train=data.train,
        max_drop=max_drop,
        show_progress_bar=show_progress_bar,
    )
    if push is not None:
        push_folder(to, FILES, push, private=private)
    return to


def results_of(front: Front, trial: int, *, dataset: str, finished: bool = False) -> Results:
    """Take what a card says of a trial's figures from a front.

    Args:
        front: The trial and its baselines on the test split.
        trial: Number of the trial.
        dataset: What the data set is called.
        finished: Whether those of the finished network are wanted.

    Raises:
        StudyError: If the front has no such trial.
    """
    entry = front.entry(trial, finished=finished)
    comparisons = {
        one.baseline: Comparison(one.difference, one.p_value) for one in entry.comparisons
    }
    baselines = [
        _figures(other)
        for other in front.entries
        if other is not entry
        and (other.kind != STITCHED or other.name in comparisons)
        and (other.name in comparisons or other.kind in ("parent", "ensemble", "probe"))
    ]
    return Results(
        _figures(entry), baselines, comparisons, front.images, dataset, metric=front.metric
    )


def _figures(entry: Entry) -> Figures:
    others = {
        name: value
        for name, value in entry.test.items()
        if name not in (entry.metric, "macs", "parameters")
    }
    return Figures(
        entry.name,
        entry.quality,
        entry.interval,
        entry.test["macs"],
        entry.parameters,
        others,
        worst_macs=entry.worst.get("macs"),
        share=entry.share,
    )


def parent_origin(parent: Parent, config: ParentConfig, tune: Tuning | None) -> ParentOrigin:
    """Say what is known of a parent's weights.

    Args:
        parent: The parent.
        config: What the study file says of it.
        tune: What the study file says of tuning.

    Returns:
        With a licence only where the weights are pretrained ones of timm's.
    """
    name = Path(parent.name).name if parent.source == "program" else parent.name
    licence = repo = None
    if config.train is not None:
        epochs = f"{config.train.epochs} epoch{'s' if config.train.epochs > 1 else ''}"
        weights = f"trained in this run, {epochs} on its train split"
    elif config.checkpoint is not None:
        weights = f"the user's own checkpoint, {config.checkpoint.name}"
    elif config.random_weights:
        weights = "random: the run only tried something out"
    elif parent.source == "program":
        weights = "the user's own, in an exported program"
    elif parent.source == "torchvision":
        weights = "pretrained, from torchvision"
    else:
        stated: dict[str, Any] = getattr(parent.module, "pretrained_cfg", None) or {}
        licence, repo = stated.get("license"), stated.get("hf_hub_id")
        link = f": [{repo}](https://huggingface.co/{repo})" if repo else ""
        weights = f"pretrained, from timm{link}"
    tuned = "; tuned further in this run" if tune is not None and tune.thaw else ""
    return ParentOrigin(name, weights + tuned, licence, repo)


def _data(run: RunFolder) -> list[tuple[str, str]]:
    """Which images there are of each split, by names that tell nothing of the machine."""
    data, tasks = run.data, run.study_file.data.tasks
    if isinstance(data, Data):
        return _data_of(tasks["a"], data)
    return [
        (f"{name}, {side}", text)
        for side in SIDES
        for name, text in _data_of(tasks[side], data.of(side))
    ]


def _data_of(config: TaskConfig, data: Data) -> list[tuple[str, str]]:
    """The same of one question."""
    purposes = {
        "train": (config.train, data.train, "the stitches were fitted on"),
        "val": (config.val, data.val, "the search evaluated networks on"),
        "test": (config.test, data.test, "the figures are measured on"),
    }
    lines = []
    for name, (own, split, purpose) in purposes.items():
        root = own.root or config.root
        folder = f" in the folder {root.name}" if root is not None else ""
        part = f", its part {own.split}" if own.split else ""
        lines.append(
            (name, f"{len(split):,} images that {purpose}: {_name_of(config, own)}{folder}{part}")
        )
    named = f": {', '.join(data.class_names)}" if data.class_names else ""
    return [*lines, ("classes", f"{data.classes}{named}")]


def _name_of(config: TaskConfig, own: SplitConfig) -> str:
    """What the data set of a split is called."""
    column = own.column or config.column
    name = own.dataset or config.dataset or "images"
    return f"{name} ({column})" if column else name


def _dataset(config: DataConfig) -> str:
    """What the test images are called."""
    return ", ".join(dict.fromkeys(_name_of(own, own.test) for own in config.tasks.values()))


def _check_complete(study: optuna.Study, number: int) -> None:
    """Check that a trial of a study has a network to export."""
    trials = study.get_trials(deepcopy=False)
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None:
        numbers = f"has {len(trials)}, 0 to {len(trials) - 1}" if trials else "has none yet"
        raise ExportError(
            f"There is no trial {number}: the study {study.study_name!r} {numbers}. {_best(study)}"
        )
    if found.state != TrialState.COMPLETE:
        raise ExportError(
            f"Trial {number} of the study {study.study_name!r} is not complete: its state is "
            f"{found.state.name}. {_best(study)}"
        )


def _best(study: optuna.Study) -> str:
    numbers = [str(trial.number) for trial in study.best_trials]
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"On the front are {', '.join(numbers[:_NAMED]) or 'none'}{more}."
