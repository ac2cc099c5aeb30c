"""Whether a pair is worth a study: asked of a few hundred images, in about a minute.

What parents answer tells how far their errors overlap, and what their ensemble and their cascades
reach. Stitches at a few depths, fitted on few images, tell what crossing costs there, and what
stitched cascades reach.

Whether these gain something is judged by cross-fitting: on each half of the images the network
and what it is held to are chosen, and judged on the other half. The best of many on the images
that it was chosen by would look better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from optuna_stitch.data.load import Data, load_data
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Hits
from optuna_stitch.evaluation.cascades import CascadeAccumulator
from optuna_stitch.evaluation.chance import agreement_of_images
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import ImageMetric, accuracy, unit_of
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.evaluation.significance import (
    Interval,
    difference_interval,
    wilson_interval,
)
from optuna_stitch.models.parent import Parent, load_parent
from optuna_stitch.search.space import threshold_values
from optuna_stitch.stitching.genotype import FIRST, SIDES, Genotype, Output, Side
from optuna_stitch.stitching.settings import FitSettings
from optuna_stitch.stitching.supernetwork import Supernetwork, stitch
from optuna_stitch.utils.device import are_finite
from optuna_stitch.utils.errors import ConfigError, DataError
from optuna_stitch.utils.progress import console, track
from optuna_stitch.utils.text import number_text, percent_interval_text, percent_text, points_text

# A gain of fewer points is not worth a study.
_WORTH = 0.005

# Of the images that stitches are fitted on, so many estimate BatchNorm statistics.
_RECALIBRATE = 32

# Average costs that the table of cascades shows, as shares of the way from the cheaper parent to
# both.
_BUDGETS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)

# Nothing is tuned with labels: these are few.
_SETTINGS = CascadeSettings(answer="mean")

_ACCURACY = ImageMetric("accuracy", accuracy)

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
        return _share(self.right)


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
        return _share(~self.a.right & ~self.b.right)

    @property
    def wrong_by_chance(self) -> float:
        """How often both would be wrong, if their errors were independent."""
        return (1 - self.a.accuracy.value) * (1 - self.b.accuracy.value)

    @property
    def oracle(self) -> Estimate:
        """What one would reach that always asked the parent that is right."""
        return _share(self.a.right | self.b.right)

    @property
    def ensemble(self) -> Judged:
        """The mean of both parents' class probabilities."""
        return next(one for one in self.networks if one.kind == "plain" and one.threshold == 1)

    @property
    def ensemble_accuracy(self) -> Estimate:
        """What it reaches."""
        return _share(self.ensemble.right)

    @property
    def ensemble_gain(self) -> Estimate:
        """What the ensemble gains over `over`, in pairs."""
        return _difference(self.ensemble.right, self.over.right)

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
            reached = _share(network.right)
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


def advise(
    parents: Sequence[Parent | str],
    data: Data | str,
    *,
    images: int = 400,
    fit_images: int = 200,
    depths: int = 4,
    crossed: int = 3,
    device: str | torch.device | None = None,
    show_progress_bar: bool = False,
) -> Advice:
    """Find out from a few hundred images which pairs of networks are worth a study.

    Every network answers once; overlap of errors, ensembles and plain cascades follow from that
    for all pairs. The most promising pairs are then crossed at a few depths, with stitches that
    are fitted on other images. Nothing is written.

    Args:
        parents: Two networks or more: names of timm's or torchvision's, whose trained weights are
            fetched, or parents.
        data: What `load_data` returned, or the name of a data set. Stitches are fitted on images
            of the train split; all figures are on validation images.
        images: How many of these are asked about.
        fit_images: How many stitches are fitted on.
        depths: At how many places the best pairs are crossed, both ways.
        crossed: How many pairs are.
        device: Where to compute; where the first parent is, if None.
        show_progress_bar: Whether to show progress bars.

    Returns:
        All pairs, the most promising first.

    Raises:
        ConfigError: If there are fewer than two networks, or two of the same name.
        DataError: If networks tell other classes apart than the data have, or, of two or of all
            but one, cannot be told from guessing.
        MatchError: If a pair has no compatible points.

    Example:
        >>> advice = st.advise([a, b], data, images=100, fit_images=60, depths=2)
        >>> len(advice.best.crossings)  # both ways at each depth
        4
    """
    if isinstance(data, str):
        data = load_data(data, train={"images": fit_images}, val={"images": images})
    names = [parent if isinstance(parent, str) else parent.name for parent in parents]
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or twice:
        said = f"{twice[0]} is there twice" if twice else f"there is {len(names)}"
        raise ConfigError(f"Advice is on pairs of at least two different networks; {said}.")
    val, train = data.val.take(images), data.train.take(fit_images)
    asked: list[Answers] = []
    left_out: list[str] = []
    sources: dict[str, Parent | str] = dict(zip(names, parents, strict=True))
    for name in track(names, "Ask networks", show_progress_bar=show_progress_bar):
        parent = _parent(sources[name], device)
        device = device or parent.device
        answers, reason = _ask(parent, data, val)
        if reason:
            left_out.append(reason)
        else:
            asked.append(answers)
    if len(asked) < 2:
        raise DataError(
            "\n".join(
                [
                    *left_out,
                    "Advice needs two networks that know the images. Likely reasons: the order of "
                    "the classes, how images are seen, weights that were not trained on these "
                    "classes, or a random head.",
                ]
            )
        )
    for reason in left_out:
        console.print(f"{reason} It is left out.", highlight=False, soft_wrap=True)
    targets = val.targets
    pairs = [_overlap(a, b, asked, targets) for a, b in combinations(asked, 2)]
    pairs.sort(key=lambda pair: pair.ensemble_gain.value, reverse=True)
    whole = show_progress_bar and len(pairs) > 1  # of a single pair, the fit shows how far it is
    for place in track(range(min(crossed, len(pairs))), "Cross pairs", show_progress_bar=whole):
        pair = pairs[place]
        two = (_parent(sources[pair.a.name], device), _parent(sources[pair.b.name], device))
        pairs[place] = _cross(
            pair, two, train, val, depths, show_progress_bar=show_progress_bar and not whole
        )
    return Advice(tuple(pairs), len(val), tuple(left_out))


