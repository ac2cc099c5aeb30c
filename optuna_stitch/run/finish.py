"""Finish found networks of a run, and keep them in its folder beside what they compare with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from optuna.trial import TrialState

from optuna_stitch.models.parent import Parent, load_parent
from optuna_stitch.run.schema import ParentConfig
from optuna_stitch.stitching.finish import alone, finish
from optuna_stitch.stitching.finished import facts_of, load_finished, save_finished
from optuna_stitch.stitching.genotype import Genotype, Side
from optuna_stitch.stitching.settings import Finishing
from optuna_stitch.stitching.subnetwork import Finished, Subnetwork
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.distributed import barrier, rank
from optuna_stitch.utils.errors import ArtifactError, ConfigError, FitError, StudyError
from optuna_stitch.utils.files import PROGRAM, content_key
from optuna_stitch.utils.progress import console

if TYPE_CHECKING:
    from optuna_stitch.run.folder import RunFolder

# Where a run keeps its finished networks.
FOLDER = "finished"

# Which trials are finished: their numbers, or the stitched networks of the study's front.
Trials = Sequence[int] | Literal["front"]

# What a parent is called that is finished to compare with, before its letter.
_PARENT = "parent "

# Trials that an error names.
_NAMED = 12


@dataclass(frozen=True)
class _Kept:
    """A finished network in a run's folder.

    Args:
        path: Its file.
        trial: The number of its trial, where it is one.
        control: What it is called where it is none.
        budget: What it shares with all that were trained likewise.
        student: What a network of neither parent is, by the study file.
        supernetwork: The hash of the supernetwork that it comes from.
        planned: How many steps it could take.
    """

    path: Path
    trial: int | None
    control: str
    budget: str
    student: ParentConfig | None
    supernetwork: str
    planned: int


def finish_trials(
    run: RunFolder,
    trials: Trials,
    settings: Finishing,
    *,
    controls: bool = True,
    students: Sequence[ParentConfig] = (),
    show_progress_bar: bool = False,
) -> dict[int, Subnetwork]:
    """Finish networks of a run, and what they are compared with.

    What was finished with the same settings is there already, and loaded; what was interrupted
    goes on. In several processes started by ``torchrun``, the first one writes.

    Args:
        run: The run.
        trials: Numbers of trials, or ``front`` for the study's best stitched networks.
        settings: How.
        controls: Whether the parent of nearest cost and the dearer one are finished likewise.
        students: Other networks to finish likewise.
        show_progress_bar: Whether to show progress bars.

    Returns:
        The finished networks, by trial.

    Raises:
        RunError: If the run has no study yet, or its folder is read-only.
        StudyError: If a trial is none, or not complete.
        ConfigError: If students shall be compared with in two jobs, or without any training.
        FitError: As `finish` says. Other networks are finished first.
    """
    run.check_writable()
    supernetwork = run.supernetwork
    chosen = _chosen(run, trials)
    if students and supernetwork.two_jobs:
        raise ConfigError("Students are not there for two jobs; leave them out.")
    if students and not settings.epochs:
        raise ConfigError("Students are trained, which `epochs: 0` is not; leave them out.")
    made = [(config, _student(config, run)) for config in students]  # a wrong name costs nothing
    folder = run.folder / FOLDER
    found: dict[int, Subnetwork] = {}
    failed: list[str] = []
    done: dict[str, str] = {}
    for number, subnetwork in chosen.items():
        work = _Work(run, settings, show_progress_bar)
        try:
            finished = work.finish(subnetwork, folder / f"trial-{number}", trial=str(number))
        except FitError as error:
            failed.append(f"Trial {number}: {error}")
            continue
        found[number] = finished
        assert finished.finished is not None
        steps, budget = finished.finished.planned, _budget(finished.finished)
        if not steps:
            continue  # what has no stitches has nothing to polish
        sides = _rivals(subnetwork, supernetwork) if controls else []
        for side in sides:
            name = f"{_PARENT}{side}"
            parent = supernetwork.subnetwork(Genotype(side))
            place = folder / f"parent-{side}-{budget}"
            if done.setdefault(place.name, name):
                work.finish(parent, place, steps=steps, control=name)
        for config, network in made:
            name = Path(config.network).name
            place = folder / f"{name}-{content_key(config.model_dump(mode='json'))[:6]}-{budget}"
            student = json.dumps(config.model_dump(mode="json"))
            work.finish(network, place, steps=steps, control=name, student=student)
    if failed:
        raise FitError("\n".join(failed))
    return found


class _Work:
    """What finishes the networks of a run.

    Args:
        run: The run.
        settings: How.
        show_progress_bar: Whether to show progress bars.
    """

    def __init__(self, run: RunFolder, settings: Finishing, show_progress_bar: bool) -> None:
        self._run = run
        self._settings = settings
        self._show_progress_bar = show_progress_bar

    def finish(
        self,
        network: Subnetwork | Parent,
        place: Path,
        *,
        steps: int | None = None,
        **facts: str,
    ) -> Subnetwork:
        """Finish a network, or load it where that was done.

        Args:
            network: The network.
            place: Where it is kept, without a suffix.
            steps: How many steps it may take, if that is settled.
            **facts: What it is.
        """
        supernetwork = self._run.supernetwork
        path, checkpoint = place.with_name(f"{place.name}.safetensors"), f"{place.name}.pt"
        content = supernetwork.content_hash()
        if path.is_file():
            known = facts_of(path)
            same = json.loads(known["finished"])["settings"] == self._settings.model_dump()
            if known.get("supernetwork") == content and same:
                plain = network if isinstance(network, Subnetwork) else alone(network)
                return load_finished(path, plain)
        what = f"trial {facts['trial']}" if "trial" in facts else facts["control"]
        if rank() == 0:
            console.print(f"Finishing {what}.", highlight=False)
        finished = finish(
            network,
            self._run.data,
            self._settings,
            teacher=supernetwork,
            steps=steps,
            checkpoint=place.with_name(checkpoint),
            show_progress_bar=self._show_progress_bar and rank() == 0,
        )
        assert finished.finished is not None
        if rank() == 0:
            console.print(f"{what.capitalize()}: {finished.finished.text}", highlight=False)
            budget = _budget(finished.finished)
            save_finished(finished, path, supernetwork=content, budget=budget, **facts)
            place.with_name(checkpoint).unlink(missing_ok=True)
        barrier()
        return finished


def kept_finished(
    run: RunFolder, only: Sequence[int] | None = None
) -> dict[int | str, Subnetwork]:
    """The finished networks of a run's folder, and what they are compared with.

    Args:
        run: The run.
        only: Numbers of the trials that are wanted; all, if None.

    Returns:
        By the number of the trial, or what a control is called.

    Raises:
        ArtifactError: If a file is broken, or was finished of another supernetwork.
    """
    kept = list(_kept(run.folder / FOLDER))
    wanted = [one for one in kept if one.trial is not None and (only is None or one.trial in only)]
    if not wanted:
        return {}
    supernetwork, study = run.supernetwork, run.study
    content = supernetwork.content_hash()
    params = {trial.number: trial.params for trial in study.get_trials(deepcopy=False)}
    budgets = {one.budget for one in wanted}
    wanted += [one for one in kept if one.trial is None and one.budget in budgets]
    found: dict[int | str, Subnetwork] = {}
    for one in wanted:
        if one.supernetwork != content or (one.trial is not None and one.trial not in params):
            raise ArtifactError(
                f"{one.path} was finished of another supernetwork ({one.supernetwork}; this one "
                f"is {content}). Remove the file, and finish again what you want."
            )
        if one.trial is not None:
            found[one.trial] = load_finished(one.path, supernetwork.subnetwork(params[one.trial]))
            continue
        name = one.control if len(budgets) == 1 else f"{one.control}, {one.planned} steps,"
        if one.student is not None:
            plain = alone(_student(one.student, run))
        else:
            plain = supernetwork.subnetwork(Genotype(one.control.removeprefix(_PARENT)))
        found[name] = load_finished(one.path, plain)
    return found


def _kept(folder: Path) -> Iterator[_Kept]:
    for path in sorted(folder.glob("*.safetensors")):
        facts = facts_of(path)
        student = facts.get("student")
        yield _Kept(
            path,
            int(facts["trial"]) if "trial" in facts else None,
            facts.get("control", ""),
            facts.get("budget", ""),
            ParentConfig.model_validate(json.loads(student)) if student else None,
            facts.get("supernetwork", ""),
            json.loads(facts["finished"])["planned"],
        )


def _budget(finished: Finished) -> str:
    """What is the same for all that were trained likewise."""
    return content_key(finished.settings, finished.planned, finished.images)[:6]


def _rivals(subnetwork: Subnetwork, supernetwork: Supernetwork) -> list[Side]:
    """The parent of nearest cost, and the dearest one; none of two jobs.

    A parent that is distilled from itself stays as it is.
    """
    if supernetwork.two_jobs:
        return []
    macs = {side: graph.macs for side, graph in supernetwork.graphs.items()}
    nearest = min(macs, key=lambda side: abs(macs[side] - subnetwork.macs))
    dearer = max(macs, key=lambda side: macs[side])
    return sorted({nearest, dearer})


def _student(config: ParentConfig, run: RunFolder) -> Parent:
    """A network that a user names, with as many classes as the parents have."""
    arguments = dict(config.model_args)
    if not config.network.endswith(PROGRAM):
        arguments.setdefault("num_classes", run.supernetwork.classes)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # the same weights whenever it goes on
        view = None if config.input_size else run.supernetwork.a.view
        return load_parent(config.network, model_args=arguments, view=view, **config.options).to(
            run.device
        )


def _chosen(run: RunFolder, trials: Trials) -> dict[int, Subnetwork]:
    """The networks that are to be finished, by trial."""
    study, supernetwork = run.study, run.supernetwork
    if trials == "front":
        best = {
            supernetwork.subnetwork(trial.params): trial.number
            for trial in study.best_trials[::-1]
        }
        found = {number: subnetwork for subnetwork, number in best.items() if subnetwork.on}
        if not found:
            raise StudyError(
                f"No stitched network is on the front of the study {study.study_name!r}. Name "
                "trials by their numbers, or search on."
            )
        return dict(sorted(found.items()))
    complete = {
        trial.number: trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    }
    for number in trials:
        if number not in complete:
            front = [str(trial.number) for trial in study.best_trials[:_NAMED]]
            best_of = ", ".join(front) or "none"
            raise StudyError(
                f"The study {study.study_name!r} has no complete trial {number}; on its front are "
                f"{best_of}."
            )
    return {
        number: supernetwork.subnetwork(complete[number].params)
        for number in dict.fromkeys(trials)
    }
