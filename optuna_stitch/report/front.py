"""The front of a study: its networks, and what one would use otherwise, on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor

from optuna_stitch.evaluation.metrics import axis_of, words_of
from optuna_stitch.report.evidence import Interval, PairedResult
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.utils.errors import StudyError

STITCHED = "stitched"


@dataclass(frozen=True)
class PairedComparison:
    """A network and a baseline on the same test images.

    Args:
        baseline: Name of the baseline.
        difference: Quality of the network less that of the baseline.
        p_value: McNemar's for accuracy, the paired bootstrap's for mean IoU; corrected by Holm
            for all claims of the report.
    """

    baseline: str
    difference: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the two differ at the 5% level."""
        return self.p_value < 0.05


@dataclass
class Entry:
    """One network of the report.

    Args:
        name: ``parent a``, ``parent b``, ``ensemble``, ``duo``, ``cascade 23%``, the name of
            another network, or ``trial <number>``.
        kind: ``parent``, ``ensemble``, ``duo``, ``cascade``, ``other`` or ``stitched``.
        test: Figures on the test split, by name: the study's objectives, and always the quality
            and ``macs``.
        metric: Which of them is the quality: ``accuracy``, or ``mean_iou`` for segmentation.
        intervals: Their 95% intervals, as far as they come from images: Wilson's of shares, the
            bootstrap's of others.
        parameters: Number of parameters.
        trial: Number of the study's trial, where it is one.
        genotype: In canonical form, where it is a subnetwork.
        values: The objectives on the validation split, by name, where it is a trial.
        recipe: How it answers, where its name does not say.
        on_front: Whether no other entry is at least as good in every objective on the test split
            and better in one.
        claims: Against baselines; empty for the baselines themselves.
        evidence: What every image says of its quality.
        guesses: The class of every test image, ``(N,)``, where it labels images.
    """

    name: str
    kind: str
    test: dict[str, float]
    metric: str
    intervals: dict[str, Interval] = field(default_factory=dict)
    parameters: int = 0
    trial: int | None = None
    genotype: Genotype | None = None
    values: dict[str, float] = field(default_factory=dict)
    recipe: str = ""
    on_front: bool = False
    comparisons: list[PairedComparison] = field(default_factory=list)
    per_image: PairedResult | None = field(default=None, repr=False)
    guesses: Tensor | None = field(default=None, repr=False)

    @property
    def quality(self) -> float:
        """Accuracy, or mean IoU."""
        return self.test[self.metric]

    @property
    def interval(self) -> Interval:
        """The quality's 95% interval."""
        return self.intervals[self.metric]