def _parent(source: Parent | str, device: str | torch.device | None) -> Parent:
    parent = load_parent(source, pretrained=True) if isinstance(source, str) else source
    return parent if device is None else parent.to(device)


@torch.no_grad()
def _ask(parent: Parent, data: Data, split: Split) -> tuple[Answers, str]:
    """What a network answers, and why it is of no use; empty where it is."""
    graph = parent.graph()
    if graph.classes != data.classes:
        raise DataError(
            f"{parent.name} tells {graph.classes} classes apart, the data have {data.classes}. "
            f"Give weights that were trained on these, as in `{parent.name}=weights.safetensors`, "
            "or data of its own."
        )
    alone = Supernetwork(parent, parent, {"a": graph, "b": graph}, ())
    if alone.segments:
        raise ConfigError(
            f"{parent.name} labels pixels; advice is on networks that give an image one label."
        )
    evaluator = Evaluator(alone, split, ())
    (logits,) = evaluator.logits([alone.subnetwork(Genotype("a"))])
    guesses = logits.argmax(dim=1)
    answers = Answers(parent.name, graph.macs, logits, guesses == split.targets)
    if not are_finite([logits])[0]:
        return answers, f"{parent.name} gives answers that are no finite numbers."
    fits = agreement_of_images(guesses, split.targets)
    if fits.at_chance:
        return answers, (
            f"{parent.name} is no better than guessing: {unit_of('accuracy').words} "
            f"{percent_text(fits.quality)} on {fits.images} images "
            f"(guessing: {percent_text(fits.guessing)})."
        )
    return answers, ""


def _overlap(a: Answers, b: Answers, asked: Sequence[Answers], targets: Tensor) -> PairAdvice:
    """What the parents' own answers say of a pair."""
    both = a.macs + b.macs
    heads = torch.stack([a.logits, b.logits], dim=1)
    networks = [
        Judged("parent", side, "", 0.0, own.macs, own.macs, own.right)
        for side, own in zip(SIDES, (a, b), strict=True)
    ]
    for side, own in zip(SIDES, (a, b), strict=True):
        networks += _cascades("plain", side, "", heads, targets, own.macs, both)
    affordable = [other for other in asked if other.macs <= both]
    over = max(affordable, key=lambda other: (other.accuracy.value, -other.macs))
    return PairAdvice(a, b, over, tuple(networks))


