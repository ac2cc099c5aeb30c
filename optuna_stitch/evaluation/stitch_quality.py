"""How much is lost when features cross once: the quality report of a fit, and what it prunes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from torch import nn

from optuna_stitch.data.pair import SplitPair
from optuna_stitch.data.splits import Split
from optuna_stitch.evaluation.evaluator import Evaluator
from optuna_stitch.evaluation.metrics import quality_metric
from optuna_stitch.stitching.fit import StitchFit
from optuna_stitch.stitching.genotype import (
    BOTH,
    Genotype,
    Side,
    single_stitch_genotypes,
)
from optuna_stitch.stitching.supernetwork import Supernetwork

# Stitches of which so much is lost, more or less, are taken for alike where memory is short.
_ALIKE = 0.02

# Depths between which a stitch is in the middle: what it saves and what it adds are both much.
_MIDDLE = (0.25, 0.75)


@dataclass(frozen=True)
class StitchQuality:
    """One stitch, and the network in which it alone is on.

    Args:
        switch: Name of its switch.
        into: The parent that it leads into, whose output the network returns.
        depth_a: Relative depth of its match in parent a, 0 to 1; of more than two parents, in the
            first of the two that it lies between.
        depth_b: The same in parent b, or the second.
        r2: Share of the target's variance explained on held-out images, as it was fitted: tuning
            does not change it.
        ridge: The ridge strength chosen.
        kernel: Side of its kernel.
        rank: Its rank.
        stitch_macs: Multiply-accumulates per image of the stitch.
        macs: Multiply-accumulates per image of the network.
        quality: Accuracy of the network (mean IoU for segmentation).
        drop: The weakest parent's accuracy less that; of two jobs, that of the parent whose output
            it is.
        kept: Whether the search may use it.
    """

    switch: str
    into: Side
    depth_a: float
    depth_b: float
    r2: float
    ridge: float
    kernel: int
    rank: int
    stitch_macs: int
    macs: int
    quality: float
    drop: float
    kept: bool = True

    @property
    def out_of(self) -> Side:
        """The parent that it leads out of, with whose letter the switch's name begins."""
        return self.switch.partition(".")[0]


def measure_stitches(
    supernetwork: Supernetwork,
    fits: Sequence[StitchFit],
    split: Split | SplitPair,
    *,
    show_progress_bar: bool = False,
) -> list[StitchQuality]:
    """Measure every single-stitch network of a fitted supernetwork.

    Of two jobs it is the answer of the parent that the stitch leads into, on that one's images;
    the multiply-accumulates are those of both answers.

    Args:
        supernetwork: The fitted supernetwork.
        fits: What its `fit` returned.
        split: A few hundred validation images.
        show_progress_bar: Whether to show a progress bar.

    Returns:
        One entry per stitch, in the switches' order.
    """
    singles = single_stitch_genotypes(supernetwork.switches)
    genotypes = [*(Genotype(side) for side in supernetwork.sides), *singles]
    qualities: dict[Genotype, float] = {}
    for side in supernetwork.sides if isinstance(split, SplitPair) else (None,):
        metric = quality_metric(segments=supernetwork.supergraph.segments_of(side or "a"))
        images = split.of(side or "a") if isinstance(split, SplitPair) else split
        evaluator = Evaluator(supernetwork, images, [metric], side=side)
        own = [genotype for genotype in genotypes if side in (None, genotype.output)]
        subnetworks = [supernetwork.subnetwork(genotype) for genotype in own]
        found = evaluator.evaluate(subnetworks, show_progress_bar=show_progress_bar)
        qualities |= {g: entry[metric.name] for g, entry in zip(own, found, strict=True)}
    weaker = min(qualities[Genotype(side)] for side in supernetwork.sides)
    depths = {
        side: {point.node: point.depth for point in graph.points}
        for side, graph in supernetwork.graphs.items()
    }
    measured: list[StitchQuality] = []
    for switch, fitted, single in zip(supernetwork.switches, fits, singles, strict=True):
        answering = replace(single, output=BOTH) if supernetwork.two_jobs else single
        compared = qualities[Genotype(switch.into)] if supernetwork.two_jobs else weaker
        ends = {switch.into: switch.target, switch.out_of: switch.source}
        depth_a, depth_b = (depths[side][ends[side]] for side in sorted(ends))
        measured.append(
            StitchQuality(
                switch.name,
                switch.into,
                depth_a,
                depth_b,
                fitted.r2,
                fitted.ridge,
                fitted.kernel,
                fitted.rank,
                fitted.macs,
                supernetwork.subnetwork(answering).macs,
                qualities[single],
                compared - qualities[single],
            )
        )
    return measured


