"""The networks of a report, and what was measured of them on the test split."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from optuna_stitch.evaluation.accumulator import Confusions, PairedResult
from optuna_stitch.evaluation.metrics import Unit, class_iou_of, unit_of
from optuna_stitch.evaluation.significance import Interval
from optuna_stitch.stitching.genotype import ENSEMBLE, Output, Side
from optuna_stitch.stitching.subnetwork import Subnetwork
from optuna_stitch.utils.errors import StudyError

STITCHED = "stitched"

# Of parents and other networks that were finished as found networks were.
FINISHED = "finished"


def baseline_name(output: Output) -> str:
    """What a subnetwork without stitches is called: ``parent a``, ``ensemble``, ``ensemble a+b``.

    Args:
        output: Of the subnetwork, which is no cascade.
    """
    if output == ENSEMBLE:
        return "ensemble"
    return f"ensemble {output}" if "+" in output else f"parent {output}"


# The smallest p-value at which two networks are not told apart.
LEVEL = 0.05


@dataclass(frozen=True)
class PairedComparison:
    """A network and a baseline on the same test images.

    Args:
        baseline: Name of the baseline.
        difference: Quality of the network less that of the baseline.
        p_value: McNemar's for accuracy, the paired bootstrap's for mean IoU; corrected by Holm
            for all comparisons of the report.
    """

    baseline: str
    difference: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the two differ at the 5% level."""
        return self.p_value < LEVEL


@dataclass
class Entry:
    """One network of the report.

    Args:
        name: ``parent a``, ``parent b``, ``ensemble``, ``duo``, ``cascade 23%``, the name of
            another network, or ``trial <number>``; of more than two parents also ``ensemble a+b``
            and ``cascade 23% a+b``.
        kind: ``parent``, ``ensemble``, ``duo``, ``cascade``, ``probe``, ``other``, ``finished``
            (what was trained as finished networks were, to compare them with) or ``stitched``.
        test: Figures on the test split, by name: the study's objectives, and always the quality
            and ``macs``.
        metric: Which of them is the quality: ``accuracy``, or ``mean_iou`` for segmentation;
            ``retained`` of two jobs.
        intervals: Their 95% intervals, as far as they come from images: Wilson's of shares, the
            bootstrap's of others.
        parameters: Number of parameters.
        trial: Number of the study's trial, where it is one.
        subnetwork: Which subnetwork it is, where it is one.
        values: The objectives on the validation split, by name, where it is a trial.
        recipe: How it answers, where its name does not say.
        on_front: Whether no other entry is at least as good in every objective on the test split
            and better in one; costs of cascades are averages over the test images.
        on_fixed_front: Whether no other entry is, of those that cost the same for every image.
        worst: What the most expensive image costs, of the costs that differ between images.
        share: Of a cascade, the share of test images that go on.
        comparisons: With baselines; empty for the baselines themselves.
        result: What every image says of its quality.
        guesses: The class of every test image, ``(N,)``, where it labels images.
    """

    name: str
    kind: str
    test: dict[str, float]
    metric: str
    intervals: dict[str, Interval] = field(default_factory=dict)
    parameters: int = 0
    trial: int | None = None
    subnetwork: Subnetwork | None = None
    values: dict[str, float] = field(default_factory=dict)
    recipe: str = ""
    on_front: bool = False
    on_fixed_front: bool = False
    worst: dict[str, float] = field(default_factory=dict)
    share: float | None = None
    comparisons: list[PairedComparison] = field(default_factory=list)
    result: PairedResult | None = field(default=None, repr=False)
    guesses: Tensor | None = field(default=None, repr=False)

    @property
    def quality(self) -> float:
        """Accuracy, or mean IoU; of two jobs what share of the parents' is retained."""
        return self.test[self.metric]

    @property
    def interval(self) -> Interval:
        """The quality's 95% interval."""
        return self.intervals[self.metric]

    @property
    def is_cascade(self) -> bool:
        """Whether some images cost more than others."""
        return self.share is not None

    @property
    def finished(self) -> bool:
        """Whether it is a network of the study that was trained to its end."""
        return self.subnetwork is not None and self.subnetwork.finished is not None

    @property
    def on_a_front(self) -> bool:
        """Whether it is on the front at average cost, or on the one at fixed cost."""
        return self.on_front or self.on_fixed_front

    @property
    def fronts(self) -> str:
        """Which fronts it is on, for people; of a cascade, that at average cost only."""
        if self.on_front and self.on_fixed_front:
            return "both"
        return "average" if self.on_front else "fixed" if self.on_fixed_front else ""

    @property
    def stitches(self) -> list[str]:
        """Names of the stitches that it has on."""
        return self.subnetwork.stitches if self.subnetwork else []

    def comparison(self, baseline: Entry) -> PairedComparison | None:
        """How it compares with a baseline; None if the two were not compared.

        Args:
            baseline: The baseline.
        """
        return next((some for some in self.comparisons if some.baseline == baseline.name), None)