@torch.no_grad()
def _cross(
    pair: PairAdvice,
    parents: tuple[Parent, Parent],
    train: Split,
    val: Split,
    depths: int,
    *,
    show_progress_bar: bool,
) -> PairAdvice:
    """Cross a pair at a few depths, both ways."""
    whole = stitch(*parents)
    if whole.two_jobs:
        raise ConfigError(
            f"{pair.name} have two jobs: advice is on networks that tell the same classes apart."
        )
    places = _spread([(m.a.depth + m.b.depth) / 2 for m in whole.matches], depths)
    supernetwork = whole.keep([2 * place + way for place in places for way in range(2)])
    settings = FitSettings(recalibrate=min(_RECALIBRATE, len(train)))
    supernetwork.fit(train, settings, show_progress_bar=show_progress_bar)
    # the first head of such a cascade is a parent, the second a single crossing
    firsts: list[Side] = ["b" if switch.into == "a" else "a" for switch in supernetwork.switches]
    outputs: dict[Side, Output] = {side: output for output, side in FIRST.items()}
    cascades = [
        supernetwork.subnetwork(Genotype(outputs[first], frozenset([index]), threshold=1.0))
        for index, first in enumerate(firsts)
    ]
    answers = Evaluator(supernetwork, val, ()).logits(cascades)
    weaker = min(pair.a.accuracy.value, pair.b.accuracy.value)
    stitched: list[Judged] = []
    crossings: list[Crossing] = []
    for index, (cascade, heads) in enumerate(zip(cascades, answers, strict=True)):
        switch, match = supernetwork.switches[index], supernetwork.matches[index // 2]
        if not are_finite([heads])[0]:
            console.print(
                f"Crossing by {switch.name} gives answers that are no finite numbers; it is left "
                "out.",
                highlight=False,
            )
            continue
        single = supernetwork.subnetwork(Genotype(switch.into, frozenset([index])))
        reached = _share(heads[:, SIDES.index(switch.into)].argmax(dim=1) == val.targets)
        crossings.append(
            Crossing(
                switch.name,
                switch.into,
                (match.a.depth + match.b.depth) / 2,
                single.macs,
                reached,
                weaker - reached.value,
            )
        )
        stitched += _cascades(
            "stitched",
            firsts[index],
            switch.name,
            heads,
            val.targets,
            cascade.first.macs,
            cascade.worst_macs,
        )
    return replace(
        pair,
        networks=(*pair.networks, *stitched),
        crossings=tuple(crossings),
        gain=_gain(stitched, pair.networks) if stitched else None,
    )


def _spread(depths: Sequence[float], count: int) -> list[int]:
    """Places of matches at about evenly spread depths, ascending."""
    wanted = [(place + 1) / (count + 1) for place in range(count)]
    distances = np.abs(np.subtract.outer(np.array(wanted), np.array(depths)))
    return sorted({int(place) for place in distances.argmin(axis=1)})


def _cascades(
    kind: Kind,
    first: Side,
    stitch: str,
    heads: Tensor,
    targets: Tensor,
    alone: int,
    worst: int,
) -> list[Judged]:
    """A cascade with every threshold that a search may ask for, and the ensemble of its heads.

    Args:
        kind: Of it.
        first: The head that is asked first.
        stitch: The switch that is on; empty of none.
        heads: Answers of both, ``(N, 2, classes)``.
        targets: Labels, ``(N,)``.
        alone: What an image costs that does not go on.
        worst: What one costs that does.
    """
    accumulator = CascadeAccumulator([_ACCURACY], heads.shape[2], SIDES.index(first), _SETTINGS)
    accumulator.update(heads, {_ACCURACY.name: targets}, targets, finite=True)
    curve = accumulator.curve()
    found = []
    for threshold in (*threshold_values(), 1.0):
        said = curve.results(threshold)[_ACCURACY.name]
        assert isinstance(said, Hits)
        macs = round(alone + threshold * (worst - alone))
        found.append(Judged(kind, first, stitch, threshold, macs, worst, said.right))
    return found


def _gain(stitched: Sequence[Judged], rivals: Sequence[Judged]) -> Estimate:
    """What the best stitched network gains over the best other one that costs no more.

    Both are chosen on each half of the images, and judged on the other one.
    """
    rights = [np.array([n.right.numpy() for n in some]) for some in (stitched, rivals)]
    costs = [np.array([n.macs for n in some]) for some in (stitched, rivals)]
    affordable = costs[1][None, :] <= costs[0][:, None]
    pairs: list[tuple[Tensor, Tensor]] = []
    for start in range(2):
        here, there = slice(start, None, 2), slice(1 - start, None, 2)
        ours, theirs = (right[:, here].mean(axis=1) for right in rights)
        held = np.where(affordable, theirs[None, :], -1.0)
        # a network that is cheaper than all others has nothing to be held to
        gains = np.where(affordable.any(axis=1), ours - held.max(axis=1), -np.inf)
        best = np.flatnonzero(gains == gains.max())
        chosen = int(best[costs[0][best].argmin()])
        rival = int(held[chosen].argmax())
        pairs.append((stitched[chosen].right[there], rivals[rival].right[there]))
    ours_there, theirs_there = (torch.cat(column) for column in zip(*pairs, strict=True))
    return _difference(ours_there, theirs_there)


def _share(right: Tensor) -> Estimate:
    return Estimate(float(right.double().mean()), wilson_interval(int(right.sum()), len(right)))


def _difference(first: Tensor, second: Tensor) -> Estimate:
    value = float(first.double().mean() - second.double().mean())
    return Estimate(value, difference_interval(first, second))


def advice_tables(advice: Advice) -> list[Table]:
    """What is found, as tables for the terminal.

    Args:
        advice: What `advise` returned.

    Returns:
        All pairs; of the most promising one, if it was crossed, single crossings and cascades.
    """
    pairs = _table("pair", "a %", "b %", "both wrong %", "oracle %", "ens. %", "gain", "stitched")
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
    crossed = _table("crossing", "depth", "M MACs", "result %", "95% range", "loss")
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
    curve = _table("M MACs on average", "plain %", "stitched %")
    curve.title = "The best within a cost"
    curve.caption = (
        "chosen and judged on the same images: the best of many look better than they are"
    )
    for macs, *shares in advice.best.budgets().to_numpy(dtype=float).tolist():
        best = ["–" if math.isnan(s) else percent_text(s, 1, sign="") for s in shares]
        curve.add_row(number_text(macs / 1e6), *best)
    return [pairs, crossed, curve]


def _table(first: str, *figures: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.caption_justify = "left"
    table.add_column(first, overflow="fold", min_width=16)
    for figure in figures:
        table.add_column(figure, justify="right")
    return table
