"""Whether parents know what they are asked: their quality before anything is built on them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from optuna_stitch.data.classes import names_of
from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.data.view import View
from optuna_stitch.evaluation.accumulator import confusions_of
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import VOID, mean_iou_of, quality_metric, unit_of
from optuna_stitch.stitching.genotype import LETTERS, Genotype, Side
from optuna_stitch.stitching.supernetwork import Supernetwork
from optuna_stitch.utils.device import are_finite
from optuna_stitch.utils.distributed import rank
from optuna_stitch.utils.errors import DataError
from optuna_stitch.utils.progress import console
from optuna_stitch.utils.text import listed_text, percent_text, shape_text

# How likely answers that know nothing of the images may be taken for knowledge.
LEVEL = 0.01

# So many classes of another order are named.
_SHOWN = 4


@dataclass(frozen=True)
class Agreement:
    """How well a network's answers fit the labels, and how well guesses would.

    Args:
        quality: Accuracy, or mean IoU where pixels are labelled.
        guessing: What the same answers would reach, if they knew nothing of their images.
        images: How many images were asked about.
        p_value: How likely guesses fit as well.
        least: The smallest p-value that so many images can give; no verdict, where it is large.
        reordered: What quality would be if every class meant the one that ``order`` says; accuracy
            of pixels, where they are labelled.
        order: By label, which class is answered in its place, where the answers fit an order of
            the classes that is not the labels', beyond chance.
    """

    quality: float
    guessing: float
    images: int
    p_value: float
    least: float
    reordered: float = 0.0
    order: Mapping[int, int] = field(default_factory=dict)

    @property
    def at_chance(self) -> bool:
        """Whether the answers cannot be told from guesses, though so many images could tell."""
        return self.p_value > LEVEL >= self.least


def check_parents(
    supernetwork: Supernetwork, split: Split | SplitPair, *, stop: Collection[Side] = LETTERS
) -> dict[Side, Agreement]:
    """Measure all parents, say it on stderr, and stop at one that is no better than guessing.

    For images, the number of right answers is held against that of answers with the same
    frequencies which are independent of the labels, by the binomial test. Where pixels are
    labelled, each image's answer must fit its own labels better than the answer to another image
    does, by the sign test over images.

    Args:
        supernetwork: Of the parents; its stitches need not be fitted.
        split: A few hundred labelled images, none that it was fitted on; of parents with two
            jobs, those of both.
        stop: Which parents must be better than guessing; others are only reported.

    Returns:
        What was measured, by side.

    Raises:
        DataError: If a parent is no better than guessing, at the 1% level, or answers what is no
            finite number; or if the split has another number of classes.

    Example:
        >>> found = st.check_parents(supernetwork, data.val, stop=["b"])
        >>> found["b"].images, found["b"].quality > found["b"].guessing
        (200, True)
    """
    parents = supernetwork.parents
    asked: list[tuple[Split, Sequence[Side]]] = (
        [(split.of(side), [side]) for side in parents]
        if isinstance(split, SplitPair)
        else [(split, list(parents))]
    )
    names: dict[Side, Sequence[str] | None] = {}
    found: dict[Side, Agreement] = {}
    finite: dict[Side, bool] = {}
    said: dict[Side, str] = {}
    for images, sides in asked:
        known = names_of(images.dataset)
        classes = supernetwork.supergraph.classes_of(sides[0])
        if known is not None and len(known) != classes:
            who = listed_text([parents[side].name for side in sides])
            raise DataError(
                f"{who} {'tell' if len(sides) > 1 else 'tells'} {classes} classes apart, the "
                f"{images.name} split has {len(known)}: labels would not mean the same."
            )
        names |= dict.fromkeys(sides, known)
        here, whole = _agreements(supernetwork, images, sides)
        found |= here
        finite |= whole
        dense = supernetwork.supergraph.segments_of(sides[0])
        words = unit_of(quality_metric(segments=dense)).words
        said |= {
            side: f"Parent {side}, {parents[side].name}: {words} "
            f"{percent_text(agreement.quality)} on {agreement.images} {images.name} images "
            f"(guessing: {percent_text(agreement.guessing)})."
            for side, agreement in here.items()
        }
    if rank() == 0:
        for side in parents:
            console.print(f"{said[side]}{_remark(found[side], names[side])}", highlight=False)
    for side in parents:
        if side in stop and not finite[side]:
            raise DataError(
                f"Parent {side}, {parents[side].name}, gives answers that are no finite numbers "
                f"on the {split.name} split."
            )
    guessing = [side for side in parents if side in stop and found[side].at_chance]
    if guessing:
        views = [parents[side].view for side in guessing]
        agreements = [found[side] for side in guessing]
        raise DataError(
            "\n".join(
                [
                    *(f"{said[side]} That is no better than guessing." for side in guessing),
                    *_reasons(agreements, names[guessing[0]], views),
                ]
            )
        )
    return found


def _agreements(
    supernetwork: Supernetwork, split: Split, sides: Sequence[Side]
) -> tuple[dict[Side, Agreement], dict[Side, bool]]:
    """How well parents' answers fit labels, and whether they are finite numbers.

    Args:
        supernetwork: Of the parents.
        split: With the labels.
        sides: Which parents.
    """
    supergraph = supernetwork.supergraph
    evaluator = Evaluator(supernetwork, split, (), side=sides[0])
    subnetworks = [supernetwork.subnetwork(Genotype(side)) for side in sides]
    dense, classes = supergraph.segments_of(sides[0]), supergraph.classes_of(sides[0])
    # answers to pixels are many
    kind = torch.uint8 if dense and classes < VOID else torch.int64
    labels: list[Tensor] = []
    guesses: dict[Side, list[Tensor]] = {side: [] for side in sides}
    finite = dict.fromkeys(sides, True)
    for targets, answers in evaluator.answers(subnetworks):
        labels.append(targets.to(kind))
        for side, logits in zip(sides, answers, strict=True):
            guesses[side].append(logits.argmax(dim=1).to(kind))
            finite[side] = finite[side] and are_finite([logits])[0]
    found = {
        side: agreement_of_pixels(guesses[side], labels, classes)
        if dense
        else agreement_of_images(torch.cat(guesses[side]), torch.cat(labels))
        for side in sides
    }
    return found, finite


def agreement_of_images(guesses: Tensor, labels: Tensor) -> Agreement:
    """How well answers fit the labels of images.

    Args:
        guesses: Classes, ``(N,)``.
        labels: ``(N,)``.
    """
    both = torch.cat([labels, guesses]).numpy()
    occurring, places = np.unique(both, return_inverse=True)
    rows, columns = np.split(places, 2)
    table = np.zeros((len(occurring), len(occurring)))
    np.add.at(table, (rows, columns), 1)
    count, right = len(labels), int(np.trace(table))
    guessing = float(table.sum(axis=1) @ table.sum(axis=0)) / count**2
    perfect = float((table.sum(axis=1) ** 2).sum()) / count**2
    return Agreement(
        right / count,
        guessing,
        count,
        float(binom.sf(right - 1, count, guessing)),
        float(binom.sf(count - 1, count, perfect)),
        *_better_order(table, occurring, count),
    )


def agreement_of_pixels(
    guesses: Sequence[Tensor], labels: Sequence[Tensor], classes: int
) -> Agreement:
    """How well answers fit the labels of pixels.

    Args:
        guesses: Classes by batch, ``(N, H, W)``.
        labels: By batch, ``(N, H, W)``.
        classes: Their number.
    """
    own, other = np.zeros((classes, classes)), np.zeros((classes, classes))
    shares: list[Tensor] = []
    before: Tensor | None = None  # the answer to the image before
    for guess, label in zip(guesses, labels, strict=True):
        shifted = torch.cat([guess[:1] if before is None else before, guess[:-1]])
        fits = [
            confusions_of(some.long(), label.long(), classes).double() for some in (guess, shifted)
        ]
        own += fits[0].sum(dim=0).numpy()
        other += fits[1].sum(dim=0).numpy()
        mine, others = (_share(matrices) for matrices in fits)
        shares.append((mine - others)[1 if before is None else 0 :])
        before = guess[-1:]
    differences = torch.cat(shares)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    images = len(differences) + 1
    return Agreement(
        float(mean_iou_of(own)),
        float(mean_iou_of(other)),
        images,
        float(binom.sf(better - 1, better + worse, 0.5)),
        0.5 ** len(differences),
        *_better_order(own, np.arange(classes), images),
    )


def _share(confusions: Tensor) -> Tensor:
    """Of every image, the share of pixels that are right, ``(N,)``."""
    right = confusions.diagonal(dim1=1, dim2=2).sum(dim=1)
    return right / confusions.sum(dim=(1, 2)).clamp(min=1)


def _better_order(
    table: NDArray[np.float64], classes: NDArray[np.int64], images: int
) -> tuple[float, dict[int, int]]:
    """The order of the classes that the answers fit best, where it is not the labels' own.

    The sign test says whether more images are right in it, corrected for the number of orders that
    could have been found. Pixels of an image are not independent: together they count as one.

    Args:
        table: Counts by label and answer.
        classes: Which class each row is.
        images: How many images are behind the table.

    Returns:
        The accuracy in that order and, by label, the class that is answered in its place; 0 and
        nothing, where there is no better one.
    """
    rows, columns = linear_sum_assignment(table, maximize=True)
    moved = (rows != columns) & (table.sum(axis=1) > 0)
    total = max(table.sum(), 1)
    gained, lost = (
        math.floor(table[rows[moved], some[moved]].sum() / total * images)
        for some in (columns, rows)
    )
    count, all_of_them = int(moved.sum()), len(rows)
    orders = math.lgamma(all_of_them + 1) - math.lgamma(all_of_them - count + 1)
    if float(binom.logsf(gained - 1, gained + lost, 0.5)) + orders > math.log(LEVEL):
        return 0.0, {}
    order = {
        int(classes[a]): int(classes[b]) for a, b in zip(rows[moved], columns[moved], strict=True)
    }
    return float(table[rows, columns].sum() / total), order


def _renamed(agreement: Agreement, names: Sequence[str] | None) -> str:
    """Which classes are answered in place of which."""
    shown: Iterable[tuple[int, int]] = list(agreement.order.items())[:_SHOWN]
    listed = ", ".join(f"{names[a]} as {names[b]}" if names else f"{a} as {b}" for a, b in shown)
    more = f" and {len(agreement.order) - _SHOWN} more" if len(agreement.order) > _SHOWN else ""
    return f"{listed}{more}"


def _remark(agreement: Agreement, names: Sequence[str] | None) -> str:
    if agreement.order:
        return (
            f" In another order of the classes {percent_text(agreement.reordered, 1)} would be "
            f"right ({_renamed(agreement, names)}): check the order of the class folders, or give "
            "it as `class_map`."
        )
    if agreement.at_chance:
        return " That is no better than guessing."
    return (
        ""
        if agreement.least <= LEVEL
        else " These images are too few, or too much alike, to tell it from guessing."
    )


def _reasons(
    agreements: Sequence[Agreement], names: Sequence[str] | None, views: Sequence[View]
) -> list[str]:
    """Why parents may only guess, and the way out."""
    order = "the classes are in another order than in its training: give theirs as `class_map`"
    ordered = [agreement for agreement in agreements if agreement.order]
    if ordered:
        order = (
            f"the classes are in another order: {percent_text(ordered[0].reordered, 1)} would be "
            f"right with {_renamed(ordered[0], names)}; give the order of the training as "
            "`class_map`"
        )
    seen = " and ".join(
        f"{shape_text(view.input_size)}, mean {view.mean}, std {view.std}, {view.interpolation}, "
        f"crop {view.crop_pct:g}"
        for view in dict.fromkeys(views)
    )
    return [
        "Likely reasons:",
        f"- {order};",
        f"- images are seen otherwise than in training (here: {seen});",
        "- the weights are others, or were not trained on these classes;",
        "- the head is random, as with `pretrained` and another number of classes.",
        "Where that is meant: `parents: {check: false}` in a study file; from Python, leave "
        "`check_parents` out.",
    ]