@dataclass(frozen=True)
class Front:
    """Baselines and the networks that a study found, with figures from the test split.

    Args:
        entries: The baselines, then stitched networks by rising cost.
        objectives: Names of the study's objectives.
        trials: Objectives on the validation split of every complete trial, for the background of
            a plot; one row per trial, a column per objective.
        images: Number of test images.
        metric: What `Entry.quality` is, ``accuracy`` or ``mean_iou``.
        switches: Names of the supernetwork's switches.
        cost: The cost that plots show: the first objective that is one, else ``macs``.
        targets: Labels of the test images, ``(N,)``, where images are labelled.
        indices: Which images of their data set they are.
    """

    entries: list[Entry]
    objectives: list[str]
    trials: pd.DataFrame
    images: int
    metric: str = "accuracy"
    switches: tuple[str, ...] = ()
    cost: str = "macs"
    targets: Tensor | None = field(default=None, repr=False)
    indices: Sequence[int] = field(default=(), repr=False)

    @property
    def baselines(self) -> list[Entry]:
        """Both parents, their ensemble, the duo, the cascades, other networks."""
        return [entry for entry in self.entries if entry.kind != STITCHED]

    @property
    def stitched(self) -> list[Entry]:
        """Networks with at least one stitch that matters."""
        return [entry for entry in self.entries if entry.kind == STITCHED]

    @property
    def front(self) -> list[Entry]:
        """Entries that no other dominates."""
        return [entry for entry in self.entries if entry.on_front]

    def entry(self, trial: int) -> Entry:
        """The entry of a trial.

        Raises:
            StudyError: If it is not among the entries.
        """
        for entry in self.entries:
            if entry.trial == trial:
                return entry
        known = [str(entry.trial) for entry in self.front if entry.trial is not None]
        raise StudyError(f"Trial {trial} is not in this report; on the front are {_list(known)}.")

    def stitches(self, entry: Entry) -> list[str]:
        """Names of the stitches that an entry has on."""
        return [self.switches[i] for i in sorted(entry.genotype.on)] if entry.genotype else []

    def table(self) -> pd.DataFrame:
        """One row per entry, with every figure."""
        rows = []
        for entry in self.entries:
            row: dict[str, object] = {
                "name": entry.name,
                "kind": entry.kind,
                "trial": entry.trial,
                "on_front": entry.on_front,
            }
            row |= {f"val_{name}": value for name, value in entry.values.items()}
            for name, value in entry.test.items():
                row[f"test_{name}"] = value
                if name in entry.intervals:
                    row[f"test_{name}_low"], row[f"test_{name}_high"] = entry.intervals[name]
            row |= {
                "parameters": entry.parameters,
                "output": entry.genotype.output if entry.genotype else entry.recipe,
                "stitches": "; ".join(self.stitches(entry)),
            }
            for claim in entry.comparisons:
                name = claim.baseline.replace(" ", "_").replace("%", "")
                row[f"{self.metric}_minus_{name}"] = claim.difference
                row[f"p_value_{name}"] = claim.p_value
            rows.append(row)
        return pd.DataFrame(rows).astype({"trial": "Int64"})

    def _repr_html_(self) -> str:
        from optuna_stitch.report.tables import front_html  # which reads fronts

        return front_html(self)

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


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


# Networks whose qualities differ by no more than this are about as good.
_NEAR = 0.01

# A smaller share of the cost saved is not worth a headline.
_WORTH_SAYING = 0.05

# A network that loses more against the cheapest alternative is no bargain at any saving.
_BARGAIN = 0.05


@dataclass(frozen=True)
class Finding:
    """What a report opens with.

    Args:
        sentence: The finding.
        entry: The network that it is about; None where it is about none.
    """

    sentence: str
    entry: Entry | None


def headline(front: Front) -> str:
    """What was found, in one plain sentence."""
    return find(front).sentence


def find(front: Front) -> Finding:
    """What was found: the strongest of these that holds.

    A network that is better than a baseline and costs no more; one that is as good and cheaper;
    one that is cheaper than all baselines and loses little; or that there is none.

    Args:
        front: With its claims.
    """
    shown = [entry for entry in front.front if entry.kind == STITCHED]
    for kind in (_better, _cheaper, _cheapest):
        found = kind(front, shown)
        if found is not None:
            return found
    if shown:
        count = (
            f"{len(shown)} stitched networks lie" if len(shown) > 1 else "A stitched network lies"
        )
        return Finding(
            f"{count} on the front, but none is cheaper than a parent or a combination of both of "
            f"about the same {words_of(front.metric)}.",
            max(shown, key=lambda entry: entry.quality),
        )
    return Finding(
        f"No stitched network is worth its cost: {_listed(_names(front))} "
        f"{'is' if len(front.front) == 1 else 'are'} at least as good and cost no more.",
        None,
    )


