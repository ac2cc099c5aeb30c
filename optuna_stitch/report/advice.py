"""What a few hundred images say of pairs: figures with their intervals, a sentence, tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pandas as pd
from rich.table import Table
from rich.text import Text
from torch import Tensor

from optuna_stitch.evaluation.significance import Interval, difference_interval, wilson_interval
from optuna_stitch.report.tables import figures_table
from optuna_stitch.stitching.genotype import Side
from optuna_stitch.utils.text import number_text, percent_interval_text, percent_text, points_text

# A gain of fewer points is not worth a study.
_WORTH = 0.005

# Average costs that the table of cascades shows, as shares of the way from the cheaper parent to
# both.
_BUDGETS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)

# Of the table of networks, beside their accuracy.
_COLUMNS = ("kind", "first", "stitch", "threshold", "macs", "worst_macs")

Kind = Literal["parent", "plain", "stitched"]


class Estimate(NamedTuple):
    """A figure with its 95% interval.

    Args:
        value: The figure, a share of one.
        interval: Its bounds.
    """

    value: float
    interval: Interval

    def points(self) -> str:
        """A difference in percentage points: ``+1.2 points (+0.1 to +2.3)``."""
        low, high = (points_text(bound, 1) for bound in self.interval)
        return f"{points_text(self.value, 1)} points ({low} to {high})"

    def __str__(self) -> str:
        """A share in percent: ``98.5% (97.1 to 99.2)``."""
        bounds = percent_interval_text(self.interval, between=" to ")
        return f"{percent_text(self.value, 1)} ({bounds})"


@dataclass(frozen=True)
class Answers:
    """What a network answers on the images that are asked about.

    Args:
        name: The network's.
        macs: Multiply-accumulates per image.
        logits: ``(N, classes)``.
        right: Which images it gets right, ``(N,)`` bool.
    """

    name: str
    macs: int
    logits: Tensor = field(repr=False)
    right: Tensor = field(repr=False)

    @property
    def accuracy(self) -> Estimate:
        """Its accuracy."""
        return share_of(self.right)


@dataclass(frozen=True)
class Crossing:
    """A network that begins in one parent, crosses once, and ends in the other.

    Args:
        stitch: Name of its switch.
        into: The parent in which it ends.
        depth: Relative depth of the stitch, the mean over both parents, 0 to 1.
        macs: Multiply-accumulates per image.
        accuracy: How many images it gets right.
        drop: The weaker parent's accuracy less that.
    """

    stitch: str
    into: Side
    depth: float
    macs: int
    accuracy: Estimate
    drop: float


@dataclass(frozen=True)
class Judged:
    """A parent, a cascade or an ensemble.

    Args:
        kind: Whether it is a parent, or made of both, with a stitch or without.
        first: The head that is asked first.
        stitch: Name of the switch that is on; empty of none.
        threshold: The share of images that go on; 1 of ensembles.
        macs: Multiply-accumulates per image, on average.
        worst_macs: What an image costs that goes on.
        right: Which images it gets right, ``(N,)`` bool.
    """

    kind: Kind
    first: Side
    stitch: str
    threshold: float
    macs: int
    worst_macs: int
    right: Tensor = field(repr=False)


@dataclass(frozen=True)
class PairAdvice:
    """What a few hundred images say of a pair.

    Args:
        a: What parent a answers.
        b: What parent b answers.
        over: What the ensemble's gain is measured from: the better parent or, of a list of
            networks, the best that costs no more than both.
        networks: Parents, cascades and ensembles, also stitched.
        crossings: Single crossings, from early to late; none where the pair was not crossed.
        gain: What a stitched cascade gains over the best of parents and plain cascades that cost
            no more on average, by cross-fitting; None where the pair was not crossed.
    """

    a: Answers
    b: Answers
    over: Answers
    networks: tuple[Judged, ...] = field(repr=False)
    crossings: tuple[Crossing, ...] = ()
    gain: Estimate | None = None

    @property
    def name(self) -> str:
        """Both names: ``resnet18 × vit_tiny_patch16_224``."""
        return f"{self.a.name} × {self.b.name}"

    @property
    def images(self) -> int:
        """How many images were asked about."""
        return len(self.a.right)

    @property
    def both_wrong(self) -> Estimate:
        """How often both are wrong."""
        return share_of(~self.a.right & ~self.b.right)

    @property
    def wrong_by_chance(self) -> float:
        """How often both would be wrong, if their errors were independent."""
        return (1 - self.a.accuracy.value) * (1 - self.b.accuracy.value)

    @property
    def oracle(self) -> Estimate:
        """What one would reach that always asked the parent that is right."""
        return share_of(self.a.right | self.b.right)

    @property
    def ensemble(self) -> Judged:
        """The mean of both parents' class probabilities."""
        return next(one for one in self.networks if one.kind == "plain" and one.threshold == 1)

    @property
    def ensemble_accuracy(self) -> Estimate:
        """What it reaches."""
        return share_of(self.ensemble.right)

    @property
    def ensemble_gain(self) -> Estimate:
        """What the ensemble gains over `over`, in pairs."""
        return difference_of(self.ensemble.right, self.over.right)

    @property
    def verdict(self) -> str:
        """``worth``, ``open`` or ``hardly``: by the gain of crossing or, without, the ensemble."""
        found = self.ensemble_gain if self.gain is None else self.gain
        if found.interval[0] > 0:
            return "worth"
        return "open" if found.interval[1] >= _WORTH else "hardly"

    @property
    def sentence(self) -> str:
        """The conclusion, as far as so many images tell."""
        opening = {
            "worth": f"{self.name} is worth a study, as far as {self.images} images tell",
            "open": f"{self.images} images leave open whether {self.name} is worth a study",
            "hardly": f"{self.name} is hardly worth a study, as far as {self.images} images tell",
        }[self.verdict]
        both = (
            f"both are wrong on {self.both_wrong} of them, and the ensemble has "
            f"{self.ensemble_gain.points()} against {self.over.name}"
        )
        if self.gain is None:
            return f"{opening}: {both}."
        return (
            f"{opening}: {both}; a stitched cascade has {self.gain.points()} against the best of "
            "parents, plain cascades and ensemble at its average cost."
        )

    def table(self) -> pd.DataFrame:
        """What parents, cascades and ensembles reach at which cost, also stitched.

        Returns:
            A row for each, by rising cost: ``kind`` (``parent``, ``plain`` or ``stitched``),
            ``first`` (which head is asked first), ``stitch``, ``threshold`` (the share of images
            that go on; 1 of ensembles), ``macs`` (on average) and ``worst_macs``, ``accuracy``
            with ``accuracy_low`` and ``accuracy_high``.
        """
        rows = []
        for network in sorted(self.networks, key=lambda one: one.macs):
            said = {name: getattr(network, name) for name in _COLUMNS}
            reached = share_of(network.right)
            low, high = reached.interval
            rows.append(
                {
                    **said,
                    "accuracy": reached.value,
                    "accuracy_low": low,
                    "accuracy_high": high,
                }
            )
        return pd.DataFrame(rows)

    def budgets(self) -> pd.DataFrame:
        """The best accuracy within some average costs, by kind.

        Of many networks the best one on the images that it was chosen by looks better than it is.

        Returns:
            A row for each cost: ``macs``, ``plain`` (parents, cascades and ensemble) and
            ``stitched``; the latter is missing where nothing was crossed or none is so cheap.
        """
        low, high = min(self.a.macs, self.b.macs), self.a.macs + self.b.macs
        rows, table = [], self.table()
        for share in _BUDGETS:
            within = table[table["macs"] <= low + share * (high - low) + 0.5]
            stitched = within["kind"] == "stitched"
            rows.append(
                {
                    "macs": low + share * (high - low),
                    "plain": within[~stitched]["accuracy"].max(),
                    "stitched": within[stitched]["accuracy"].max(),
                }
            )
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class Advice:
    """What a few hundred images say of all pairs of some networks, the most promising first.

    Args:
        pairs: By what their ensembles gain over the best network of the list that costs no more.
        images: How many images were asked about.
        left_out: Networks that only guess, and why they are left out.

    Example:
        >>> advice = st.advise([a, b], data, images=100, crossed=0)
        >>> advice.sentence == advice.best.sentence
        True
        >>> list(advice.table()["pair"])
        ['test_resnet × test_efficientnet']
    """

    pairs: tuple[PairAdvice, ...]
    images: int
    left_out: tuple[str, ...] = ()

    @property
    def best(self) -> PairAdvice:
        """The most promising pair."""
        return self.pairs[0]

    @property
    def sentence(self) -> str:
        """The conclusion on the most promising pair."""
        return self.best.sentence

    def table(self) -> pd.DataFrame:
        """A row for each pair, with every figure.

        Returns:
            Columns ``pair``, ``a``, ``b``, ``macs_a``, ``macs_b``, ``accuracy_a``,
            ``accuracy_b``, ``both_wrong``, ``both_wrong_by_chance``, ``oracle``, ``ensemble``,
            ``over`` and ``ensemble_gain``, ``best_drop`` (what the best single crossing loses
            against the weaker parent), ``gain`` (see `PairAdvice`), each estimate with ``_low``
            and ``_high``, and ``verdict``.
        """
        rows = []
        for pair in self.pairs:
            estimates = {
                "accuracy_a": pair.a.accuracy,
                "accuracy_b": pair.b.accuracy,
                "both_wrong": pair.both_wrong,
                "oracle": pair.oracle,
                "ensemble": pair.ensemble_accuracy,
                "ensemble_gain": pair.ensemble_gain,
                "gain": pair.gain,
            }
            row: dict[str, object] = {
                "pair": pair.name,
                "a": pair.a.name,
                "b": pair.b.name,
                "macs_a": pair.a.macs,
                "macs_b": pair.b.macs,
                "both_wrong_by_chance": pair.wrong_by_chance,
                "over": pair.over.name,
                "best_drop": min((c.drop for c in pair.crossings), default=None),
                "verdict": pair.verdict,
            }
            for name, found in estimates.items():
                low, high = (None, None) if found is None else found.interval
                row |= {name: found and found.value, f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        """The conclusion and the table, for notebooks."""
        shown = self.table().to_html(index=False, border=0, float_format="{:.3f}".format)
        said = "".join(f"<p>{pair.sentence}</p>" for pair in self.pairs if pair.crossings)
        return f"{said or f'<p>{self.sentence}</p>'}{shown}"


def share_of(right: Tensor) -> Estimate:
    """How many images are right.

    Args:
        right: Which, ``(N,)`` bool.
    """
    return Estimate(float(right.double().mean()), wilson_interval(int(right.sum()), len(right)))


def difference_of(first: Tensor, second: Tensor) -> Estimate:
    """How many more images are right, in pairs.

    Args:
        first: Which are right, ``(N,)`` bool.
        second: Of what it is compared with.
    """
    value = float(first.double().mean() - second.double().mean())
    return Estimate(value, difference_interval(first, second))


def advice_tables(advice: Advice) -> list[Table]:
    """What is found, as tables for the terminal.

    Args:
        advice: What `advise` returned.

    Returns:
        All pairs; of the most promising one, if it was crossed, single crossings and cascades.
    """
    pairs = figures_table(
        *("pair", "a %", "b %", "both wrong %", "oracle %", "ens. %", "gain", "stitched")
    )
    pairs.title = f"On {advice.images} validation images"
    pairs.caption = (
        "both wrong: in brackets, if errors were independent. gain: of the ensemble, in points, "
        "over the best network that costs no more. stitched: of a stitched cascade over what "
        "costs no more, chosen on one half of the images, judged on the other"
    )
    for pair in advice.pairs:
        pairs.add_row(
            Text(pair.name),
            *(percent_text(own.accuracy.value, 1, sign="") for own in (pair.a, pair.b)),
            f"{percent_text(pair.both_wrong.value, 1, sign='')} "
            f"({percent_text(pair.wrong_by_chance, 1, sign='')})",
            percent_text(pair.oracle.value, 1, sign=""),
            percent_text(pair.ensemble_accuracy.value, 1, sign=""),
            points_text(pair.ensemble_gain.value, 1),
            "" if pair.gain is None else points_text(pair.gain.value, 1),
        )
    if not advice.best.crossings:
        return [pairs]
    crossed = figures_table("crossing", "depth", "M MACs", "result %", "95% range", "loss")
    crossed.title = f"Single crossings of {advice.best.name}"
    for crossing in advice.best.crossings:
        crossed.add_row(
            Text(crossing.stitch),
            f"{crossing.depth:.2f}",
            number_text(crossing.macs / 1e6),
            percent_text(crossing.accuracy.value, 1, sign=""),
            percent_interval_text(crossing.accuracy.interval),
            points_text(crossing.drop, 1),
        )
    curve = figures_table("M MACs on average", "plain %", "stitched %")
    curve.title = "The best within a cost"
    curve.caption = (
        "chosen and judged on the same images: the best of many look better than they are"
    )
    for macs, *shares in advice.best.budgets().to_numpy(dtype=float).tolist():
        best = ["–" if math.isnan(s) else percent_text(s, 1, sign="") for s in shares]
        curve.add_row(number_text(macs / 1e6), *best)
    return [pairs, crossed, curve]