def short_of_found(baseline: str) -> str:
    """What a network is called as it was found, beside the same network finished.

    Args:
        baseline: The name of an entry.
    """
    return "found" if baseline.startswith("trial ") else baseline


@dataclass(frozen=True)
class Entries:
    """Baselines and the networks that a study found, with figures from the test split.

    `Front` adds what is to be said of them.

    Args:
        entries: The baselines, then stitched networks by rising cost.
        objectives: Names of the study's objectives.
        trials: Objectives on the validation split of every complete trial, for the background of
            a plot; one row per trial, a column per objective.
        images: Number of test images.
        metric: What `Entry.quality` is, ``accuracy`` or ``mean_iou``.
        cost: The cost that plots show: the first objective that is one, else ``macs``.
        targets: Labels of the test images, ``(N,)``, where images are labelled.
        indices: Which images of their data set they are.
        units: What people read figures in, by name; figures not named as `unit_of` says.
        sides: Of parents with two jobs, what is known of each answer, by side: the same networks
            in the same order, judged as networks of one answer are.
    """

    entries: list[Entry]
    objectives: list[str]
    trials: pd.DataFrame
    images: int
    metric: str = "accuracy"
    cost: str = "macs"
    targets: Tensor | None = field(default=None, repr=False)
    indices: Sequence[int] = field(default=(), repr=False)
    units: Mapping[str, Unit] = field(default_factory=dict, repr=False)
    sides: Mapping[Side, Entries] = field(default_factory=dict, repr=False)

    @property
    def baselines(self) -> list[Entry]:
        """All parents, their ensembles, the duo, the cascades, other networks."""
        return [entry for entry in self.entries if entry.kind != STITCHED]

    @property
    def parents(self) -> list[Entry]:
        """The parents alone; of two jobs, both side by side."""
        return [entry for entry in self.entries if entry.kind == "parent"]

    @property
    def every(self) -> str:
        """The word for all of the parents: ``both``, or ``all`` of more than two."""
        return "all" if len(self.parents) > 2 else "both"

    @property
    def stitched(self) -> list[Entry]:
        """Networks with at least one stitch that matters."""
        return [entry for entry in self.entries if entry.kind == STITCHED]

    @property
    def front(self) -> list[Entry]:
        """Entries that no other dominates, cascades at their average cost."""
        return [entry for entry in self.entries if entry.on_front]

    @property
    def fixed_front(self) -> list[Entry]:
        """Entries that no other dominates, of those that cost the same for every image."""
        return [entry for entry in self.entries if entry.on_fixed_front]

    @property
    def stitched_front(self) -> list[Entry]:
        """Stitched networks that no other entry dominates, cascades at their average cost."""
        return [entry for entry in self.stitched if entry.on_front]

    @property
    def stitched_fixed_front(self) -> list[Entry]:
        """Stitched networks on the front of those that cost the same for every image."""
        return [entry for entry in self.stitched if entry.on_fixed_front]

    @property
    def stitched_fronts(self) -> list[Entry]:
        """Stitched networks on either front."""
        return [entry for entry in self.stitched if entry.on_a_front]

    @property
    def has_cascades(self) -> bool:
        """Whether some entries cost more for some images, so that both fronts may differ."""
        return any(entry.is_cascade for entry in self.entries)

    @property
    def optimism(self) -> float | None:
        """By how much the fronts' stitched networks looked better on validation images.

        The search picks lucky networks: quality there less that on test images, the median over
        them. None where no front has any, or quality is no objective.
        """
        differences = [
            entry.values[self.metric] - entry.quality
            for entry in self.stitched_fronts
            if self.metric in entry.values
        ]
        return statistics.median(differences) if differences else None

    def entry(self, trial: int, *, finished: bool = False) -> Entry:
        """The entry of a trial.

        Args:
            trial: Its number.
            finished: Whether that of the finished network is wanted.

        Raises:
            StudyError: If it is not among the entries.
        """
        for entry in self.entries:
            if entry.trial == trial and entry.finished == finished:
                return entry
        if finished:
            raise StudyError(f"No finished network of trial {trial} is in this report.")
        known = [str(e.trial) for e in self.entries if e.on_a_front and e.trial is not None]
        raise StudyError(
            f"Trial {trial} is not in this report; on the front are {', '.join(known) or 'none'}."
        )

    def unit(self, figure: str) -> Unit:
        """What people call a figure, and the unit that they read it in.

        Args:
            figure: Its name.
        """
        return self.units.get(figure) or unit_of(figure)

    def table(self) -> pd.DataFrame:
        """One row per entry, with every figure.

        Returns:
            Columns ``name``, ``kind``, ``trial``, ``finished``, ``on_front``, ``on_fixed_front``,
            ``val_*``,
            ``test_*`` with ``test_*_low`` and ``test_*_high`` (of cascades, average costs),
            ``worst_*`` (what the most expensive image costs), ``share`` (of a cascade, of the test
            images that go on), ``threshold`` (the study's parameter, of a stitched cascade),
            ``confidence`` and ``confidence_threshold`` (which measure its first answer must
            reach, and how much of it), ``parameters``, ``output``, ``stitches``, and for every
            baseline the difference to it and its ``p_value_*``; of a finished network also for
            the network as it was ``found``.
        """
        rows = []
        for entry in self.entries:
            row: dict[str, object] = {
                "name": entry.name,
                "kind": entry.kind,
                "trial": entry.trial,
                "finished": entry.finished,
                "on_front": entry.on_front,
                "on_fixed_front": entry.on_fixed_front,
            }
            row |= {f"val_{name}": value for name, value in entry.values.items()}
            for name, value in entry.test.items():
                row[f"test_{name}"] = value
                if name in entry.intervals:
                    row[f"test_{name}_low"], row[f"test_{name}_high"] = entry.intervals[name]
            row |= {f"worst_{name}": value for name, value in entry.worst.items()}
            exit = entry.subnetwork.exit if entry.subnetwork else None
            row |= {
                "share": entry.share,
                "threshold": entry.subnetwork.threshold if entry.subnetwork else None,
                "confidence": exit.confidence if exit else None,
                "confidence_threshold": exit.threshold if exit else None,
                "parameters": entry.parameters,
                "output": entry.subnetwork.output if entry.subnetwork else entry.recipe,
                "stitches": "; ".join(entry.stitches),
            }
            for comparison in entry.comparisons:
                name = short_of_found(comparison.baseline).replace(" ", "_").replace("%", "")
                row[f"{self._compared(comparison)}_minus_{name}"] = comparison.difference
                row[f"p_value_{name}"] = comparison.p_value
            rows.append(row)
        return pd.DataFrame(rows).astype({"trial": "Int64"})

    def _compared(self, comparison: PairedComparison) -> str:
        """Which figure is compared; of two jobs, that of the parent's own question."""
        for side, own in self.sides.items():
            if comparison.baseline == baseline_name(side):
                return f"{own.metric}_{side}"
        return self.metric

    def predictions(self) -> pd.DataFrame | None:
        """The raw predictions that figures rest on; None of networks that label pixels.

        Returns:
            A row per test image, by its place in the data set as ``image``; the column ``label``,
            and one for each network.
        """
        if self.targets is None:
            return None
        guesses = {e.name: e.guesses.numpy() for e in self.entries if e.guesses is not None}
        index = pd.Index(self.indices, name="image")
        return pd.DataFrame({"label": self.targets.numpy(), **guesses}, index=index)

    def by_class(self, class_names: Sequence[str] | None = None) -> pd.DataFrame:
        """Quality by class on the test split; the mean of a column is the balanced accuracy.

        Args:
            class_names: In the order of the labels, where they are known.

        Returns:
            A row per class that occurs, by its ``label``: the ``class``, the number of ``images``
            (of ``pixels``, where those are labelled), and for each network the accuracy, or the
            intersection over union, of which the mean is the mean IoU.
        """
        columns: dict[str, NDArray[np.float64]] = {}
        if self.targets is not None:
            what, labels = "images", self.targets
            counts = labels.bincount().double().numpy()
            for entry in self.entries:
                if entry.guesses is not None:
                    right = labels[entry.guesses == labels].bincount(minlength=len(counts))
                    columns[entry.name] = right.numpy() / counts.clip(1)
        else:
            what, counts = "pixels", np.zeros(0)
            for entry in self.entries:
                if isinstance(entry.result, Confusions):
                    confusions = entry.result.matrices.sum(axis=0)
                    counts = confusions.sum(axis=1)
                    columns[entry.name] = class_iou_of(confusions)
        named = class_names or [str(label) for label in range(len(counts))]
        table = pd.DataFrame({"class": named[: len(counts)], what: counts.astype(int), **columns})
        table.index.name = "label"
        occurs = table[list(columns)].notna().any(axis=1) if what == "pixels" else table[what] > 0
        return table[occurs]
