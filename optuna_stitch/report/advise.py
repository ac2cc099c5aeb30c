"""Whether a pair is worth a study: asked of a few hundred images, in about a minute.

What parents answer tells how far their errors overlap, and what their ensemble and their cascades
reach. Stitches at a few depths, fitted on few images, tell what crossing costs there, and what
stitched cascades reach.

Whether these gain something is judged by cross-fitting: on each half of the images the network
and what it is held to are chosen, and judged on the other half. The best of many on the images
that it was chosen by would look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from optuna_stitch.data.load import Data, load_data
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.accumulator import Hits
from optuna_stitch.evaluation.cascades import CascadeAccumulator
from optuna_stitch.evaluation.chance import agreement_of_images
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import ImageMetric, accuracy, unit_of
from optuna_stitch.evaluation.settings import CascadeSettings
from optuna_stitch.models.parent import Parent, load_parent
from optuna_stitch.report.advice import (
    Advice,
    Answers,
    Crossing,
    Estimate,
    Judged,
    Kind,
    PairAdvice,
    difference_of,
    share_of,
)
from optuna_stitch.search.space import threshold_values
from optuna_stitch.stitching.genotype import FIRST, SIDES, Genotype, Output, Side
from optuna_stitch.stitching.settings import FitSettings
from optuna_stitch.stitching.supernetwork import Supernetwork, stitch
from optuna_stitch.utils.device import are_finite
from optuna_stitch.utils.errors import ConfigError, DataError
from optuna_stitch.utils.progress import console, track
from optuna_stitch.utils.text import percent_text

# Of the images that stitches are fitted on, so many estimate BatchNorm statistics.
_RECALIBRATE = 32

# Nothing is tuned with labels: these are few.
_SETTINGS = CascadeSettings(answer="mean")

_ACCURACY = ImageMetric("accuracy", accuracy)


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
        said = f"{twice[0]} is there twice" if twice else f"{len(names)} named"
        raise ConfigError(f"Advice is on at least two different networks; {said}.")
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
        reached = share_of(heads[:, SIDES.index(switch.into)].argmax(dim=1) == val.targets)
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
    return difference_of(ours_there, theirs_there)