def best_stitches(
    stitch_qualities: Sequence[StitchQuality],
    *,
    best: int | None = None,
    min_r2: float | None = None,
    max_accuracy_drop: float | None = None,
) -> list[int]:
    """Choose the stitches that are worth searching.

    Args:
        stitch_qualities: What `measure_stitches` returned.
        best: How many to keep at most, by the accuracy of their single-stitch networks.
        min_r2: Least R² to keep one.
        max_accuracy_drop: Largest loss against the weakest parent, from 0 to 1; of two jobs,
            against the parent that the stitch leads into.

    Returns:
        Indices of the switches to keep, ascending; for `Supernetwork.keep`.
    """
    chosen = [
        index
        for index, stitch_quality in enumerate(stitch_qualities)
        if (min_r2 is None or stitch_quality.r2 >= min_r2)
        and (max_accuracy_drop is None or stitch_quality.drop <= max_accuracy_drop)
    ]
    chosen.sort(key=lambda index: stitch_qualities[index].drop)
    return sorted(chosen[:best])


def stitches_within(
    supernetwork: Supernetwork,
    stitch_qualities: Sequence[StitchQuality],
    chosen: Sequence[int],
    share: float,
) -> list[int]:
    """Choose as many stitches as a share of the parents' weights allows, the best ones first.

    Of stitches that lose alike, by steps of two points, smaller ones are better. Every direction,
    out of one parent into another one, has its turn in the middle of the networks, near their
    ends, where stitches are small, and near the images, where they save little: first the best
    stitch of each, then the second best, and so on. One that is too large is passed over.

    Args:
        supernetwork: The fitted supernetwork.
        stitch_qualities: What `measure_stitches` returned.
        chosen: Indices of the switches to choose from.
        share: How large the weights of all chosen stitches may be, as a share of the parents'
            weights in bytes.

    Returns:
        Indices of the switches to keep, ascending; for `Supernetwork.keep`.
    """
    sizes = [bytes_of([stitch]) for stitch in supernetwork.stitches]

    def loss(index: int) -> tuple[int, int]:
        return max(0, math.floor(stitch_qualities[index].drop / _ALIKE)), sizes[index]

    groups: dict[tuple[int, Side, Side], list[int]] = {}
    for index in sorted(chosen, key=loss):
        quality = stitch_qualities[index]
        depth = (quality.depth_a + quality.depth_b) / 2
        turn = 2 if depth < _MIDDLE[0] else 1 if depth > _MIDDLE[1] else 0
        groups.setdefault((turn, quality.out_of, quality.into), []).append(index)
    parents = bytes_of(graph.module for graph in supernetwork.graphs.values())
    left = share * parents
    kept: list[int] = []
    for index in chain.from_iterable(zip_longest(*(groups[key] for key in sorted(groups)))):
        if index is not None and sizes[index] <= left:
            kept.append(index)
            left -= sizes[index]
    return sorted(kept)


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights and buffers of some modules, each memory counted once.

    Args:
        modules: Any.
    """
    held = {
        storage.data_ptr(): storage.nbytes()
        for module in modules
        for tensor in chain(module.parameters(), module.buffers())
        for storage in [tensor.untyped_storage()]
    }
    return sum(held.values())