def _better(front: Front, shown: list[Entry]) -> Finding | None:
    """A network that is significantly better than a baseline that costs as much or more."""
    found = [
        (rival.on_front, claim.difference, entry, claim, rival)
        for entry in shown
        for claim, rival in _rivals(front, entry)
        if claim.significant
        and claim.difference > 0
        and entry.test[front.cost] <= rival.test[front.cost]
    ]
    if not found:
        return None
    _, _, entry, claim, rival = max(found, key=lambda each: each[:2])
    saving = 1 - entry.test[front.cost] / rival.test[front.cost]
    needs = (
        f"needs {100 * saving:.0f}% fewer {axis_of(front.cost).words}"
        if saving >= _WORTH_SAYING
        else "costs no more"
    )
    return Finding(
        f"A stitched network ({entry.name}) has a higher {words_of(front.metric)} than "
        f"{_the(rival)} ({_percent(entry)} against {_percent(rival)}, p = {claim.p_value:.2g} "
        f"after correction) and {needs}.",
        entry,
    )


def _cheaper(front: Front, shown: list[Entry]) -> Finding | None:
    """A network that is about as good as the cheapest such baseline, for less."""
    found: list[tuple[float, Entry, Entry]] = []
    for entry in shown:
        as_good = [other for other in front.baselines if other.quality >= entry.quality - _NEAR]
        for rival in sorted(as_good, key=lambda other: other.test[front.cost])[:1]:
            saving = 1 - entry.test[front.cost] / rival.test[front.cost]
            if rival.quality <= entry.quality + _NEAR and saving > _WORTH_SAYING:
                found.append((saving, entry, rival))
    if not found:
        return None
    saving, entry, rival = max(found, key=lambda each: each[0])
    claim = _claim(entry, rival)
    chance = ""
    if claim is not None:
        told = "can tell" if claim.significant else "cannot tell"
        chance = f", which {front.images} test images {told} from chance (p = {claim.p_value:.2g})"
    return Finding(
        f"A stitched network ({entry.name}) needs {100 * saving:.0f}% fewer "
        f"{axis_of(front.cost).words} than {_the(rival)}; its {words_of(front.metric)} of "
        f"{_percent(entry)} differs from that one's {_percent(rival)} by "
        f"{100 * (entry.quality - rival.quality):+.1f} points{chance}.",
        entry,
    )


def _cheapest(front: Front, shown: list[Entry]) -> Finding | None:
    """A network that costs less than all baselines and loses little against the cheapest."""
    rival = min(front.baselines, key=lambda other: other.test[front.cost])
    found = [
        entry
        for entry in shown
        if entry.test[front.cost] < (1 - _WORTH_SAYING) * rival.test[front.cost]
        and entry.quality >= rival.quality - _BARGAIN
    ]
    if not found:
        return None
    entry = max(found, key=lambda each: each.quality)
    saving = 1 - entry.test[front.cost] / rival.test[front.cost]
    claim = _claim(entry, rival)
    chance = f", p = {claim.p_value:.2g}" if claim is not None else ""
    less = 100 * (rival.quality - entry.quality)
    return Finding(
        f"A stitched network ({entry.name}) needs {100 * saving:.0f}% fewer "
        f"{axis_of(front.cost).words} than {_the(rival)}, the cheapest alternative, and its "
        f"{words_of(front.metric)} is {abs(less):.1f} points {'lower' if less >= 0 else 'higher'} "
        f"({_percent(entry)} against {_percent(rival)}{chance}).",
        entry,
    )


def _rivals(front: Front, entry: Entry) -> list[tuple[PairedComparison, Entry]]:
    by_name = {other.name: other for other in front.baselines}
    return [(claim, by_name[claim.baseline]) for claim in entry.comparisons]


def _claim(entry: Entry, rival: Entry) -> PairedComparison | None:
    return next((claim for claim in entry.comparisons if claim.baseline == rival.name), None)


def _names(front: Front) -> list[str]:
    return [_the(entry) for entry in front.front]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _the(entry: Entry) -> str:
    if entry.kind == "cascade":
        return f"a cascade of the parents ({entry.name.removeprefix('cascade ')})"
    return f"the {entry.name}" if entry.kind in ("ensemble", "duo") else entry.name


def _percent(entry: Entry) -> str:
    return f"{100 * entry.quality:.1f}%"
